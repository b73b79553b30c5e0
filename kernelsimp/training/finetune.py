"""Training what is not held: the story of a fine-tuning run, epoch by epoch.

The model is changed in place and ends at its best epoch. Validation data chooses that epoch, among those
in which nothing held had moved; epoch 0 is the network as it came. Sample order depends on the seed and
the epoch only.
"""

import math
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from kernelsimp.errors import HoldError, KernelsimpError, did_you_mean
from kernelsimp.records.report import Epoch
from kernelsimp.settings import FinetuneSettings
from kernelsimp.training.distill import objective
from kernelsimp.training.hold import verify
from kernelsimp.training.judge import Batches, Judge, Mark
from kernelsimp.training.schedule import SCHEDULES, rate
from kernelsimp.watch import SILENT, Watcher

Stop = Literal["", "nothing to train", "diverged", "early"]


class TrainBatches(Sized, Protocol):
    """The batches of one epoch, and how many there are."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class FinetuneJob:
    """What to train on and with what.

    `train(epoch)` gives the batches of an epoch, numbered from 1, the same for the same number; `val`
    chooses the best epoch; `teacher` is the original network, left as it is.
    """

    train: Callable[[int], TrainBatches]
    val: Batches
    teacher: nn.Module | None = None
    device: str = "auto"
    seed: int = 0
    on_epoch: Callable[[Epoch], None] | None = None


@dataclass(frozen=True)
class Trained:
    """What came of it: the history, the epoch that was kept, by which rule, and why it ended early."""

    history: tuple[Epoch, ...]
    best_epoch: int
    chosen_by: str = ""
    stopped: Stop = ""


def finetune(
    model: nn.Module, job: FinetuneJob, settings: FinetuneSettings, watcher: Watcher = SILENT
) -> Trained:
    """Train the free parameters of `model` in place and leave it at its best epoch, in evaluation mode.

    A loss that is not finite ends the run at the best state so far (`stopped` says so). Raises
    `KernelsimpError` for settings that make no sense and where a batch does not fit into memory, and
    `HoldError` should a held kernel have moved in the epoch that was kept.
    """
    check_settings(settings)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        watcher.note("nothing to train: every parameter is held; fine-tuning is skipped")
        return Trained((), 0, stopped="nothing to train")
    with _memory_advice():
        run = _Run(model, job, settings, watcher)
        trained = run.train()
    model.eval()
    verify(model)
    return trained


def check_settings(settings: FinetuneSettings) -> None:
    """Raise `KernelsimpError` for the first setting that makes no sense."""
    for name, known in (
        ("optimizer", ("sgd", "adamw")),
        ("schedule", SCHEDULES),
        ("batch_norm", ("train", "eval")),
    ):
        value = getattr(settings, name)
        if value not in known:
            raise KernelsimpError(f"unknown {name.replace('_', '-')} '{value}'{did_you_mean(value, known)}")
    ranges = {
        "epochs": (settings.epochs >= 1, "1 or more"),
        "lr": (0 < settings.lr < math.inf, "greater than 0"),
        "distill": (0 <= settings.distill <= 1, "0..1"),
        "label_smoothing": (0 <= settings.label_smoothing < 1, "0 or more and less than 1"),
        "temperature": (0 < settings.temperature < math.inf, "greater than 0"),
        "accumulate": (settings.accumulate >= 1, "1 or more"),
        "momentum": (0 <= settings.momentum < 1, "0 or more and less than 1"),
        "weight_decay": (0 <= settings.weight_decay < math.inf, "0 or more"),
        "warmup": (0 <= settings.warmup < math.inf, "0 or more epochs"),
        "clip": (settings.clip is None or settings.clip > 0, "greater than 0"),
        "patience": (settings.patience is None or settings.patience >= 1, "1 or more epochs"),
    }
    for name, (valid, expected) in ranges.items():
        if not valid:
            raise KernelsimpError(
                f"{name.replace('_', '-')} is {getattr(settings, name)}; expected {expected}"
            )


def make_optimizer(model: nn.Module, settings: FinetuneSettings) -> Optimizer:
    """Return SGD or AdamW over what takes gradients; vectors (norms, biases) get no weight decay."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in free if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in free if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return AdamW(groups, lr=settings.lr)
    return SGD(groups, lr=settings.lr, momentum=settings.momentum)


