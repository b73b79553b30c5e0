"""Training what is not held: the story of a fine-tuning run, epoch by epoch.

The model is changed in place and ends at its best epoch. Validation data chooses that epoch, among those
in which nothing held had moved; epoch 0 is the network as it came. Sample order depends on the seed and
the epoch only.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from kernelsimp.batch_limit import BatchLimit
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.outputs import scores_of
from kernelsimp.float32 import full_float32
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Epoch
from kernelsimp.settings import FinetuneSettings
from kernelsimp.training.advice import PART_AT_LEAST, Batch, advice, in_parts
from kernelsimp.training.best_epoch import Average, Keeper, snapshot
from kernelsimp.training.distill import objective
from kernelsimp.training.hold import held_share, verify
from kernelsimp.training.mixing import mix_images
from kernelsimp.training.options import check_settings, make_optimizer
from kernelsimp.training.penalties import Pull
from kernelsimp.training.schedule import rate
from kernelsimp.training.state import (
    Interrupts,
    StateFile,
    TrainingProgress,
    identity,
    random_state,
    set_random_state,
    taken_up,
)
from kernelsimp.training.statistics import re_estimate
from kernelsimp.training.validation import Batches, EpochJudge, Mark
from kernelsimp.watch import SILENT, Watcher

Stop = Literal["", "nothing to train", "diverged", "early"]
Shard = tuple[int, int]
"""A process's rank, and how many there are."""


