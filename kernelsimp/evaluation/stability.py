"""How a network stands small changes: of its weights and of the image's place; and how sure it is.

Images come in 0..1 before normalising, so that shifts and black borders mean pixels. Every function takes a
`Bench`, which says how to run networks, and returns plain numbers; accuracies are in percent.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, pstdev

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, softmax

from kernelsimp.batch_limit import BatchLimit
from kernelsimp.data.splits import Split
from kernelsimp.data.transforms import Batches, Preprocess, epoch_seed
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome, evaluation_mode, logits_within, measure, outputs

BINS = 15
"""Bins of equal width over confidence, as in Guo et al. 2017."""


@dataclass(frozen=True)
class Bench:
    """How networks are run: the normalising, the device they are on, and the seed of all that is random.

    `limit` says how many images go through at once where memory does not do for `batch_size`.
    """

    preprocess: Preprocess
    device: str = "cpu"
    batch_size: int = 128
    workers: int = 0
    seed: int = 0
    limit: BatchLimit = field(default_factory=BatchLimit)

    def batches(self, split: Split) -> Batches:
        """Return normalised batches of a split in its own order."""
        return Batches(split, self.preprocess, self.batch_size, workers=self.workers)

    def measure(self, model: nn.Module, split: Split) -> Outcome:
        """Measure a network on a split."""
        return measure(model, self.batches(split), self.device, limit=self.limit)

    def raw(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches in 0..1, on the device."""
        for images, labels in Batches(split, Preprocess(), self.batch_size, workers=self.workers):
            yield images.to(self.device), labels.to(self.device)


# --- noise in weights


@dataclass(frozen=True)
class NoiseLevel:
    """Accuracy with noise of `level` times the RMS of each weight tensor: mean and spread of the draws."""

    level: float
    top1: float
    spread: float
    draws: int


