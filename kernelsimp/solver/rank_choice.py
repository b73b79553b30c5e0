"""Which rank every layer gets: the least loss for what a network may cost, at one price for all layers.

Costs are in any one unit, seconds as measured or multiplications; losses in half of the loss's curvature
(Fisher) times squared errors of outputs. A layer that stays whole has no loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernelsimp.float32 import full_float32
from kernelsimp.models.replay import Replay
from kernelsimp.models.thin import Thin
from kernelsimp.shelf import Shelf
from kernelsimp.solver.fisher import Sensitivity
from kernelsimp.solver.layerwise import CalibratedNetwork, layer_weights, moments_now, takes_shift
from kernelsimp.solver.low_rank import LowRank
from kernelsimp.solver.projected_cg import UnsolvableError
from kernelsimp.watch import SILENT, Watcher


@dataclass(frozen=True)
class Rung:
    """One way to run a layer: what it then costs, and how much is lost."""

    way: Thin
    cost: float
    loss: float


@dataclass(frozen=True)
class Ladder:
    """The ranks that a layer may get, and what it costs whole."""

    whole: float
    rungs: tuple[Rung, ...]

    def at(self, price: float) -> Rung | None:
        """Return the rung of least loss + price * cost; None where the layer whole is no dearer."""
        best = min(self.rungs, key=lambda rung: rung.loss + price * rung.cost, default=None)
        return best if best is not None and best.loss + price * best.cost < price * self.whole else None


Ladders = Mapping[str, Ladder]


def choose(ladders: Ladders, price: float) -> dict[str, Rung]:
    """Return the rungs of the layers that do not stay whole at a price of cost, in loss a unit."""
    chosen = {name: ladder.at(price) for name, ladder in ladders.items()}
    return {name: rung for name, rung in chosen.items() if rung is not None}


def cost_of(ladders: Ladders, chosen: Mapping[str, Rung]) -> float:
    """Return what all layers of the ladders cost together."""
    return sum(chosen[name].cost if name in chosen else item.whole for name, item in ladders.items())


def steepest(ladders: Ladders) -> float:
    """Return a price at which every layer is on its cheapest rung."""
    slopes = [0.0]
    for ladder in ladders.values():
        least = min(ladder.rungs, key=lambda rung: rung.cost, default=None)
        others = [(ladder.whole, 0.0), *((rung.cost, rung.loss) for rung in ladder.rungs)]
        if least is not None:
            slopes += [
                (least.loss - loss) / (cost - least.cost) for cost, loss in others if cost > least.cost
            ]
    return 2 * max(slopes) + 1e-300


def choose_for_cost(ladders: Ladders, cost: float) -> dict[str, Rung] | None:
    """Return the choice at the least price whose cost is at most `cost`; None where none is.

    >>> choose_for_cost({"a": Ladder(4.0, (Rung(Thin(1), 1.0, 0.5),))}, 2.0)
    {'a': Rung(way=Thin(rank=1, channels=()), cost=1.0, loss=0.5)}
    """
    high = steepest(ladders)
    if cost_of(ladders, choose(ladders, high)) > cost:
        return None
    low = high * 1e-18
    while high > low * (1 + 1e-9):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if cost_of(ladders, choose(ladders, middle)) <= cost else (middle, high)
    return choose(ladders, high)


def losses_at(
    calibrated: CalibratedNetwork,
    seen: Mapping[str, Sensitivity],
    ranks: Mapping[str, Sequence[int]],
    watcher: Watcher = SILENT,
) -> dict[str, dict[int, float]]:
    """Return what every rank of every layer of `ranks` loses, each layer by itself, the others as they were.

    A layer that cannot be fitted to is left out, with a warning; so is one that is never run. Where memory
    does not do for a batch, all begins again with batches of half the size.
    """
    return calibrated.limit.in_batches(
        lambda images: _losses_at(replace(calibrated, images=images), seen, ranks, watcher), calibrated.images
    )


@full_float32()
def _losses_at(
    calibrated: CalibratedNetwork,
    seen: Mapping[str, Sensitivity],
    ranks: Mapping[str, Sequence[int]],
    watcher: Watcher,
) -> dict[str, dict[int, float]]:
    replay = Replay(
        calibrated.model,
        calibrated.traced,
        calibrated.images,
        Shelf(calibrated.room.kept, calibrated.room.folder),
    )
    layers = {layer.name: layer for layer in calibrated.bank.layers}
    watcher.start("what every rank loses", len(ranks))
    found = {}
    for use in calibrated.traced.uses:
        if use.name not in ranks:
            continue
        layer = layers[use.name]
        moments = moments_now(use, layer, (replay, None), calibrated)
        fisher = fisher_of(seen, use.name, len(layer.kernels))
        item = LowRank(max(ranks[use.name]), tuple(layer.kernels.shape), layer.groups, fisher)
        try:
            assert moments is not None
            original = layer_weights(layer).to(moments.gram.device)
            metric = moments.centred() if takes_shift(calibrated.model, use) else moments
            losses = item.losses(original, metric, ranks[use.name])
            found[use.name] = dict(zip(ranks[use.name], (loss / 2 for loss in losses), strict=True))
        except UnsolvableError as reason:
            watcher.warn(f"{use.name}: {reason}; it stays whole")
        watcher.step()
    return found


def fisher_of(seen: Mapping[str, Sensitivity], name: str, filters: int) -> Tensor:
    """Return how much the loss minds each output of a layer, alike for all where that is not known."""
    return seen[name].fisher if name in seen else torch.ones(filters, dtype=torch.float64)