class TrainBatches(Sized, Protocol):
    """The batches of one epoch, and how many there are."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class FinetuneJob:
    """What to train on and with what.

    `train(epoch, shard)` gives one process's batches of an epoch, numbered from 1, the same for the same
    number; `val` chooses the best epoch; `teacher` is the original network, left as it is. `plan` is what
    a soft hold pulls towards. `folder` is where the resume state goes, if anywhere; `images` names the
    training images for it and `words` further settings. `penalty(progress)` is added to every batch's loss,
    progress running from 0 to 1; `held` is the share of kernels held by other means than `hold`;
    `figures(epoch)` gives further fields of its record.
    """

    train: Callable[[int, Shard], TrainBatches]
    val: Batches
    teacher: nn.Module | None = None
    device: str = "auto"
    seed: int = 0
    on_epoch: Callable[[Epoch], None] | None = None
    plan: Plan | None = None
    folder: Path | None = None
    images: str = ""
    words: Mapping[str, Any] = field(default_factory=dict)
    penalty: Callable[[float], Tensor] | None = None
    held: float | None = None
    figures: Callable[[int], Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Trained:
    """What came of it: the history, by which rule an epoch was kept, and why it ended early."""

    history: tuple[Epoch, ...]
    chosen_by: str = ""
    stopped: Stop = ""

    @property
    def best_epoch(self) -> int:
        """The epoch that was kept; 0 is the network as it came."""
        return next((epoch.epoch for epoch in self.history if epoch.kept), 0)


def finetune(
    model: nn.Module, job: FinetuneJob, settings: FinetuneSettings, watcher: Watcher = SILENT
) -> Trained:
    """Train the free parameters of `model` in place and leave it at its best epoch, in evaluation mode.

    A loss that is not finite ends the run at the best state so far (`stopped` says so). A first Ctrl-C ends
    it after the step, with the state saved. Raises `KernelsimpError` for settings that make no sense, a
    resume state of another run, and where a batch does not fit into memory; `HoldError` should a held
    kernel have moved in the epoch that was kept; `KeyboardInterrupt` when interrupted.
    """
    check_settings(settings)
    if settings.soft is not None and job.plan is None:
        raise KernelsimpError("soft is set, but there is no plan to pull towards; simplify first")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        watcher.note("nothing to train: every parameter is held; fine-tuning is skipped")
        return Trained((), stopped="nothing to train")
    interrupts = Interrupts()
    with advice(), interrupts.watch(), full_float32():
        trained = _Finetuning(model, job, settings, watcher).train(interrupts)
    model.eval()
    verify(model)
    return trained


class _Finetuning:
    """The moving parts of one run."""

    def __init__(
        self, model: nn.Module, job: FinetuneJob, settings: FinetuneSettings, watcher: Watcher
    ) -> None:
        from kernelsimp.training.engine import Engine  # here, because importing Fabric takes seconds

        self.model, self.job, self.settings = model, job, settings
        self.engine = Engine(job.device, settings)
        self.watcher = watcher if self.engine.first else SILENT
        torch.manual_seed(job.seed + self.engine.shard[0])
        self.file: StateFile | None = None
        if job.folder is not None:
            owner = identity(model, settings, job.seed, job.images, job.words)
            self.file = StateFile(job.folder, owner, settings.save_every)
        self._lay_out(torch.channels_last)
        called: nn.Module = torch.compile(model) if settings.compile else model  # type: ignore[assignment]
        optimizer = make_optimizer(model, settings, self.engine.device)
        self.wrapped, self.optimizer = self.engine.setup(called, optimizer)
        self.teacher = job.teacher.to(self.engine.device).eval() if job.teacher is not None else None
        self.limit = BatchLimit(self.watcher, least=PART_AT_LEAST)
        judge = EpochJudge(job.val, self.teacher, self.engine.device, BatchLimit(self.watcher))
        self.keeper = Keeper(model, judge, verify)
        self.keeper.judge.penalty = job.penalty
        self.keeper.average = Average(model, settings.ema) if settings.ema is not None else None
        if settings.soft is not None and job.plan is not None:
            self.keeper.pull = Pull(model, job.plan, settings.soft)
        self.progress = TrainingProgress(total=torch.zeros((), device=self.engine.device))
        self.history: list[Epoch] = []
        self.held = 100 * (held_share(model) if job.held is None else job.held)

    def train(self, interrupts: Interrupts) -> Trained:
        """Run every epoch and put the best one back."""
        stopped: Stop = ""
        if not self._resume():
            self.keeper.enter_start()
        while self.progress.epoch <= self.settings.epochs and not stopped:
            if self._impatient():
                stopped = "early"
            elif not self._epoch(interrupts):
                stopped = "diverged"
        self.keeper.put_back()
        if self.settings.batch_norm == "re-estimate":
            self._re_estimate()
        self._lay_out(torch.contiguous_format)
        self._tell(stopped)
        best = self.keeper.best_epoch
        history = tuple(replace(epoch, kept=epoch.epoch == best) for epoch in self.history)
        return Trained(history, self.keeper.judge.rule, stopped)

    def _epoch(self, interrupts: Interrupts) -> bool:
        """Train one epoch and hold its election; False where the loss is not finite."""
        now = self.progress
        if not self._pass(interrupts):
            return False
        loss = self.engine.mean(float(now.total) / now.images)
        if not math.isfinite(loss):
            return False
        self.engine.even_out(self.model)
        mark, held = self.keeper.elect(now.epoch, self.watcher)
        done = Epoch(
            epoch=now.epoch,
            train_loss=loss,
            val_top1=mark.top1 if mark else None,
            val_loss=mark.loss if mark else None,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            seconds=now.seconds,
            images_per_second=now.images * self.engine.shard[1] / max(now.seconds, 1e-9),
            held=held,
            **(self.job.figures(now.epoch) if self.job.figures is not None else {}),
        )
        self.history.append(done)
        self.watcher.row(**self._row(done, mark))
        now.next_epoch()
        self._save()
        if self.job.on_epoch is not None:
            self.job.on_epoch(done)
        self._heed(interrupts, saved=True)
        return True

    def _row(self, epoch: Epoch, mark: Mark | None) -> dict[str, float]:
        """Return what the live table and the log show of an epoch: accuracies and shares in percent."""
        low, high = mark.interval if mark else (math.nan, math.nan)
        return {
            "epoch": epoch.epoch,
            "loss": epoch.train_loss,
            "val_top1": mark.top1 if mark else math.nan,
            "val_low": low,
            "val_high": high,
            "lr": epoch.lr,
            "images_per_second": epoch.images_per_second,
            "held": self.held,
        }

    def _pass(self, interrupts: Interrupts) -> bool:
        """Go through the rest of the epoch's batches; False where a loss is not finite."""
        now, every, step = self.progress, self.settings.accumulate, list[Batch]()
        batches = self.job.train(now.epoch, self.engine.shard)
        count = len(batches)
        if not count:
            raise KernelsimpError("the training split is empty; fine-tuning needs images to train on")
        self.watcher.start(f"fine-tuning, epoch {now.epoch} of {self.settings.epochs}", count)
        self._training_mode()
        clock, before = time.perf_counter(), now.seconds
        for index, batch in enumerate(batches):
            if index < now.batch:
                continue  # done before the run was interrupted
            step = [*step, batch] if index % every else [batch]
            ready = len(step) == every or index + 1 == count
            group = min(every, count - index // every * every)
            with self.engine.passing(self.wrapped, waiting=not ready):
                loss = self._fitting(step, 1 / group, (now.epoch - 1 + index / count) / self.settings.epochs)
            now.total += loss * len(batch[1])
            now.images += len(batch[1])
            if not self._look(loss, index):
                return False
            if ready:
                self._update(count)
                now.batch, now.seconds = index + 1, before + time.perf_counter() - clock
                if self.file is not None and self.file.due and index + 1 < count:
                    self._save()
                if index + 1 < count:
                    self._heed(interrupts, saved=False)
        return True

    def _fitting(self, step: Sequence[Batch], share: float, progress: float) -> Tensor:
        """Do what `_batch` does with the last batch of a step so far; one process alone in parts."""
        if self.engine.shard[1] > 1:
            return self._batch(step[-1], share, progress)

        def add(part: Batch, own: float) -> Tensor:
            return own * self._batch(part, share * own, progress)

        return in_parts(add, step, self.limit, self.optimizer.zero_grad)

    def _batch(self, batch: Batch, share: float, progress: float) -> Tensor:
        """Add the gradients of `share` times the loss of one batch; return that loss, detached."""
        images, labels = (part.to(self.engine.device, non_blocking=True) for part in batch)
        images, mix = mix_images(images, self.settings)
        if self.settings.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        logits = scores_of(self.wrapped(images))
        taught = None
        if self.teacher is not None and self.settings.distill > 0:
            with torch.no_grad(), self.engine.autocast():
                taught = scores_of(self.teacher(images))
            taught = taught.float()
        loss = objective(logits.float(), labels, taught, self.settings, mix)
        if self.job.penalty is not None:
            loss = loss + self.job.penalty(progress)
        self.engine.backward(loss * share)
        return loss.detach()

    def _update(self, batches: int) -> None:
        """Take one step of the optimiser, of the soft hold and of the average."""
        now = self.progress
        epoch_steps = math.ceil(batches / self.settings.accumulate)
        steps = epoch_steps * self.settings.epochs
        lr = rate(now.step, steps, epoch_steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.settings.clip is not None:
            self.engine.clip(self.wrapped, self.optimizer, self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.keeper.pull is not None:
            self.keeper.pull.step(lr, (now.step + 1) / steps)
        if self.keeper.average is not None:
            self.keeper.average.update(self.model, now.step)
        now.step += 1

    def _look(self, loss: Tensor, index: int) -> bool:
        """Show the loss and say whether it is finite: at every batch on the CPU, now and then on a GPU.

        Reading a number stalls a GPU, and asking the other ranks costs a message.
        """
        seldom = self.engine.device.type != "cpu" or self.engine.shard[1] > 1
        if seldom and index % 50:
            self.watcher.step()
            return True
        value = self.engine.mean(float(loss))
        if math.isfinite(value):
            self.watcher.step(loss=value)
        return math.isfinite(value)

    def _re_estimate(self) -> None:
        """Take fresh batch-norm statistics where validation says that they are better."""
        before = self.keeper.judge.mark(self.model)
        kept = snapshot(self.model)
        re_estimate(self.model, self.job.train(1, self.engine.shard), self.engine.device)
        self.engine.even_out(self.model)
        after, score = self.keeper.judge.mark(self.model), self.keeper.judge.score
        if before is None or after is None:
            return
        better = score(after) < score(before)
        if not better:
            self.model.load_state_dict(kept)
        figures = f"{score(before):.4g} before, {score(after):.4g} after"
        self.watcher.note(f"batch norm re-estimated: {'kept' if better else 'not kept'} ({figures})")

    def _lay_out(self, order: torch.memory_format) -> None:
        """Store the weights of two-dimensional convolutions in this order, where that is asked for."""
        for module in self.model.modules() if self.settings.channels_last else ():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.to(memory_format=order)

    def _training_mode(self) -> None:
        self.wrapped.train()
        if self.settings.batch_norm == "eval":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _save(self) -> None:
        """Write the state from which `_resumed` goes on; the first rank's stands for all."""
        if self.file is None or not self.engine.first:
            return
        self.file.save(
            {
                "progress": vars(self.progress),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "keeper": self.keeper.state(),
                "precision": self.engine.state(),
                "history": [vars(epoch) for epoch in self.history],
                "random": random_state(),
            }
        )

    def _resume(self) -> bool:
        """Go on from the saved state, if that is wanted and there is one."""
        if self.file is None or not self.settings.resume:
            return False
        state = self.file.load(self.watcher)
        if state is None:
            self.watcher.note(f"no resume state in {self.file.path.parent}: starting from the beginning")
            return False
        with taken_up(self.file.path):
            self.progress = TrainingProgress(**state["progress"])
            self.progress.total = self.progress.total.to(self.engine.device)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.keeper.load(state["keeper"])
            self.engine.load(state["precision"])
            self.history = [Epoch(**epoch) for epoch in state["history"]]
            set_random_state(state["random"])
        self.watcher.note(f"going on in epoch {self.progress.epoch} after batch {self.progress.batch}")
        return True

    def _heed(self, interrupts: Interrupts, *, saved: bool) -> None:
        """Stop here if that was asked for, with the state saved."""
        asked = interrupts.asked
        if self.engine.shard[1] > 1:  # all ranks must stop at the same step, and asking costs a message
            asked = (saved or self.progress.step % 50 == 0) and self.engine.mean(float(asked)) > 0
        if not asked:
            return
        if not saved:
            self._save()
        if self.file is not None:
            self.watcher.note(f"interrupted; the state is in {self.file.path}: go on with --resume")
        raise KeyboardInterrupt

    def _impatient(self) -> bool:
        patience = self.settings.patience
        return patience is not None and len(self.history) - self.keeper.best_epoch >= patience

    def _tell(self, stopped: Stop) -> None:
        best, rule = self.keeper.best_epoch, self.keeper.judge.rule
        kept = f"epoch {best}" if best else "the network as it came"
        if stopped == "diverged":
            self.watcher.warn(
                f"the loss is not finite in epoch {len(self.history) + 1}: training stopped at {kept};"
                " lower --lr, add --warmup or --clip"
            )
        elif not best:
            self.watcher.warn(f"no epoch was better than the network as it came, by {rule}; lower --lr")
        else:
            self.watcher.note(f"kept {kept} of {len(self.history)}, chosen by {rule}")
