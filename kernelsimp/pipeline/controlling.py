"""The controls beside a result: what else the same budget buys, measured on the same test images."""

from collections.abc import Iterator

from kernelsimp.data.sources import Data
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome, mcnemar
from kernelsimp.pipeline.choosing import Chosen, Task
from kernelsimp.pipeline.opening import measured_model
from kernelsimp.records.report import Control
from kernelsimp.settings import Settings
from kernelsimp.simplify.controls import Arm, Case, run_controls
from kernelsimp.training.finetune import finetune
from kernelsimp.training.job import job_of
from kernelsimp.watch import Watcher


def check_controls(settings: Settings, data: Data | None) -> None:
    """Raise `KernelsimpError` where controls are asked for and nothing could stand beside them."""
    plan = settings.plan
    simple = plan.tolerance is not None or plan.cost == "relative"
    if plan.controls and (data is None or simple):
        raise KernelsimpError("--controls stand beside a budget on images: pass --arch, --data and --dof")


def controls_beside(
    task: Task, chosen: Chosen, kept: Outcome | None, watcher: Watcher
) -> tuple[Control, ...]:
    """Return one record an arm, compared with the simplified network before fine-tuning, `kept`.

    Nothing where the settings ask for no controls.
    """
    if not task.settings.plan.controls or chosen.case is None or task.data is None or kept is None:
        return ()
    return tuple(
        _record(arm, measured_model(arm.model, task.data, task.settings, watcher), kept)
        for arm in _arms(task, task.data, chosen, chosen.case, watcher)
    )


def _arms(task: Task, data: Data, chosen: Chosen, case: Case, watcher: Watcher) -> Iterator[Arm]:
    seed = task.settings.run.seed
    yield from run_controls(case, seed=seed, watcher=watcher)
    for tried in chosen.tried:
        if tried.cost != case.kept.cost:
            share = tried.plan.dof_after / tried.plan.dof_before
            yield Arm(f"{tried.cost} cost alone", share, tried.walked.model)
    if task.settings.finetune.finetune:
        student = task.network.module()
        finetune(student, job_of(data, task.settings, task.network.module()), task.settings.finetune, watcher)
        yield Arm("untouched, fine-tuned alike", 1.0, student)


def _record(arm: Arm, outcome: Outcome, kept: Outcome) -> Control:
    change = outcome.top1 - kept.top1
    p = mcnemar(kept.correct, outcome.correct)
    return Control(arm.name, arm.dof, outcome.top1, outcome.right, change, p)
