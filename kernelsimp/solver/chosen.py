"""What simplifying came to, whichever way it was planned: a plan and the network it made."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kernelsimp.models.network import Network
from kernelsimp.records.plan import Plan
from kernelsimp.records.scan import Scan
from kernelsimp.solver.controls import ControlCase
from kernelsimp.solver.rounds import Schedule
from kernelsimp.solver.search import BudgetJudge
from kernelsimp.solver.solve import PlanTrial


@dataclass(frozen=True, eq=False)
class Chosen:
    """A plan and the network it made.

    `case` has the trial that was kept, for controls to stand beside; None where kernels were only projected.
    `tried` is one plan a cost, and `schedule` the rounds. `losses` are (predicted, measured) by layer, in
    nats an image; `buffers_changed` took up shifts. `met` is false where an accuracy budget, judged by
    `judge`, was not. `scan` is of the kernels as they came.
    """

    plan: Plan
    network: Network
    case: ControlCase | None = None
    tried: tuple[PlanTrial, ...] = ()
    schedule: Schedule | None = None
    losses: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    buffers_changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    met: bool = True
    judge: BudgetJudge | None = None
    scan: Scan | None = None
