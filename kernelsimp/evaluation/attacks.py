"""How a network stands an adversary who may change every pixel a little.

Radii are the largest change of a pixel, in the pixel range 0..1; attacked images stay in 0..1. The
gradient is of the loss on the true label, through normalising, with the network in evaluation mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kernelsimp.data.splits import Split
from kernelsimp.data.transforms import epoch_seed
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import checked_logits, evaluation_mode
from kernelsimp.evaluation.stability import Bench

PGD_STRIDE = 2.5
"""Radii that PGD could walk in all its steps together (Madry et al. 2018)."""


@dataclass(frozen=True)
class Adversarial:
    """Accuracy in percent under one attack within `radius`, pixels in 0..1."""

    method: str
    radius: float
    steps: int
    top1: float


@dataclass(frozen=True, eq=False)
class _Attack:
    """Walk up the loss: `steps` steps of `stride` along the sign of its gradient, inside `radius`."""

    model: nn.Module
    bench: Bench
    radius: float
    steps: int
    stride: float

    def __call__(self, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        low, high = (images - self.radius).clamp_min(0), (images + self.radius).clamp_max(1)
        here = torch.minimum(torch.maximum(start, low), high)
        for _ in range(self.steps):
            here = here.detach().requires_grad_()
            loss = cross_entropy(self.logits(here, labels), labels, reduction="sum")
            (slope,) = torch.autograd.grad(loss, here)
            here = torch.minimum(torch.maximum(here.detach() + self.stride * slope.sign(), low), high)
        return here.detach()

    def logits(self, images: Tensor, labels: Tensor) -> Tensor:
        return checked_logits(self.model, self.bench.preprocess.normalise(images), labels)

    def count_survivors(self, images: Tensor, labels: Tensor, start: Tensor) -> int:
        """Return how many images are still right after the attack."""
        found = self(images, labels, start)
        with torch.no_grad():
            return int((self.logits(found, labels).argmax(1) == labels).sum())


def adversarial(
    model: nn.Module, split: Split, bench: Bench, radii: Sequence[float], steps: int = 10
) -> tuple[Adversarial, ...]:
    """Measure accuracy under FGSM (Goodfellow et al. 2015) and PGD (Madry et al. 2018) within each radius.

    FGSM: one step of `radius`. PGD: `steps` steps from a start drawn for each image from the seed. Raises
    `KernelsimpError` as `measure` does, and for a radius that is not above 0.
    """
    check_attacks(radii, steps)
    rows = []
    for radius in radii:
        fgsm = _Attack(model, bench, radius, 1, radius)
        pgd = _Attack(model, bench, radius, steps, PGD_STRIDE * radius / steps)
        shares = _survival((fgsm, pgd), split)
        rows += [Adversarial("fgsm", radius, 1, shares[0]), Adversarial("pgd", radius, steps, shares[1])]
    return tuple(rows)


def check_attacks(radii: Sequence[float], steps: int) -> None:
    """Raise `KernelsimpError` for a radius that is not above 0, or no step."""
    if steps < 1 or min(radii, default=1) <= 0:
        raise KernelsimpError(
            f"attack of radius {min(radii, default=1):g} and {steps} steps; expected above 0"
        )


def _survival(attacks: tuple[_Attack, _Attack], split: Split) -> list[float]:
    """Return accuracy in percent under FGSM, which starts at the image, and PGD, which starts beside it."""
    fgsm, pgd = attacks
    right, total = [0, 0], 0
    with evaluation_mode(fgsm.model):
        for images, labels in fgsm.bench.raw(split):
            beside = images + pgd.radius * _noise(images, pgd.bench.seed, total)
            for place, (attack, start) in enumerate(((fgsm, images), (pgd, beside))):
                right[place] += sum(pgd.bench.limit.in_parts(attack.count_survivors, images, labels, start))
            total += len(labels)
    if total == 0:
        raise KernelsimpError("no images to measure on; expected at least one batch")
    return [100 * count / total for count in right]


def _noise(images: Tensor, seed: int, first: int) -> Tensor:
    """Return uniform noise in -1..1; that of an image follows from the seed and its place alone."""
    rows = []
    for place in range(first, first + len(images)):
        generator = torch.Generator().manual_seed(epoch_seed(seed, place, "pgd"))
        rows.append(2 * torch.rand(images.shape[1:], generator=generator) - 1)
    return torch.stack(rows).to(images)
