"""How often a network is right, and what a change of that is worth.

Accuracies and their intervals are in percent, changes in percentage points (pp) after minus before,
losses in nats. Everything about a change is paired: the same images before and after.
"""

import base64
import binascii
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import hypot, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kernelsimp.batch_limit import BatchLimit
from kernelsimp.error_text import short
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.outputs import class_scores
from kernelsimp.memory import is_out_of_memory
from kernelsimp.models.outputs import describe_output
from kernelsimp.records.report import Stage
from kernelsimp.watch import SILENT, Watcher

Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""

TOP5_FROM = 10
"""Top-5 is told where there are at least this many classes."""

Bools = NDArray[np.bool_]
Loader = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Outcome:
    """One pass over labelled images: `correct` (n,), the mean `loss` in nats, top-5 in percent."""

    correct: Bools
    loss: float
    top5: float | None = None

    @property
    def total(self) -> int:
        return int(self.correct.size)

    @property
    def right(self) -> int:
        """How many images are right."""
        return int(self.correct.sum())

    @property
    def top1(self) -> float:
        """Accuracy in percent."""
        return 100 * self.right / self.total


def measure(
    model: nn.Module,
    loader: Loader,
    device: torch.device | str = "cpu",
    watcher: Watcher = SILENT,
    limit: BatchLimit | None = None,
) -> Outcome:
    """Measure a classifier on (images, labels) batches, in evaluation mode, without gradients.

    The model, already on `device`, is left in the mode it was found in. Batches that memory does not do for
    are halved, by `limit` where one is given. Raises `KernelsimpError` where the network refuses the images,
    gives something else than finite (n, classes), or has too few classes.
    """
    correct: list[Tensor] = []
    loss, in_five, classes = 0.0, 0, 0
    for logits, labels in outputs(model, loader, device, limit or BatchLimit(watcher)):
        classes = logits.shape[1]
        correct.append((logits.argmax(1) == labels).cpu())
        loss += float(cross_entropy(logits.double(), labels, reduction="sum"))
        if classes >= TOP5_FROM:
            in_five += int((logits.topk(5, dim=1).indices == labels[:, None]).any(1).sum())
        watcher.step()
    total = sum(len(part) for part in correct)
    if total == 0:
        raise KernelsimpError("no images to measure on; expected at least one batch")
    top5 = 100 * in_five / total if classes >= TOP5_FROM else None
    return Outcome(torch.cat(correct).numpy(), loss / total, top5)


