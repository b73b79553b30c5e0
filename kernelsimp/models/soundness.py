"""Weights that cannot be right: NaN, infinities, and single numbers far beyond their layer.

Formats without checksums load a flipped bit silently; this is where it shows.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels

OUTLIER = 1e4
"""A weight this many times its layer's RMS is taken for a flipped bit."""


def check_weights(bank: KernelBank) -> None:
    """Raise `KernelsimpError` at the first layer whose weights are NaN, infinite or absurdly large."""
    for layer in bank.layers:
        sentence = damage(layer)
        if sentence:
            raise KernelsimpError(f"{sentence}; repair the checkpoint or pass --skip-layers {layer.name}")


def damage(layer: LayerKernels) -> str | None:
    """Say what is wrong with a layer's weights, naming the kernel (out, in); None if they are sound.

    A weight is absurd when it exceeds 1e4 times the RMS of its layer, taken with the largest 0.01 % (at
    least one weight) cut down to the next, so that a wild weight cannot raise its own yardstick.
    """
    flat = layer.kernels.reshape(-1)
    largest, energy = 0.0, 0.0
    for start, part in _parts(flat):
        top = float(torch.linalg.vector_norm(part, ord=float("inf")))
        if not math.isfinite(top):
            at = int((~part.isfinite()).to(torch.uint8).argmax())
            what = "NaN" if bool(part[at].isnan()) else "an infinite weight"
            return f"{layer.name}: kernel {_kernel_at(layer, start + at)} holds {what}"
        largest = max(largest, top)
        energy += float(part.double().square().sum())
    few = max(1, flat.numel() // 10_000)
    # what is left when the few largest are taken out already tells nearly every sound layer from a wild one
    if energy - few * largest**2 > flat.numel() * (largest / OUTLIER) ** 2 or flat.numel() <= few:
        return None
    return _outlier(layer, flat, few)


def _outlier(layer: LayerKernels, flat: Tensor, few: int) -> str | None:
    """Compare the largest weight with the RMS in which the `few` largest count as the next one."""
    sizes, places = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    for start, part in _parts(flat):
        top = part.abs().topk(min(few + 1, part.numel()))
        best = torch.cat([sizes.to(part.dtype), top.values]).topk(min(few + 1, len(sizes) + len(top.values)))
        places = torch.cat([places, top.indices + start])[best.indices]
        sizes = best.values
    next_one = float(sizes[-1])
    energy = sum(float(part.abs().clamp(max=next_one).double().square().sum()) for _, part in _parts(flat))
    rms, largest = math.sqrt(energy / flat.numel()), float(sizes[0])
    if not 0 < OUTLIER * rms < largest:
        return None
    kernel = _kernel_at(layer, int(places[0]))
    return f"{layer.name}: kernel {kernel} holds a weight of size {largest:.3g}, its layer's RMS is {rms:.3g}"


def _parts(flat: Tensor, size: int = 1 << 20) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, a part) in float32, or float64 if stored so; a layer may not fit in memory twice."""
    wide = flat.dtype == torch.float64
    for start in range(0, flat.numel(), size):
        yield start, flat[start : start + size].to(torch.float64 if wide else torch.float32)


def _kernel_at(layer: LayerKernels, position: int) -> tuple[int, int]:
    """Return (out, in) of the kernel that holds a position of the flattened layer."""
    return divmod(position // math.prod(layer.grid), layer.kernels.shape[1])
