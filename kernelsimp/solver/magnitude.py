"""Pruning by magnitude: the smallest weights, kernels or filters become zero, and nothing else changes.

The baseline beside simplifying. Only kernels larger than 1x1 are pruned, so that a share of degrees of
freedom means the same as for a plan of families. Amounts are shares of the cells that may be pruned.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.kernels import masks
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.families import ZERO
from kernelsimp.records.plan import FREE, LayerPlan, Plan
from kernelsimp.settings import PlanSettings, PruneSettings
from kernelsimp.solver.candidates import FREE_NAME, chosen_layers
from kernelsimp.solver.coefficient_bits import bits_of_layers

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MOST_STRUCTURES = 32_767
"""A plan names structures by 16-bit numbers."""

GRANULARITIES: dict[str, Callable[[Floats], Floats]] = {
    "weights": lambda size: size,
    "kernels": lambda size: size.mean(2, keepdims=True),
    "filters": lambda size: size.mean((1, 2), keepdims=True),
}
"""What is removed as one, as the score of each unit from |w| (out, in / groups, cells): the mean |w| in it
(Li et al. 2017 for filters), so that units of unlike sizes compare."""

SCOPES = ("global", "layer")
REWINDS = ("lr", "none")


def check_pruning(settings: PruneSettings) -> None:
    """Raise `KernelsimpError` for the first setting that makes no sense."""
    for name, known in (("granularity", GRANULARITIES), ("scope", SCOPES), ("rewind", REWINDS)):
        value = getattr(settings, name)
        if value not in known:
            raise KernelsimpError(f"--{name} is '{value}'{did_you_mean(value, known)}")
    if settings.iterations < 1:
        raise KernelsimpError(f"--iterations is {settings.iterations}; expected 1 or more")
    for name in ("amount", "dof"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < 1:
            raise KernelsimpError(f"--{name} is {value:g}; expected a number between 0 and 1")


def shares_left(bank: KernelBank, settings: PruneSettings) -> tuple[float, ...]:
    """Return the share of the prunable cells that is left after each iteration.

    Every iteration removes the same share of what is left: `amount` of it, or what reaches `dof` in all.
    Raises `KernelsimpError` for a glob that matches no layer, and where layers that stay as they are alone
    exceed `dof`.
    """
    steps, chosen = range(1, settings.iterations + 1), prunable(bank, settings)
    if settings.dof is None:
        return tuple((1 - settings.amount) ** step for step in steps)
    every = sum(_cells(layer) for layer in bank.spatial)
    open_to = sum(_cells(layer) for layer in chosen)
    target = (settings.dof * every - (every - open_to)) / max(open_to, 1)
    if target <= 0:
        least = (every - open_to) / every
        raise KernelsimpError(
            f"--dof {settings.dof:g} is out of reach: the other layers are {least:.3f} of all"
        )
    return tuple(target ** (step / settings.iterations) for step in steps)


def prunable(bank: KernelBank, settings: PruneSettings) -> tuple[LayerKernels, ...]:
    """Return the layers that may be pruned; raises `KernelsimpError` for a glob that matches none."""
    words = PlanSettings(
        layers=settings.layers, skip_layers=settings.skip_layers, keep_first=settings.keep_first
    )
    names = chosen_layers(bank, words)
    return tuple(layer for layer in bank.spatial if layer.name in names)


def magnitude_plan(
    bank: KernelBank, settings: PruneSettings, share: float, origin: KernelBank | None = None
) -> Plan:
    """Return the plan that leaves `share` of the prunable cells, the largest by magnitude.

    Units are removed from the smallest on, until the next would leave less than `share`; every layer keeps
    its largest unit. What is zero already is removed first, so later iterations only add. Residuals are
    against the kernels of `origin`, or of `bank`.
    """
    layers, origin = prunable(bank, settings), origin or bank
    sizes = [_magnitudes(layer) for layer in layers]
    kept = dict(zip([layer.name for layer in layers], _kept_cells(sizes, settings, share), strict=True))
    names = _Names()
    choices = [_choice(layer, kept.get(layer.name), names) for layer in bank.spatial]
    structures = names.structures
    rule = {
        "rule": "magnitude",
        "granularity": settings.granularity,
        "scope": settings.scope,
        "share": share,
    }
    dims = {name: name.removeprefix(masks.PREFIX).count("1") for name in structures if name != FREE_NAME}
    made = (
        replace(
            LayerPlan.free(before, structures, dims),
            choice=choice,
            residual=_residual(before, kept.get(before.name)),
        )
        for before, choice in zip(origin.spatial, choices, strict=True)
    )
    plan = Plan(structures, tuple(made), rule, coefficient_bits=bits_of_layers(origin.spatial))
    return replace(plan, choice_bits=plan.entropy_bits())


def _kept_cells(sizes: Sequence[Floats], settings: PruneSettings, share: float) -> list[Bools]:
    """Return which cells of each layer are kept, (out, in / groups, cells)."""
    score = GRANULARITIES[settings.granularity]
    groups = [[place] for place in range(len(sizes))]
    if settings.scope == "global":
        groups = [list(range(len(sizes)))]
    kept: dict[int, Bools] = {}
    for group in groups:
        units = [_guard_largest(score(sizes[place])) for place in group]
        removed = _smallest(units, [sizes[place].size for place in group], share)
        for place, gone in zip(group, removed, strict=True):
            kept[place] = np.broadcast_to(~gone, sizes[place].shape)
    return [kept[place] for place in range(len(sizes))]


def _guard_largest(scores: Floats) -> Floats:
    """Return scores with the largest made infinite: a layer without any unit would cut the network."""
    guarded = scores.copy()
    guarded.flat[int(np.argmax(scores))] = np.inf
    return guarded


def _smallest(units: Sequence[Floats], cells: Sequence[int], share: float) -> list[Bools]:
    """Return which units go: the smallest of all, as many as leave at least `share` of the cells."""
    if not units:
        return []
    scores = np.concatenate([item.reshape(-1) for item in units])
    weight = np.concatenate(
        [np.full(item.size, n // item.size) for item, n in zip(units, cells, strict=True)]
    )
    order = np.argsort(scores, kind="stable")
    spare = sum(cells) - round(share * sum(cells))
    gone = np.zeros(scores.size, dtype=bool)
    gone[order] = (np.cumsum(weight[order]) <= spare) & np.isfinite(scores[order])
    ends = np.cumsum([item.size for item in units])[:-1]
    return [part.reshape(item.shape) for part, item in zip(np.split(gone, ends), units, strict=True)]


class _Names:
    """Numbers structures as they turn up: free, zero, then masks."""

    def __init__(self) -> None:
        self._known = {FREE_NAME: FREE, ZERO: 1}

    def number(self, kept: Bools) -> int:
        """Return the number of one mask (cells,)."""
        name = FREE_NAME if kept.all() else masks.name_of(kept) if kept.any() else ZERO
        return self._known.setdefault(name, len(self._known))

    @property
    def structures(self) -> tuple[str, ...]:
        if len(self._known) > MOST_STRUCTURES:
            found = f"{len(self._known):,} different masks, more than a plan can name ({MOST_STRUCTURES:,})"
            raise KernelsimpError(f"{found}; pass --granularity kernels or filters")
        return tuple(self._known)


def _choice(layer: LayerKernels, kept: Bools | None, names: _Names) -> NDArray[np.int16]:
    """Return the structure of each kernel; `kept` is None where nothing may be pruned."""
    shape = tuple(layer.kernels.shape[:2])
    if kept is None:
        return np.full(shape, FREE, dtype=np.int16)
    different, place = np.unique(kept.reshape(-1, kept.shape[2]), axis=0, return_inverse=True)
    numbers = np.array([names.number(mask) for mask in different], dtype=np.int64)
    return numbers[place.reshape(-1)].astype(np.int16).reshape(shape)


def _residual(before: LayerKernels, kept: Bools | None) -> NDArray[np.float32]:
    """Return ||removed|| / ||w|| of each kernel."""
    sizes = _magnitudes(before)
    gone = np.zeros_like(sizes) if kept is None else np.where(kept, 0, sizes)
    left, whole = np.square(gone).sum(2), np.square(sizes).sum(2)
    ratio = np.divide(left, whole, out=np.zeros_like(whole), where=whole > 0)
    return np.asarray(np.sqrt(ratio), dtype=np.float32)


def _magnitudes(layer: LayerKernels) -> Floats:
    """Return |w| as (out, in / groups, cells) in float64."""
    return np.asarray(layer.kernels.detach().double().abs().flatten(2).cpu().numpy())


def _cells(layer: LayerKernels) -> int:
    return layer.count * math.prod(layer.grid)
