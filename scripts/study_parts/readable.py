"""Explainability and decomposability: what names explain of channels, and what groups of channels do."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kernelsimp.analysis.examine import examine
from kernelsimp.analysis.selectivity import measure_selectivity
from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.kernels.families import SEVENTEEN
from kernelsimp.models.layers import bank_from_model, conv_modules
from kernelsimp.records.selectivity import LayerSelectivity
from study_parts.ground import Study, evenly
from study_parts.statistics import Floats, Measured

Labels = NDArray[np.int64]

Compared = dict[str, dict[str, tuple[Floats, float]]]
"""By layer, by arm: each group's concentration, and the layer's information."""

SHARE = 0.5

DEALT = 2
"""Random groupings beside that by families."""

LAYERS = 4
"""Layers of a network that are taken apart, evenly spread over its depth."""

WORDS: dict[str, tuple[Callable[[LayerSelectivity], float], bool]] = {
    "share of variance that names explain": (lambda layer: layer.explained, False),
    "the same over chance": (lambda layer: layer.explained - layer.explained_by_chance, False),
    "cosine of a channel's top patches": (lambda layer: layer.alike, False),
    "the same over dealt patches": (lambda layer: layer.alike - layer.alike_mixed, False),
    "bits of a kernel's name": (lambda layer: layer.bits, True),
}
"""What is told of a layer, and whether less of it is better."""


def selectivity(study: Study, draws: int) -> list[Measured]:
    """Measure what named kernels explain in every arm, at half of the degrees of freedom."""
    arms: dict[str, dict[str, list[Floats]]] = {words: {} for words in WORDS}
    for seed in range(draws):
        images = [images for images, _ in study.drawn(seed)]
        for arm in study.arms:
            model = study.arm(seed, SHARE, arm)
            layers = measure_selectivity(model, bank_from_model(model), images, seed=seed).layers
            for words, (figure, _) in WORDS.items():
                mean = np.mean([figure(layer) for layer in layers], keepdims=True)
                arms[words].setdefault(arm, []).append(mean)
    return [Measured(words, arms[words], less) for words, (_, less) in WORDS.items()]


# --- groups of channels


def families_of_channels(layer: LayerKernels) -> Labels:
    """Return which of the linear families each output channel is nearest to, (out,).

    A kernel's energy in a family of dimension q is a Beta variable where the kernel is white: how many
    standard deviations it lies above the mean q / cells is comparable over families. A channel takes the
    mean of its kernels, weighted by their energy.
    """
    examined = examine(layer, SEVENTEEN)
    mean = examined.dims / examined.cells
    spread = np.sqrt(mean * (1 - mean) / (examined.cells / 2 + 1))
    above = ((1 - np.square(examined.residual.astype(float))) - mean) / spread
    outputs = layer.kernels.shape[0]
    energy = layer.kernels.double().flatten(2).square().sum(2).numpy()
    energy /= np.maximum(energy.sum(1, keepdims=True), 1e-300)
    weighted = above.reshape(outputs, -1, len(mean)) * energy[:, :, None]
    return np.asarray(weighted.sum(1).argmax(1))


def decomposition(study: Study, draws: int) -> list[Measured]:
    """Ablate groups of channels of one family, and random groups as large, and look at each class's loss."""
    concentration: dict[str, list[Floats]] = {"families": [], "random groups": []}
    shared: dict[str, list[Floats]] = {"families": [], "random groups": []}
    over: dict[str, list[Floats]] = {arm: [] for arm in study.arms}
    counts = (0, 0)
    for seed in range(draws):
        found = Ablation(study, seed, "original").compare_layers()
        for arm in concentration:
            concentration[arm].append(np.concatenate([pair[arm][0] for pair in found.values()]))
            shared[arm].append(np.array([np.mean([pair[arm][1] for pair in found.values()])]))
        counts = len(concentration["families"][-1]), len(found)
        compared = {arm: Ablation(study, seed, arm).compare_layers() for arm in study.arms[1:]}
        for arm, layers in {study.arms[0]: found, **compared}.items():
            over[arm].append(np.array([information_over_chance(layers, len(layers_of(study.model)))]))
    fact = f"{counts[0]} groups in {counts[1]} layers"
    return [
        Measured("concentration of damage on classes", concentration, less=False, fact=fact),
        Measured("information between group and class, bits", shared, less=False, fact=fact),
        Measured("that information over random groups, bits", over, less=False),
    ]


