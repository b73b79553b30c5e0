"""Training a simplified network while it is held, for a round, for a control, or to the end."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from torch import nn

from kernelsimp.batch_limit import BatchLimit
from kernelsimp.commands.inputs import batches_of
from kernelsimp.commands.task import Task
from kernelsimp.models.network import Network
from kernelsimp.records.plan import Plan
from kernelsimp.solver.chosen import Chosen
from kernelsimp.training.finetune import Trained, finetune
from kernelsimp.training.hold import Mode, hold, release
from kernelsimp.training.job import epoch_batches, few_to_judge, job_of
from kernelsimp.training.options import hold_of
from kernelsimp.training.statistics import batch_norms, re_estimate
from kernelsimp.training.validation import EpochJudge
from kernelsimp.watch import Watcher


def finetune_network(
    task: Task, network: Network, plan: Plan, folder: Path | None, watcher: Watcher
) -> tuple[Network, Trained]:
    """Train what is not held, taught by the original; return the trained network and how it went."""
    assert task.data is not None
    student, mode = network.module(), hold_of(task.settings)
    teacher = task.network.module() if task.settings.finetune.distill else None
    if mode in get_args(Mode):
        hold(student, plan, cast(Mode, mode))
    if warning := few_to_judge(task.data):
        watcher.warn(warning)
    job = job_of(task.data, task.settings, teacher, plan, folder)
    trained = finetune(student, job, task.settings.finetune, watcher)
    release(student)
    return network.with_weights(student.state_dict()), trained


def finetune_briefly(task: Task, network: Network, plan: Plan, watcher: Watcher) -> Network:
    """Train a network for the epochs of one round; every simplified kernel stays in its structure.

    Whatever the final training holds, here values or structures are held.
    """
    usual = task.settings.finetune
    short = replace(
        usual,
        hold=usual.hold if hold_of(task.settings) in get_args(Mode) else "tie",
        epochs=task.settings.plan.round_epochs,
        soft=None,
        patience=None,
        warmup=0.0,
        resume=False,
    )
    brief = replace(task, settings=replace(task.settings, finetune=short))
    return finetune_network(brief, network, plan, None, watcher)[0]


def re_estimate_network(task: Task, chosen: Chosen, watcher: Watcher) -> Chosen:
    """Take fresh batch-norm statistics over the training images, and keep them where validation is better.

    Only with `--batch-norm re-estimate`, and only without --finetune, which does it at its own end. The
    images go through the training augmentation. Better is a lower validation loss, or KL from the original
    where that knows its validation images by heart.
    """
    settings, data = task.settings, task.data
    wanted = settings.finetune.batch_norm == "re-estimate" and not settings.finetune.finetune
    if not wanted or data is None:
        return chosen
    model, device = chosen.network.module(), chosen.network.device
    if not (batch_norms(model) and len(data.train) and len(data.val)):
        watcher.note("batch norm is not re-estimated: that takes batch norms, train and val images")
        return chosen
    limit = BatchLimit(watcher)
    judge = EpochJudge(batches_of(data.val, settings), task.network.module(), device, limit)
    before = judge.mark(model)
    watcher.start("re-estimating batch norm")
    re_estimate(model, epoch_batches(data, settings, 1), device)
    after = judge.mark(model)
    assert before is not None
    assert after is not None
    better = judge.score(after) < judge.score(before)
    figures = f"{judge.rule} {judge.score(before):.4g} before, {judge.score(after):.4g} after"
    text = f"batch norm re-estimated: {'kept' if better else 'not kept'} ({figures})"
    watcher.note(text)
    notes = (*chosen.notes, text)
    if not better:
        return replace(chosen, notes=notes)
    names = [f"{name}.{kind}" for name, kind in _statistics(model)]
    changed = tuple(dict.fromkeys((*chosen.buffers_changed, *names)))
    network = chosen.network.with_weights({name: model.state_dict()[name] for name in names})
    return replace(chosen, network=network, buffers_changed=changed, notes=notes)


def _statistics(model: nn.Module) -> Iterator[tuple[str, str]]:
    norms = set(batch_norms(model))
    for name, module in model.named_modules():
        if module in norms:
            yield from ((name, kind) for kind in ("running_mean", "running_var"))