class _Run:
    """The moving parts of one run."""

    def __init__(
        self, model: nn.Module, job: FinetuneJob, settings: FinetuneSettings, watcher: Watcher
    ) -> None:
        from kernelsimp.training.engine import Engine  # here, because importing Fabric takes seconds

        self.model, self.job, self.settings, self.watcher = model, job, settings, watcher
        torch.manual_seed(job.seed)
        self.engine = Engine(job.device, settings.precision)
        self.wrapped, self.optimizer = self.engine.setup(model, make_optimizer(model, settings))
        self.teacher = job.teacher.to(self.engine.device).eval() if job.teacher is not None else None
        self.judge = Judge(job.val, self.teacher, self.engine.device)
        self.step = 0
        self.history: list[Epoch] = []
        self.best_epoch, self.best_score = 0, math.inf
        self.best = _snapshot(model)

    def train(self) -> Trained:
        """Run every epoch and put the best one back."""
        self._mark_start()
        stopped: Stop = ""
        for epoch in range(1, self.settings.epochs + 1):
            if not self._epoch(epoch):
                stopped = "diverged"
                break
            if self._impatient(epoch):
                stopped = "early"
                break
        self.model.load_state_dict(self.best)
        self._tell(stopped)
        return Trained(tuple(self.history), self.best_epoch, self.judge.rule, stopped)

    def _mark_start(self) -> None:
        """Let the network as it came stand for election, unless it is the original itself."""
        mark = self.judge.mark(self.model)
        if mark is not None and (mark.divergence is None or mark.divergence > 1e-6):
            self.best_score = self.judge.score(mark)

    def _epoch(self, epoch: int) -> bool:
        """Train one epoch, mark it, keep it if it is the best; False where the loss is not finite."""
        started = time.perf_counter()
        loss, images = self._pass(epoch)
        if not math.isfinite(loss):
            return False
        seconds = time.perf_counter() - started
        held, mark = self._holds(), self.judge.mark(self.model)
        self._elect(epoch, mark, held=held)
        done = Epoch(
            epoch=epoch,
            train_loss=loss,
            val_top1=mark.top1 if mark else None,
            val_loss=mark.loss if mark else None,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            seconds=seconds,
            images_per_second=images / max(seconds, 1e-9),
            held=held,
        )
        self.history.append(done)
        if self.job.on_epoch is not None:
            self.job.on_epoch(done)
        return True

    def _pass(self, epoch: int) -> tuple[float, int]:
        """Go through the batches of `epoch` once; return the mean loss and the number of images."""
        batches = self.job.train(epoch)
        if not len(batches):
            raise KernelsimpError("the training split is empty; fine-tuning needs images to train on")
        self.watcher.start(f"fine-tuning, epoch {epoch} of {self.settings.epochs}", len(batches))
        self._training_mode()
        total, images, every = torch.zeros((), device=self.engine.device), 0, self.settings.accumulate
        for index, batch in enumerate(batches):
            last_share = min(every, len(batches) - index // every * every)
            ready = (index + 1) % every == 0 or index + 1 == len(batches)
            loss = self._batch(batch, 1 / last_share)
            total += loss * len(batch[1])
            images += len(batch[1])
            if not self._finite(loss, index):
                return math.nan, images
            if ready:
                self._update(len(batches))
            self.watcher.step(loss=float(loss) if self._cheap_to_read() else math.nan)
        return float(total) / images, images

    def _batch(self, batch: tuple[Tensor, Tensor], share: float) -> Tensor:
        """Add the gradients of `share` times the loss of one batch; return that loss, detached."""
        images, labels = (part.to(self.engine.device, non_blocking=True) for part in batch)
        logits = self.wrapped(images)
        taught = None
        if self.teacher is not None and self.settings.distill > 0:
            with torch.no_grad(), self.engine.autocast():
                taught = self.teacher(images)
            taught = taught.float()
        loss = objective(logits.float(), labels, taught, self.settings)
        self.engine.backward(loss * share)
        return loss.detach()

    def _update(self, batches: int) -> None:
        epoch_steps = math.ceil(batches / self.settings.accumulate)
        now = rate(self.step, epoch_steps * self.settings.epochs, epoch_steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = now
        if self.settings.clip is not None:
            self.engine.clip(self.wrapped, self.optimizer, self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def _finite(self, loss: Tensor, index: int) -> bool:
        """Look at the loss: at every batch where that is free, now and then where it stalls a GPU."""
        if not self._cheap_to_read() and index % 50:
            return True
        return bool(torch.isfinite(loss))

    def _cheap_to_read(self) -> bool:
        return self.engine.device.type == "cpu"

    def _training_mode(self) -> None:
        self.wrapped.train()
        if self.settings.batch_norm == "eval":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _holds(self) -> bool:
        try:
            verify(self.model)
        except HoldError as error:
            self.watcher.warn(str(error))
            return False
        return True

    def _elect(self, epoch: int, mark: Mark | None, *, held: bool) -> None:
        score = self.judge.score(mark) if mark is not None else -float(epoch)  # no split: the last one
        if held and score < self.best_score:
            self.best_epoch, self.best_score, self.best = epoch, score, _snapshot(self.model)

    def _impatient(self, epoch: int) -> bool:
        patience = self.settings.patience
        return patience is not None and epoch - self.best_epoch >= patience and epoch < self.settings.epochs

    def _tell(self, stopped: Stop) -> None:
        kept = f"epoch {self.best_epoch}" if self.best_epoch else "the network as it came"
        if stopped == "diverged":
            self.watcher.warn(
                f"the loss is not finite in epoch {len(self.history) + 1}: training stopped at {kept};"
                " lower --lr, add --warmup or --clip"
            )
        elif not self.best_epoch:
            self.watcher.warn(
                f"no epoch was better than the network as it came, by {self.judge.rule}; lower --lr"
            )
        else:
            self.watcher.note(f"kept {kept} of {len(self.history)}, chosen by {self.judge.rule}")


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@contextmanager
def _memory_advice() -> Iterator[None]:
    """Turn an out-of-memory failure into one line with the remedy."""
    try:
        yield
    except RuntimeError as error:
        words = str(error).lower()
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in words:
            advice = "lower --batch-size, and raise --accumulate by as much to keep the step the same"
            raise KernelsimpError(f"a training batch does not fit into memory; {advice}") from error
        raise
