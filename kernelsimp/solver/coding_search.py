"""Search for the price of a bit that just keeps a budget, on what is measured.

The model of the loss breaks down over depth, so a price means something else in every network: the budget is
held against the coded network itself, on images that nothing was fitted to. What is measured goes about as
the price, so the search is by secants in logarithms between bounds that close.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.rounding import COARSE
from kernelsimp.models.stages import Stage, absorb_norms, layer_modules, matrix_of, stages_of
from kernelsimp.models.stored_order import tensor_name
from kernelsimp.shelf import count_images
from kernelsimp.solver.coding_kernels import parts_menus
from kernelsimp.solver.coding_moments import FitMoments, Seen, fit_moments, reading_of
from kernelsimp.solver.coding_walk import Coding, Ground
from kernelsimp.solver.output_metric import output_metrics
from kernelsimp.watch import SILENT, Watcher

ENOUGH, MOST_TRIALS = 5, 9
"""Trials once there is one on either side of the budget, and where there is none."""

CLOSE = 0.07
"""The search ends where the bounds of the price are this close, as a share."""

LOOSE = 1e-4
"""Norms are absorbed where the network's output moves by less than this share."""


def prepare_ground(
    model: nn.Module,
    images: Sequence[Tensor],
    dtypes: Mapping[str, torch.dtype],
    seed: int = 0,
    watcher: Watcher = SILENT,
) -> Ground:
    """Return what coding stands on: norms absorbed where that is exact, G measured, repeated layers read.

    `model` is in float32 and in evaluation mode, and is left as it is.
    """
    first = images[0]
    stages = stages_of(model, first[:2])
    absorbed, norms = _absorbed(model, stages, first[:8])
    stages = tuple(replace(item, addition=None) if _blocked(item, norms) else item for item in stages)
    metrics = output_metrics(absorbed, images, seed, watcher)
    reused = _reused(absorbed, stages, images, seed)
    places, changed = _biases(absorbed, stages, norms), _changed(model, absorbed)
    menus = parts_menus(absorbed)
    return Ground(absorbed, stages, places, dtypes, metrics, reused, images, seed, changed, menus)


def _changed(model: nn.Module, absorbed: nn.Module) -> frozenset[str]:
    old, new = model.state_dict(), absorbed.state_dict()
    return frozenset(name for name, item in new.items() if not torch.equal(item, old[name]))


def _blocked(stage: Stage, norms: Mapping[str, str]) -> bool:
    return stage.norm is not None and stage.name not in norms


@torch.no_grad()
def _absorbed(
    model: nn.Module, stages: tuple[Stage, ...], images: Tensor
) -> tuple[nn.Module, Mapping[str, str]]:
    """Return the network with its norms absorbed, and {layer: norm}; as it was, where its output moves."""
    absorbed = copy.deepcopy(model)
    norms = absorb_norms(absorbed, stages)
    old, new = (_flat(item(images.clone())) for item in (model, absorbed))
    if not bool((new - old).norm() <= LOOSE * old.norm()):
        return model, {}
    return absorbed, norms


def _flat(output: object) -> Tensor:
    from kernelsimp.solver.fisher import output_tensors

    return torch.cat([item.double().flatten() for item in output_tensors(output)])


