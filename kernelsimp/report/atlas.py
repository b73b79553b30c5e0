"""What a data set of scans says over networks: shares within the tolerance against chance, by group.

The unit is the network. A group's figure is the mean over networks of each one's own share, its interval
Student's over networks; a network of a million kernels counts as one of a hundred.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Row = Mapping[str, Any]

LEVEL = 0.95
"""What share of intervals holds the mean over such networks."""

DEPTHS = ("first third", "middle third", "last third")


@dataclass(frozen=True)
class Spread:
    """A mean over `count` networks with its interval; None where one network gives none."""

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Group:
    """Layers of one sort, in percent of their live kernels: near a structure, by chance, the excess."""

    name: str
    near: Spread
    chance: Spread
    excess: Spread
    beyond: Spread
    kernels: int


def spread(values: Sequence[float]) -> Spread:
    """Return the mean of networks' figures in percent and its 95 % interval, mean +- t s / sqrt(n).

    The interval is cut where no share and no excess can be: at -100 and 100.

    >>> spread([1.0, 2.0, 3.0]).mean, spread([1.0]).low
    (2.0, None)
    """
    figures = np.asarray(values, dtype=np.float64)
    mean, count = float(figures.mean()), len(figures)
    if count < 2:
        return Spread(mean, None, None, count)
    half = float(student.ppf((1 + LEVEL) / 2, count - 1) * figures.std(ddof=1) / np.sqrt(count))
    return Spread(mean, max(mean - half, -100.0), min(mean + half, 100.0), count)


def layers_of(families: Iterable[Row]) -> list[Row]:
    """Return one row a layer: what is the layer's own is the same in the rows of all its families."""
    return list({(row["sha256"], row["place"]): row for row in families}.values())


def grouped(layers: Iterable[Row], name_of: Callable[[Row], str | None]) -> tuple[Group, ...]:
    """Return a group for each name that layers have, those over most networks first."""
    parts: dict[str, dict[str, list[Row]]] = {}
    for layer in layers:
        name = name_of(layer)
        if name is not None and layer["near_of"]:
            parts.setdefault(name, {}).setdefault(layer["sha256"], []).append(layer)
    groups = [_group(name, list(networks.values())) for name, networks in parts.items()]
    return tuple(sorted(groups, key=lambda group: (-group.near.count, group.name)))


def _group(name: str, networks: list[list[Row]]) -> Group:
    shares = np.array([shares_of(layers) for layers in networks])
    kernels = sum(layer["kernels"] for layers in networks for layer in layers)
    near, chance, excess, beyond = (spread(column) for column in shares.T.tolist())
    return Group(name, near, chance, excess, beyond, kernels)


def shares_of(layers: Iterable[Row]) -> tuple[float, float, float, float]:
    """Return a network's percent of live kernels: near, by chance, the excess, beyond its layer."""
    near, chance, count, beyond = (
        sum(layer[key] for layer in layers) for key in ("near", "near_by_chance", "near_of", "layer_beyond")
    )
    return 100 * near / count, 100 * chance / count, 100 * (near - chance) / count, 100 * beyond / count


def by_kind(layer: Row) -> str:
    """Name a layer's group by what it mixes."""
    return str(layer["kind"])


def by_size(layer: Row) -> str:
    """Name a layer's group by the sides of its kernels."""
    return "x".join(str(side) for side in layer["shape"][2:])


def by_depth(layer: Row) -> str:
    """Name a layer's group by where it stands in its network."""
    return DEPTHS[min(2, int(3 * layer["depth"]))]


def by_kind_and_depth(layer: Row) -> str:
    """Name a layer's group by both, for depth and kind go together."""
    return f"{by_kind(layer)}, {by_depth(layer)}"


def typical_kernels(families: Iterable[Row]) -> dict[str, list[NDArray[np.float32]]]:
    """Return for each family the most typical of its nearest kernels over all networks, one a grid.

    That is the one whose mean |cosine| with all others of the family and grid is largest.
    """
    cells: dict[str, dict[tuple[int, ...], list[NDArray[np.float32]]]] = {}
    for row in families:
        if row["nearest"] and len(row["nearest_shape"]) == 2:
            kernel = np.asarray(row["nearest"], dtype=np.float32).reshape(row["nearest_shape"])
            cells.setdefault(row["family"], {}).setdefault(kernel.shape, []).append(kernel)
    return {name: [_medoid(grids[shape]) for shape in sorted(grids)] for name, grids in sorted(cells.items())}


def _medoid(kernels: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    flat = np.array([kernel.ravel() for kernel in kernels], dtype=np.float64)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-30)
    return kernels[int(np.abs(flat @ flat.T).mean(axis=1).argmax())]
