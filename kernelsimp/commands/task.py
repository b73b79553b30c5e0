"""What is to be simplified, and what came of it: passed from one part of the story to the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kernelsimp.data.sources import Data
from kernelsimp.models.network import Network
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Round
from kernelsimp.settings import Settings
from kernelsimp.solver.controls import ControlCase
from kernelsimp.solver.search import BudgetJudge
from kernelsimp.solver.solve import PlanTrial


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be simplified, with what images, under which settings; `record` keeps a search's trials."""

    network: Network
    data: Data | None
    settings: Settings
    record: Path | None = None


@dataclass(frozen=True, eq=False)
class Chosen:
    """A plan and the network it made.

    `output_errors` are relative, by layer; `buffers_changed` took up shifts; `met` is false where an
    accuracy budget was not; `case` is what controls stand beside and `tried` one plan a cost, where the
    solution was taken. `losses` are (predicted, measured) by layer. `rounds` were tried, and `stages` are the
    networks after each of them that was kept. `judge` judged an accuracy budget.
    """

    plan: Plan
    network: Network
    output_errors: Mapping[str, float] = field(default_factory=dict)
    buffers_changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    met: bool = True
    case: ControlCase | None = None
    tried: tuple[PlanTrial, ...] = ()
    losses: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rounds: tuple[Round, ...] = ()
    stages: Mapping[str, Network] = field(default_factory=dict)
    judge: BudgetJudge | None = None
