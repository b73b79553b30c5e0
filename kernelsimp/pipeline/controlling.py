"""The controls beside a result: what else the same budget buys, measured on the same test images."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace

from kernelsimp.data.sources import Data
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome, mcnemar
from kernelsimp.pipeline.opening import hold_of, measured_model
from kernelsimp.pipeline.task import Chosen, Task
from kernelsimp.records.report import Control
from kernelsimp.settings import Settings
from kernelsimp.simplify.arms import Arm, held_arm
from kernelsimp.simplify.controls import Case, run_controls
from kernelsimp.simplify.walk import targets_of
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
    task: Task, chosen: Chosen, measured: Mapping[str, Outcome], watcher: Watcher
) -> tuple[Control, ...]:
    """Return one record an arm, compared with the simplified network at the same stage.

    Arms stand beside `simplified`, and with --finetune each of them once more beside `finetuned`, after the
    same schedule and held alike. Nothing where the settings ask for no controls.
    """
    kept = measured.get("simplified")
    if not task.settings.plan.controls or chosen.case is None or task.data is None or kept is None:
        return ()
    case, data, trained = chosen.case, task.data, measured.get("finetuned")
    arms = [*_arms(task, chosen, case, watcher)]
    records = [_record(arm, measured_model(arm.model, data, task.settings, watcher), kept) for arm in arms]
    if trained is not None:
        watcher.note(
            f"{len(arms) + 1} control arms are fine-tuned on the same schedule, each as long as ours"
        )
        arms.append(Arm("untouched", 1.0, task.network.module(), {}))
        for arm in arms:
            _train(task, arm, case, watcher)
            after = replace(arm, name=f"{arm.name}, fine-tuned alike")
            outcome = measured_model(arm.model, data, task.settings, watcher)
            records.append(_record(after, outcome, trained))
    return tuple(records)


def _arms(task: Task, chosen: Chosen, case: Case, watcher: Watcher) -> Iterator[Arm]:
    yield from run_controls(case, seed=task.settings.run.seed, watcher=watcher)
    for tried in chosen.tried:
        if tried.cost != case.kept.cost:
            share = tried.plan.dof_after / tried.plan.dof_before
            kernels = {layer.name: layer.kernels for layer in case.ground.bank.layers}
            targets = targets_of(tried.plan)
            held = {name: target.constraint(kernels[name]) for name, target in targets.items()}
            yield Arm(f"{tried.cost} cost alone", share, copy.deepcopy(tried.walked.model), held)


def _train(task: Task, arm: Arm, case: Case, watcher: Watcher) -> None:
    """Train an arm as the simplified network was trained: held by value, by structure, or not at all."""
    assert task.data is not None
    settings, mode = task.settings, hold_of(task.settings)
    teacher = task.network.module() if settings.finetune.distill else None
    job = job_of(task.data, settings, teacher)
    schedule = replace(settings.finetune, soft=None, resume=False)
    loose = replace(arm, constraints={}) if mode == "none" else arm
    with held_arm(loose, case.ground.bank, values=mode == "freeze") as student:
        finetune(student, job, schedule, watcher)


def _record(arm: Arm, outcome: Outcome, kept: Outcome) -> Control:
    change = outcome.top1 - kept.top1
    p = mcnemar(kept.correct, outcome.correct)
    return Control(arm.name, arm.dof, outcome.top1, outcome.right, change, p)