def outputs(
    model: nn.Module,
    loader: Loader,
    device: torch.device | str = "cpu",
    limit: BatchLimit | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (logits (n, classes), labels (n,)) on `device` for each batch; raises as `measure` does."""
    limit = limit or BatchLimit()
    with evaluation_mode(model), torch.no_grad():
        for images, labels in loader:
            here = labels.to(device, non_blocking=True)
            yield logits_within(limit, model, images.to(device, non_blocking=True), here), here


def logits_within(limit: BatchLimit, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return what `checked_logits` does, in as many parts as memory needs; no gradients may be asked for."""
    return torch.cat(limit.in_parts(partial(checked_logits, model), images, labels))


def checked_logits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the network's output for one batch, once it is known to be usable; raises as `measure` does.

    Where memory does not do for it, what torch raised is raised.
    """
    shape = " x ".join(map(str, images.shape[1:]))
    try:
        output = model(images)
    except KernelsimpError:  # it already says what is wrong
        raise
    except Exception as error:  # a network can raise anything: RuntimeError, ValueError, TypeError...
        if is_out_of_memory(error):
            raise
        words = short(error, 200)
        advice = "see --input-size, --crop and --channels"
        raise KernelsimpError(f"the network cannot take images {shape}: {words}; {advice}") from error
    logits = output if isinstance(output, Tensor) else class_scores(output)
    if logits is None or logits.ndim != 2 or len(logits) != len(images):
        found = describe_output(output)
        wanted = f"({len(images)}, classes), one score a class and image"
        wanted += "" if isinstance(output, Tensor) else ", or its name with --output KEY"
        raise KernelsimpError(
            f"the network's output for {len(images)} images {shape} is {found}; expected {wanted}"
        )
    if labels.ndim != 1:
        raise KernelsimpError(f"labels have shape {tuple(labels.shape)}; accuracy takes one class an image")
    if not bool(logits.isfinite().all()):
        raise KernelsimpError(
            f"the network's output for images {shape} holds NaN or Inf; check weights and --std"
        )
    largest = int(labels.max())
    if largest >= logits.shape[1]:
        found = f"the network has {logits.shape[1]} outputs, the data label {largest}"
        raise KernelsimpError(f"{found}; expected labels below {logits.shape[1]}: another --arch or --data")
    return logits


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own mode at the end."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def wilson(correct: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, in percent.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), Wilson 1927. No images: 0 to 100.
    """
    if total == 0:
        return 0.0, 100.0
    p, z2 = correct / total, Z95**2 / total
    middle, half = p + z2 / 2, Z95 * sqrt(p * (1 - p) / total + z2 / (4 * total))
    low, high = (middle - half) / (1 + z2), (middle + half) / (1 + z2)
    return 100 * low if correct else 0.0, 100 * high if correct < total else 100.0


def mcnemar(before: Bools, after: Bools) -> float:
    """Return the exact two-sided p-value that right and wrong swap equally often in both directions.

    Of the images that changed, either direction is Binomial(changed, 1/2): p = 2 P(X <= the rarer count),
    at most 1 (McNemar 1947, exact form). Raises `KernelsimpError` where the lengths differ.
    """
    _, gained, lost, _ = _table(before, after)
    if gained + lost == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def paired_interval(before: Bools, after: Bools) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy change, after minus before, in percentage points.

    Newcombe's method 10 for paired proportions (Statistics in Medicine 17, 1998, 2635-2650): the two
    Wilson intervals joined by the phi coefficient. Raises `KernelsimpError` where the lengths differ.
    """
    both, gained, lost, neither = _table(before, after)
    total = both + gained + lost + neither
    if total == 0:
        return -100.0, 100.0
    p1, p2 = (both + gained) / total, (both + lost) / total
    low1, high1 = (bound / 100 for bound in wilson(both + gained, total))
    low2, high2 = (bound / 100 for bound in wilson(both + lost, total))
    phi = _phi(both, gained, lost, neither)
    down = _join_outcomes(p1 - low1, high2 - p2, phi)
    up = _join_outcomes(high1 - p1, p2 - low2, phi)
    return 100 * (p1 - p2 - down), 100 * (p1 - p2 + up)


def independent_interval(before: tuple[int, int], after: tuple[int, int]) -> tuple[float, float]:
    """Return the 95 % interval of the change in accuracy between different images, in percentage points.

    Each is (right, total). Newcombe's method 10 for independent proportions (Statistics in Medicine 17,
    1998, 873-890): the two Wilson intervals, squared and added.

    >>> [round(bound, 2) for bound in independent_interval((48, 80), (56, 70))]
    [5.24, 33.39]
    """
    (low1, high1), (low2, high2) = (wilson(*counts) for counts in (before, after))
    p1, p2 = (100 * right / total for right, total in (before, after))
    return p2 - p1 - hypot(p2 - low2, high1 - p1), p2 - p1 + hypot(high2 - p2, p1 - low1)


def _join_outcomes(first: float, second: float, phi: float) -> float:
    return sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))


def _phi(both: int, gained: int, lost: int, neither: int) -> float:
    """Return the correlation of the two outcomes, corrected for continuity where it is positive."""
    product = (both + gained) * (neither + lost) * (both + lost) * (neither + gained)
    if product == 0:
        return 0.0
    excess: float = both * neither - gained * lost
    if excess > 0:
        excess = max(excess - (both + gained + lost + neither) / 2, 0)
    return excess / sqrt(product)


def _table(before: Bools, after: Bools) -> tuple[int, int, int, int]:
    """Return how many are right in both, only after (gained), only before (lost), in neither."""
    if before.shape != after.shape:
        found = f"{before.size} images before, {after.size} after"
        raise KernelsimpError(f"{found}; expected the same images: a paired test needs pairs")
    return (
        int((before & after).sum()),
        int((~before & after).sum()),
        int((before & ~after).sum()),
        int((~before & ~after).sum()),
    )


def stage(name: str, outcome: Outcome, split: str = "test") -> Stage:
    """Return the record of one measurement, with the outcome of each image packed into bits."""
    bits = base64.b64encode(np.packbits(outcome.correct).tobytes()).decode()
    interval = wilson(outcome.right, outcome.total)
    return Stage(name, outcome.top1, outcome.right, outcome.total, outcome.loss, interval, bits, split)


def correct_from(record: Stage) -> Bools:
    """Return the outcome of each image (total,) from a record; raises `KernelsimpError` for damaged bits."""
    try:
        packed = np.frombuffer(base64.b64decode(record.correct_bits, validate=True), dtype=np.uint8)
    except (binascii.Error, ValueError) as error:
        raise KernelsimpError(
            f"stage '{record.stage}': correct_bits is no base64; the report is damaged"
        ) from error
    if packed.size != -(-record.total // 8):
        found = f"correct_bits has {packed.size} bytes for {record.total} images"
        raise KernelsimpError(f"stage '{record.stage}': {found}; the report is damaged")
    correct = np.unpackbits(packed, count=record.total).astype(np.bool_)
    if int(correct.sum()) != record.correct:
        found = f"correct_bits has {int(correct.sum())} right, the stage says {record.correct}"
        raise KernelsimpError(f"stage '{record.stage}': {found}; the report is damaged")
    return correct
