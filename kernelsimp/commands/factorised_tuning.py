"""Fine-tuning a factorised network: all its numbers are free, and the network that was exported teaches.

The engine, its options, the epoch that is kept and its validation images are those of every other training.
A layer that runs as two keeps its rank by its form.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from kernelsimp.commands.inputs import check_training, is_run
from kernelsimp.commands.measure import check_figure, classifies, measure_module
from kernelsimp.commands.run import ExportSource
from kernelsimp.commands.task import Task
from kernelsimp.data.sources import Data
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome
from kernelsimp.models.network import Network
from kernelsimp.report.run_folder import JsonLog
from kernelsimp.run_lock import take_lock
from kernelsimp.settings import Settings
from kernelsimp.training.finetune import Trained, finetune
from kernelsimp.training.job import few_to_judge, job_of
from kernelsimp.training.ranks import processes
from kernelsimp.watch import Watcher

STATE = "factorised"
"""Where under `resume` the state of this training lies: a run has its own beside it."""


@dataclass(frozen=True)
class TrainingFolder:
    """Where the log of a training goes and its resume state: the RUN, or a folder beside the export."""

    path: Path
    of_run: bool

    @property
    def state(self) -> Path:
        """The folder of the resume state."""
        return self.path / "resume" / STATE

    def check(self) -> None:
        """Raise `KernelsimpError` where the folder beside an export is a file, or another run."""
        if self.of_run:
            return
        found = "is a file" if self.path.is_file() else "is a run" if is_run(self.path) else ""
        if found:
            raise KernelsimpError(
                f"{self.path} {found}; the log of --finetune would go there: name another --out"
            )

    def log(self, watcher: Watcher, *, resumed: bool) -> JsonLog:
        """Return the log; that of a RUN goes on, for it tells of the run before."""
        return JsonLog(self.path / "log.jsonl", watcher, fresh=not (self.of_run or resumed))


def training_folder(run: Path | None, path: Path) -> TrainingFolder:
    """Return where an export of a `run` (None: of a file) to `path` keeps log and state of its training.

    >>> training_folder(None, Path("net.factorised.pt2")).path.name
    'net.factorised'
    """
    return TrainingFolder(run or path.with_suffix(""), run is not None)


def check_tuning(network: Network, data: Data | None, settings: Settings) -> None:
    """Raise `KernelsimpError` for a training that cannot be, before anything is timed."""
    chosen = settings.finetune
    if not chosen.finetune:
        return
    if data is None:
        raise KernelsimpError("--finetune needs images to train on: pass --data")
    if chosen.soft is not None or chosen.free_scale or chosen.hold != "auto":
        raise KernelsimpError(
            "--soft, --hold and --free-scale hold kernels in structures; thinner layers keep their rank by "
            "their form, so leave them out"
        )
    if processes(chosen) != (1, 1):
        raise KernelsimpError(
            "export trains in one process; leave out --devices and --num-nodes, or torchrun"
        )
    check_training(settings)
    if len(data.test):
        check_figure(settings, classifier=classifies(network, data, settings))
    if not len(data.train):
        raise KernelsimpError(f"{data.name}: the training split is empty; --finetune needs images in it")
    job_of(data, settings, None)


def tune(
    task: Task, factorised: nn.Module, folder: TrainingFolder, watcher: Watcher
) -> tuple[nn.Module, Trained]:
    """Return a trained copy of the factorised network, and how the training went.

    Raises as `training.finetune` does, and where another process is at work in the folder.
    """
    assert task.data is not None
    settings, student = task.settings, copy.deepcopy(factorised)
    folder.path.mkdir(parents=True, exist_ok=True)
    take_lock(folder.path, student)  # held until the training is over
    log = folder.log(watcher, resumed=settings.finetune.resume)
    if warning := few_to_judge(task.data):
        log.warn(warning)
    teacher = task.network.module() if settings.finetune.distill else None
    job = job_of(task.data, settings, teacher, None, folder.state)
    trained = finetune(student, job, settings.finetune, log)
    # a copy that the engine has never held, laid out as the other
    made = copy.deepcopy(factorised)
    made.load_state_dict(student.state_dict())
    return made.eval(), trained


def measured(task: Task, stages: Mapping[str, nn.Module], watcher: Watcher) -> dict[str, Outcome]:
    """Measure each stage on test images, which chose nothing; nothing where there are none or no classes."""
    data, settings = task.data, task.settings
    if data is None or not len(data.test) or not classifies(task.network, data, settings):
        return {}
    return {name: measure_module(model, data, settings, watcher) for name, model in stages.items()}


def held_note(source: ExportSource) -> tuple[str, ...]:
    """Say that a training changed kernels that the run holds."""
    if source.plan is None or not source.plan.simplified:
        return ()
    return ("the kernels that the run holds were free in this training: only ranks are kept",)