def information_over_chance(found: Compared, layers: int) -> float:
    """Return the information that families have over random groups, a mean over layers, 0 of one group."""
    return sum(pair["families"][1] - pair["random groups"][1] for pair in found.values()) / layers


def layers_of(model: nn.Module) -> list[LayerKernels]:
    """Return layers larger than 1x1, evenly spread over the depth."""
    spatial = list(bank_from_model(model).spatial)
    return [spatial[place] for place in evenly(len(spatial), LAYERS)]


class Ablation:
    """The test images of one draw, and what each class loses in one arm's network without some channels."""

    def __init__(self, study: Study, seed: int, arm: str) -> None:
        self.model, self.dice = study.arm(seed, SHARE, arm), np.random.default_rng(seed)
        images, labels = zip(*study.drawn(seed), strict=True)
        self.images, self.labels = torch.cat(images), torch.cat(labels)
        self.before = self._losses()

    def compare_layers(self) -> Compared:
        """Return by layer what it comes to where there are groups."""
        found = {layer.name: self.compare(layer) for layer in layers_of(self.model)}
        return {name: pair for name, pair in found.items() if pair is not None}

    @torch.no_grad()
    def _losses(self) -> Tensor:
        return cross_entropy(self.model(self.images).double(), self.labels, reduction="none")

    def compare(self, layer: LayerKernels) -> dict[str, tuple[Floats, float]] | None:
        """Return by arm each group's concentration and the layer's information; None where there is one."""
        labels = families_of_channels(layer)
        kept = [label for label in np.unique(labels) if 2 <= int((labels == label).sum()) < len(labels)]
        if len(kept) < 2:
            return None
        dealt = [self._judged(layer.name, self.dice.permutation(labels), kept) for _ in range(DEALT)]
        chance = (np.mean([item[0] for item in dealt], axis=0), float(np.mean([item[1] for item in dealt])))
        return {"families": self._judged(layer.name, labels, kept), "random groups": chance}

    def _judged(self, name: str, labels: Labels, kept: Sequence[int]) -> tuple[Floats, float]:
        damage = np.stack([self._damage(name, np.flatnonzero(labels == label)) for label in kept])
        return concentration_of(damage), information_of(damage)

    def _damage(self, name: str, channels: Labels) -> Floats:
        """Return by how much each class's mean loss rises, (classes,), where channels say their mean."""
        with levelled(conv_modules(self.model)[name], channels):
            rise = (self._losses() - self.before).numpy()
        classes = self.labels.numpy()
        totals = np.bincount(classes, weights=rise)
        damage: Floats = np.maximum(totals, 0) / np.maximum(np.bincount(classes), 1)
        return damage


@contextmanager
def levelled(module: nn.Module, channels: Labels) -> Iterator[None]:
    """Within the block, some channels of a layer say their mean over images and positions."""
    places = torch.from_numpy(channels)

    def level(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        made = output.clone()
        made[:, places] = output[:, places].mean((0, 2, 3), keepdim=True)
        return made

    handle = module.register_forward_hook(level)
    try:
        yield
    finally:
        handle.remove()


def concentration_of(damage: Floats) -> Floats:
    """Return Herfindahl's index of each group's damage (groups, classes): 1 / classes where all suffer alike.

    >>> concentration_of(np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])).tolist()
    [0.5, 1.0, 0.5]
    """
    level = np.full_like(damage, 1 / damage.shape[1])
    total = damage.sum(1, keepdims=True)
    shares = np.divide(damage, total, out=level, where=total > 0)
    return np.asarray(np.square(shares).sum(1))


def information_of(damage: Floats) -> float:
    """Return the mutual information of group and class where damage (groups, classes) is their joint weight.

    In bits: how far the matrix is from what its margins say, as a modularity is.

    >>> information_of(np.eye(2)), information_of(np.ones((2, 2)))
    (1.0, 0.0)
    """
    total = damage.sum()
    if total <= 0:
        return 0.0
    joint = damage / total
    margins = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log2(joint[there] / margins[there])).sum())