def _biases(model: nn.Module, stages: tuple[Stage, ...], norms: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each layer's bias: its norm's, where that is absorbed, or its own."""
    found = {}
    layers = layer_modules(model)
    for stage in stages:
        own = tensor_name(stage.name).removesuffix("weight") + "bias"
        if stage.name in norms:
            found[stage.name] = f"{norms[stage.name]}.bias"
        elif layers[stage.name][0].bias is not None:
            found[stage.name] = own
    return found


@torch.no_grad()
def _reused(
    model: nn.Module, stages: tuple[Stage, ...], images: Sequence[Tensor], seed: int
) -> dict[str, FitMoments]:
    """Return the moments of the layers that are called several times, over all calls."""
    layers, found = layer_modules(model), {}
    for stage in stages:
        if stage.calls == 1:
            continue
        module, seen = layers[stage.name][0], _calls(model, layers[stage.name], images)
        first = next(seen)
        calls = count_images(images) * stage.calls
        reading = reading_of(module, first[0], calls)
        taken = islice(chain([first], seen), math.ceil(reading.images / len(first[0])))
        found[stage.name] = fit_moments(module, taken, reading.share, seed)
    return found


def _calls(model: nn.Module, layer: list[nn.Module], images: Sequence[Tensor]) -> Iterator[Seen]:
    """Yield the input of every call of a layer, a batch at a time."""
    for batch in images:
        seen: list[Seen] = []
        handles = [
            module.register_forward_pre_hook(
                lambda _, inputs, seen=seen: seen.append((inputs[0].clone(), None))
            )
            for module in layer
        ]
        try:
            model(batch.clone())
        finally:
            for handle in handles:
                handle.remove()
        yield from seen


@dataclass(frozen=True, eq=False)
class CodingTrial:
    """One price: what it made, its `size` in bytes, and what the budget is held against, `spent`."""

    coding: Coding
    size: int
    spent: float


@dataclass(frozen=True, eq=False)
class CodingFound:
    """The smallest trial within the budget, or the one nearest to it; `tried`: (price, size, spent)."""

    best: CodingTrial
    met: bool
    tried: tuple[tuple[float, int, float], ...]


@dataclass(frozen=True)
class Budget:
    """What a coding may cost: `limit` in what is measured, or `by_size` in bytes; `first` is tried first."""

    limit: float
    first: float
    by_size: bool = False


def search_price(
    make: Callable[[float], Coding],
    measure: Callable[[Coding], tuple[int, float]],
    budget: Budget,
    watcher: Watcher = SILENT,
) -> CodingFound:
    """Return the coding of least size within the budget; one by size, the coding of least price.

    `make` codes at a price; `measure` gives (bytes, spent); spent rises with the price, bytes fall. Raises
    `KernelsimpError` for a budget that is no number of at least 0.
    """
    limit, by_size = budget.limit, budget.by_size
    if not 0 <= limit < math.inf:
        raise KernelsimpError(f"a budget of {limit:g}: expected a number from 0 up")
    price, low, high = budget.first, 0.0, math.inf
    best: CodingTrial | None = None
    tried: list[tuple[float, int, float]] = []
    while len(tried) < MOST_TRIALS and (high - low > CLOSE * low):
        if len(tried) >= ENOUGH and low > 0 and high < math.inf:
            break
        coding = make(price)
        size, spent = measure(coding)
        trial = CodingTrial(coding, size, size if by_size else spent)
        tried.append((price, size, spent))
        told = f"of {limit:,.0f}" if by_size else f"spent {spent:.4g} of {limit:g}"
        watcher.note(f"price {price:.2g} a bit: {size:,} bytes, {told}")
        if best is None or _better(trial, best, budget):
            best = trial
        within = trial.spent <= limit
        low, high = (max(low, price), high) if within != by_size else (low, min(high, price))
        price = _next_price((price, trial.spent), (low, high), budget)
    assert best is not None
    return CodingFound(best, best.spent <= limit, tuple(tried))


def _better(trial: CodingTrial, best: CodingTrial, budget: Budget) -> bool:
    if (trial.spent <= budget.limit) != (best.spent <= budget.limit):
        return trial.spent <= budget.limit
    if trial.spent > budget.limit:
        return trial.spent < best.spent
    return trial.size > best.size if budget.by_size else trial.size < best.size


def first_price(ground: Ground) -> float:
    """Return a price at which a classifier's KL is often about a hundredth of a nat."""
    cells = sum(matrix_of(items[0]).numel() for items in layer_modules(ground.model).values())
    return 0.04 * 2 * math.log(2) / (cells * COARSE**2)


def _next_price(last: tuple[float, float], bounds: tuple[float, float], budget: Budget) -> float:
    """Return the next price, in logarithms: on a line of slope 1 (of bytes: -1/2), well inside the bounds."""
    (low, high), (price, spent) = bounds, last
    ratio = budget.limit / spent if 0 < spent < math.inf else 4.0
    ratio = (spent / max(budget.limit, 1)) ** 2 if budget.by_size else ratio
    guess = price * min(max(ratio, 1 / 256), 256.0)
    if low == 0:
        return min(guess, high / 1.5)
    if high == math.inf:
        return max(guess, low * 1.5)
    inner = 0.2 * math.log(high / low)
    return math.exp(min(max(math.log(guess), math.log(low) + inner), math.log(high) - inner))
