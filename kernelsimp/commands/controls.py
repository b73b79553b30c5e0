"""The controls beside a result: what else the same budget buys, measured on the same test images."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from kernelsimp.commands.measure import measure_module
from kernelsimp.commands.task import Task
from kernelsimp.data.sources import Data
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome, mcnemar, paired_interval
from kernelsimp.records.report import Control
from kernelsimp.settings import Settings
from kernelsimp.solver.chosen import Chosen
from kernelsimp.solver.controls import Arm, ControlCase, constraints_at, held_arm, run_controls
from kernelsimp.solver.projected_cg import FilterConstraint
from kernelsimp.solver.solve import PlanTrial
from kernelsimp.solver.targets import targets_of
from kernelsimp.solver.tolerance import is_by_weight
from kernelsimp.training.finetune import finetune
from kernelsimp.training.job import job_of
from kernelsimp.training.options import hold_of
from kernelsimp.training.ranks import processes
from kernelsimp.watch import Watcher


def check_controls(settings: Settings, data: Data | None) -> None:
    """Raise `KernelsimpError` where controls are asked for and nothing could stand beside them."""
    plan = settings.plan
    if plan.controls and (data is None or is_by_weight(plan)):
        raise KernelsimpError("--controls stand beside a budget on images: pass --arch, --data and --dof")
    if plan.controls and settings.finetune.finetune and processes(settings.finetune) != (1, 1):
        raise KernelsimpError(
            "--controls are fine-tuned in one process; leave out --devices, --num-nodes and torchrun"
        )
    if plan.controls and plan.denoise_all:
        raise KernelsimpError(
            "--controls stand beside structures, and --denoise-all makes none; leave one out"
        )


def controls_beside(
    task: Task, chosen: Chosen, measured: Mapping[str, Outcome], watcher: Watcher
) -> tuple[Control, ...]:
    """Return one record an arm, compared with the simplified network at the same stage.

    Arms stand beside `simplified`, and with --finetune each of them once more beside `finetuned`, after the
    same schedule and held alike. After rounds, which no arm goes, they stand beside the same plan without
    rounds, which is an arm itself and stands beside the run. Nothing where the settings ask for no controls.
    """
    kept = measured.get("simplified")
    if not task.settings.plan.controls or chosen.case is None or task.data is None or kept is None:
        return ()
    case, trained = chosen.case, measured.get("finetuned")
    arms = [*_rounds_arm(chosen, case), *_arms(task, chosen, case, watcher)]
    records = _beside(task, chosen, arms, kept, watcher)
    if trained is not None:
        watcher.note(
            f"{len(arms) + 1} control arms are fine-tuned on the same schedule, each as long as ours"
        )
        arms.append(Arm("untouched", 1.0, task.network.module(), {}))
        for arm in arms:
            _train(task, arm, case, watcher)
        free = hold_of(task.settings) == "none"  # what nothing held has left its subspace
        after = [
            replace(arm, name=f"{arm.name}, fine-tuned alike", dof=1.0 if free else arm.dof) for arm in arms
        ]
        records += _beside(task, chosen, after, trained, watcher)
    return tuple(records)


def _beside(
    task: Task, chosen: Chosen, arms: Sequence[Arm], kept: Outcome, watcher: Watcher
) -> list[Control]:
    """Measure arms beside the outcome `kept`; after rounds the first alone, and beside it the others."""
    assert task.data is not None
    records = []
    for arm in arms:
        outcome = measure_module(arm.model, task.data, task.settings, watcher)
        records.append(_record(arm, outcome, kept))
        if chosen.schedule and arm is arms[0]:
            kept = outcome
    return records


def _rounds_arm(chosen: Chosen, case: ControlCase) -> Iterator[Arm]:
    if chosen.schedule:
        held = _constraints(case.kept)
        yield Arm("this plan without rounds", case.share, copy.deepcopy(case.kept.reconstruction.model), held)


def controls_notes(controls: tuple[Control, ...]) -> tuple[str, ...]:
    """Return what to say of control arms that the test images cannot tell from the run, or that beat it."""
    said = {
        "tie": "a tie, so these test images cannot say that the structures beat it: {}",
        "better": "better than the run: {}",
    }
    names = {word: [arm.name for arm in controls if arm.outcome == word] for word in said}
    return tuple(f"controls: {said[word].format(', '.join(arms))}" for word, arms in names.items() if arms)


def _arms(task: Task, chosen: Chosen, case: ControlCase, watcher: Watcher) -> Iterator[Arm]:
    yield from run_controls(case, seed=task.settings.run.seed, watcher=watcher)
    for tried in chosen.tried:
        if tried.cost != case.kept.cost:
            share = tried.plan.dof_after / tried.plan.dof_before
            model, held = copy.deepcopy(tried.reconstruction.model), _constraints(tried)
            yield Arm(f"{tried.cost} cost alone", share, model, held)


def _constraints(tried: PlanTrial) -> dict[str, FilterConstraint]:
    return constraints_at(tried.reconstruction.model, targets_of(tried.plan))


def _train(task: Task, arm: Arm, case: ControlCase, watcher: Watcher) -> None:
    """Train an arm as the simplified network was trained: held by value, by structure, or not at all."""
    assert task.data is not None
    settings, mode = task.settings, hold_of(task.settings)
    teacher = task.network.module() if settings.finetune.distill else None
    job = job_of(task.data, settings, teacher)
    schedule = replace(settings.finetune, soft=None, resume=False)
    loose = replace(arm, constraints={}) if mode == "none" else arm
    with held_arm(loose, case.calibrated.bank, values=mode == "freeze") as student:
        finetune(student, job, schedule, watcher)


def _record(arm: Arm, outcome: Outcome, kept: Outcome) -> Control:
    change = outcome.top1 - kept.top1
    p, interval = mcnemar(kept.correct, outcome.correct), paired_interval(kept.correct, outcome.correct)
    return Control(arm.name, arm.dof, outcome.top1, outcome.right, change, p, interval)
