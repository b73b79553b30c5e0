"""What named kernels explain of a channel's answers, and how alike the patches are that drive it most.

Both stand beside chance: the same kernels with their cells shuffled, the same patches dealt at random.

Two passes over the images: the first sums each channel's variance, with and without what is named, and notes
where its largest answers are; the second looks at the patches there. Neither keeps an image or an activation.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from kernelsimp.analysis.examine import NONE, Examined, examine
from kernelsimp.analysis.patches import TopPatches, Window, alike
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.models.hooks import Call, calls_of
from kernelsimp.records.selectivity import LayerSelectivity, Selectivity
from kernelsimp.watch import SILENT, Watcher

TOP = 64
"""Patches a channel: those of its largest answers, one an image at most."""


@dataclass(frozen=True, eq=False)
class Named:
    """A layer's kernels in convolutions: `rest` (out, in / groups, kh, kw) is what no name says."""

    weight: Tensor
    rest: Tensor
    share: float
    families: tuple[int, ...]

    @property
    def words(self) -> int:
        """How many different families there are."""
        return len(set(self.families) - {NONE})

    @property
    def bits(self) -> float:
        """The entropy of the families in bits a kernel."""
        total = len(self.families)
        return sum(count / total * math.log2(total / count) for count in Counter(self.families).values())


def measure_selectivity(
    model: nn.Module,
    bank: KernelBank,
    images: Sequence[Tensor],
    tolerance: float = 0.1,
    seed: int = 0,
    watcher: Watcher = SILENT,
) -> Selectivity:
    """Measure every plain two-dimensional convolution larger than 1x1 that the images reach.

    `images` are batches of the network's input on its device, and are gone through twice. A layer's answer
    is its output before anything follows it, its bias left out.
    """
    layers = {layer.name: _Layer(layer, tolerance, seed) for layer in bank.spatial if len(layer.grid) == 2}
    skipped = {layer.name: "not of two dimensions" for layer in bank.spatial if layer.name not in layers}
    count = sum(len(batch) for batch in images)
    watcher.start("explaining what channels answer", 2 * count)
    first = 0
    for batch in images:
        with torch.no_grad(), calls_of(model, partial(_see, layers, first)):
            model(batch)
        first += len(batch)
        watcher.step(len(batch))
    skipped |= {name: layer.why for name, layer in layers.items() if layer.why}
    seen = {name: layer for name, layer in layers.items() if not layer.why}
    sums = alike({name: layer.top for name, layer in seen.items()}, images, seed, watcher)
    made = tuple(layer.result(*sums[name]) for name, layer in seen.items())
    return Selectivity(made, count, tolerance, min(TOP, count), tuple(skipped.items()))


def _see(layers: Mapping[str, "_Layer"], first: int, name: str, call: Call) -> None:
    if name in layers:
        layers[name].see(call, first)


class _Layer:
    """Sums of one layer over images."""

    def __init__(self, layer: LayerKernels, tolerance: float, seed: int) -> None:
        self.layer = layer
        self.own = name_kernels(layer, tolerance)
        self.chance = name_kernels(shuffled(layer, seed), tolerance)
        self.why = "no image reached it"
        self.top = TopPatches(layer.kernels.shape[0], TOP)
        self.spread = [_Variance() for _ in range(4)]

    def see(self, call: Call, first: int) -> None:
        """Add one call: its input (n, in, h, w), whose first image has number `first`."""
        module, inputs = call
        if type(module) is not nn.Conv2d:
            self.why = f"a {type(module).__name__}, not a plain convolution"
            return
        self.why = ""
        weights = (self.own.weight, self.own.rest, self.chance.weight, self.chance.rest)
        for place, (weight, spread) in enumerate(zip(weights, self.spread, strict=True)):
            answer = module._conv_forward(inputs, weight.to(inputs), None)
            spread.add(answer)
            if place == 0:
                self.top.add(answer, first, Window.of(module, inputs.shape[-2:]))

    def result(self, similar: float, mixed: float) -> LayerSelectivity:
        whole, rest, chance, chance_rest = (item.variance for item in self.spread)
        return LayerSelectivity(
            self.layer.name,
            self.layer.kind,
            self.layer.kernels.shape[0],
            self.layer.count,
            self.own.share,
            self.own.words,
            self.own.bits,
            explained(whole, rest),
            self.chance.share,
            explained(chance, chance_rest),
            similar,
            mixed,
        )


class _Variance:
    """Sums of a channel's answers (n, out, h, w), in float64."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, answer: Tensor) -> None:
        self.count += answer.shape[0] * answer[0, 0].numel()
        self.sum = self.sum + answer.double().sum((0, 2, 3)).cpu()
        self.squares = self.squares + answer.double().square().sum((0, 2, 3)).cpu()

    @property
    def variance(self) -> Tensor:
        mean = self.sum / self.count
        return (self.squares / self.count - mean.square()).clamp_min(0)


def explained(whole: Tensor, rest: Tensor) -> float:
    """Return the mean over channels that vary of 1 - rest / whole; what is named can make it worse than 0.

    >>> explained(torch.tensor([2.0, 0.0]), torch.tensor([0.5, 0.0]))
    0.75
    """
    varies = whole > 1e-12 * whole.max()
    return float((1 - rest[varies] / whole[varies]).mean()) if bool(varies.any()) else 0.0


def name_kernels(layer: LayerKernels, tolerance: float) -> Named:
    """Return what a layer's kernels are named, each by its simplest linear family within the tolerance."""
    examined = examine(layer)
    best = examined.best(tolerance)
    live = ~examined.dead
    share = float((best[live] != NONE).mean()) if live.any() else 0.0
    rest = layer.kernels - projected(examined, best.tolist()).reshape(layer.kernels.shape)
    return Named(layer.kernels, rest, share, tuple(best[live].tolist()))


def projected(examined: Examined, best: Sequence[int]) -> Tensor:
    """Return each kernel (n, kh, kw) projected onto its family, zero where it has none."""
    flat = examined.layer.kernels.reshape(-1, *examined.layer.grid)
    made, families = torch.zeros_like(flat), torch.tensor(best)
    for place in set(best) - {NONE}:
        here = families == place
        made[here] = examined.families[place].subspace.project(flat[here].double()).to(flat)
    return made


def shuffled(layer: LayerKernels, seed: int) -> LayerKernels:
    """Return the layer with the cells of each kernel in an order of its own: as large, and of no shape."""
    flat = layer.kernels.flatten(2)
    order = torch.rand(flat.shape, generator=torch.Generator().manual_seed(seed)).argsort(dim=2)
    return replace(layer, kernels=flat.gather(2, order).reshape(layer.kernels.shape))