class _Noisy(nn.Module):
    """The network with other weights, which are never written into it."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.weights = weights

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = functional_call(self.model, self.weights, (images,))
        return out


def weight_noise(
    model: nn.Module, split: Split, bench: Bench, levels: Sequence[float], draws: int = 3
) -> tuple[NoiseLevel, ...]:
    """Measure accuracy with noise in every weight of two or more axes; the model is not touched.

    w + level * rms(w) * z. z depends on the seed, the draw and the tensor's name, not on its values: two
    networks of one architecture get the same noise. Raises `KernelsimpError` for draws under 1.
    """
    check_draws(draws)
    rows = []
    for level in levels:
        found = []
        for draw in range(draws):
            noisy = _Noisy(model, _perturb_weights(model, level, epoch_seed(bench.seed, draw, "noise")))
            found.append(bench.measure(noisy, split).top1)
        rows.append(NoiseLevel(level, fmean(found), pstdev(found), draws))
    return tuple(rows)


def check_draws(draws: int) -> None:
    """Raise `KernelsimpError` for draws under 1."""
    if draws < 1:
        raise KernelsimpError(f"{draws} draws of weight noise; expected at least 1")


def _perturb_weights(model: nn.Module, level: float, seed: int) -> dict[str, Tensor]:
    weights = {}
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        generator = torch.Generator().manual_seed(epoch_seed(seed, 0, name))
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        rms = weight.detach().float().square().mean().sqrt().to(weight.dtype)
        weights[name] = weight.detach() + level * rms * noise
    return weights


# --- flips and shifts


@dataclass(frozen=True)
class Consistency:
    """Share of images, in percent, whose answer stays the same when the image is changed so.

    `shifts` has (pixels, percent), over the four directions; what moves in is black.
    """

    flip: float
    shifts: tuple[tuple[float, float], ...]


def consistency(model: nn.Module, split: Split, bench: Bench, shifts: Sequence[float]) -> Consistency:
    """Compare the answers on images with those on mirrored and on shifted images.

    Raises `KernelsimpError` as `measure` does, and for a shift that is no whole number of pixels.
    """
    steps = whole_pixels(shifts)
    changes: list[Callable[[Tensor], Tensor]] = [lambda images: images.flip(3)]
    for step in steps:
        for down, right in ((step, 0), (-step, 0), (0, step), (0, -step)):
            changes.append(partial(shift_images, down=down, right=right))
    same = _agreement(model, split, bench, changes)
    rows = tuple((float(step), 100 * fmean(same[1 + 4 * i : 5 + 4 * i])) for i, step in enumerate(steps))
    return Consistency(100 * same[0], rows)


def whole_pixels(shifts: Sequence[float]) -> list[int]:
    """Return shifts as whole pixels; raises `KernelsimpError` for one that is none, or below 1."""
    steps = [int(pixels) for pixels in shifts]
    if any(step < 1 or step != pixels for step, pixels in zip(steps, shifts, strict=True)):
        raise KernelsimpError(f"shifts {', '.join(f'{p:g}' for p in shifts)}; expected whole pixels from 1")
    return steps


def shift_images(images: Tensor, down: int, right: int) -> Tensor:
    """Return images (n, C, H, W) moved down and right by whole pixels, black moving in."""
    height, width = images.shape[2:]
    out = torch.zeros_like(images)
    rows, columns = _overlap(down, height), _overlap(right, width)
    out[:, :, rows[1], columns[1]] = images[:, :, rows[0], columns[0]]
    return out


def _overlap(step: int, side: int) -> tuple[slice, slice]:
    """Return the pixels that stay in the picture: where they were and where they come to lie."""
    step = max(-side, min(side, step))
    return slice(max(0, -step), side - max(0, step)), slice(max(0, step), side - max(0, -step))


def _agreement(
    model: nn.Module, split: Split, bench: Bench, changes: Sequence[Callable[[Tensor], Tensor]]
) -> list[float]:
    """Return for each change the share of images whose answer it leaves as it was."""
    same, total = np.zeros(len(changes)), 0
    with evaluation_mode(model), torch.no_grad():
        for images, labels in bench.raw(split):
            answers = [
                logits_within(bench.limit, model, bench.preprocess.normalise(change(images)), labels).argmax(
                    1
                )
                for change in (lambda unchanged: unchanged, *changes)
            ]
            same += [int((answer == answers[0]).sum()) for answer in answers[1:]]
            total += len(labels)
    if total == 0:
        raise KernelsimpError("no images to measure on; expected at least one batch")
    return [float(count) / total for count in same]


# --- confidence


@dataclass(frozen=True)
class Calibration:
    """How far confidence and accuracy lie apart, in percent; `loss` is the mean cross-entropy in nats."""

    error: float
    confidence: float
    top1: float
    loss: float
    bins: int = BINS


def calibration(model: nn.Module, split: Split, bench: Bench) -> Calibration:
    """Return the expected calibration error: the mean over images of |accuracy - confidence| of their bin.

    Confidence is the largest softmax output; `BINS` bins of equal width (Guo et al. 2017). Raises
    `KernelsimpError` as `measure` does.
    """
    confidence, correct, loss = [], [], 0.0
    for logits, labels in outputs(model, bench.batches(split), bench.device, bench.limit):
        largest = softmax(logits.double(), 1).max(1)
        confidence.append(largest.values.cpu().numpy())
        correct.append((largest.indices == labels).cpu().numpy())
        loss += float(cross_entropy(logits.double(), labels, reduction="sum"))
    if not confidence:
        raise KernelsimpError("no images to measure on; expected at least one batch")
    sure, right = np.concatenate(confidence), np.concatenate(correct)
    error = expected_calibration_error(sure, right)
    return Calibration(error, 100 * float(sure.mean()), 100 * float(right.mean()), loss / right.size)


def expected_calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """Return sum over bins of (n_bin / n) |accuracy - mean confidence|, in percent; (lo, hi] bins."""
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(place, weights=correct - confidence, minlength=BINS)
    return float(100 * np.abs(gaps).sum() / max(confidence.size, 1))
