"""What is to be simplified: passed from one part of the story to the next."""

from dataclasses import dataclass
from pathlib import Path

from kernelsimp.data.sources import Data
from kernelsimp.models.network import Network
from kernelsimp.settings import Settings
from kernelsimp.solver.process_group import ALONE, ProcessGroup


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be simplified, with what images, under which settings; `resume` is the folder of states.

    `group` are the processes that plan it together.
    """

    network: Network
    data: Data | None
    settings: Settings
    resume: Path | None = None
    group: ProcessGroup = ALONE
