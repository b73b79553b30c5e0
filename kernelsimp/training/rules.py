"""Which family each kernel is to have: rules in, names by layer out. No network is touched here.

A rule is one family name for every kernel larger than 1x1, or a mapping of layer globs to names or to mixes,
{"stem.*": "full-square", "layer?.*": {"odd-h": 0.25, "rank-one": 0.5}}. The first glob that fits a layer
decides; shares that add up to less than one leave the rest free. In words: GLOB=NAME:SHARE+NAME:SHARE.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.kernels import rank
from kernelsimp.kernels.families import FAMILIES, MOST_LINES, find, line_pairs
from kernelsimp.kernels.gaussian_basis import ORDERS, gaussian_derivatives
from kernelsimp.kernels.subspace import OrbitSubspace, Shape

Mix = Mapping[str, float]
Rules = str | Mapping[str, str | Mix]

FREE = "free"
RANK_ONE = "rank-one"
GAUSSIAN = "gaussian-"
PROTOTYPES = "prototypes-"

CONSTRAINTS: dict[str, str] = {
    **{family.name: family.meaning for family in FAMILIES},
    RANK_ONE: "a column times a row",
    **{f"{GAUSSIAN}{order}": f"a sum of Gaussian derivatives up to order {order}" for order in ORDERS},
    f"{PROTOTYPES}8": "a * x + b, the x shared by the layer; any number of prototypes from 1 on",
    FREE: "not constrained",
}
"""Every name that a rule may use, with its meaning; single pairs of lines, rows-0-2, can be named too."""


def numbers_left(name: str, grid: Shape) -> int | None:
    """Return how many numbers a kernel of shape `grid` keeps, or None where the name is not offered there.

    Of prototypes it is the a and the b alone. Raises `KernelsimpError` for an unknown name.
    """
    cells = int(np.prod(grid))
    if name == FREE:
        return cells
    if name == RANK_ONE:
        flat = (grid[0], grid[-1])
        return rank.dof(flat, 1) if len(grid) == 2 and rank.is_offered(flat, 1) else None
    if order := _number(name, GAUSSIAN):
        span = gaussian_derivatives(grid, order) if order in ORDERS else None
        return None if span is None else span.dim
    if _number(name, PROTOTYPES):
        return 2 if len(grid) == 2 and cells > 2 else None
    space = orbit_space(name, grid)
    return None if space is None else space.dim


def orbit_space(name: str, grid: Shape) -> OrbitSubspace | None:
    """Return the subspace of a family where it means something at `grid` and restricts a kernel."""
    _check(name)
    try:
        space = find(name, grid)
    except KernelsimpError:
        return None
    return space if 0 < space.dim < space.cells else None


def prototype_count(name: str) -> int | None:
    """Return K where the name is `prototypes-K`."""
    return _number(name, PROTOTYPES)


def gaussian_order(name: str) -> int | None:
    """Return N where the name is `gaussian-N`."""
    return _number(name, GAUSSIAN)


def offered_at(grid: Shape) -> list[str]:
    """Return the names that a kernel of shape `grid` can be held in."""
    return [name for name in CONSTRAINTS if name != FREE and numbers_left(name, grid) is not None]


def mixes_of(rules: Rules, grids: Mapping[str, Shape]) -> dict[str, dict[str, float]]:
    """Return {layer: {name: share}} for the layers that `rules` constrain; `grids` has every layer's.

    Raises `KernelsimpError` for a glob that fits no layer or only 1x1 ones, an unknown name, a family that
    is not offered at a layer's shape, and shares that are negative or add up to more than one.
    """
    spatial = {name: grid for name, grid in grids.items() if any(side > 1 for side in grid)}
    table: Mapping[str, str | Mix] = {"*": rules} if isinstance(rules, str) else rules
    if not table:
        raise KernelsimpError("no rule was given; expected a family, or layer globs with families")
    for glob in table:
        _check_glob(glob, spatial, grids)
    found: dict[str, dict[str, float]] = {}
    for layer, grid in spatial.items():
        rule = next((rule for glob, rule in table.items() if fnmatchcase(layer, glob)), FREE)
        mix = {rule: 1.0} if isinstance(rule, str) else {name: float(share) for name, share in rule.items()}
        _check_mix(layer, mix, grid)
        if any(share > 0 for name, share in mix.items() if name != FREE):
            found[layer] = mix
    return found


def dealt(mix: Mix, count: int, seed: int) -> list[tuple[str, NDArray[np.int64]]]:
    """Deal `count` kernels out to the names of a mix, at random by `seed`; what is left over stays free.

    Numbers are rounded by largest remainder, so a share of one is every kernel.
    """
    named = {name: share for name, share in mix.items() if name != FREE and share > 0}
    exact = np.array([share * count for share in named.values()])
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    wanted = min(count, round(float(exact.sum()))) - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[: max(0, wanted)]] += 1
    order = np.random.default_rng(seed).permutation(count)
    ends = np.cumsum(sizes)
    return [(name, np.sort(order[end - n : end])) for name, n, end in zip(named, sizes, ends, strict=True)]


def read_rules(words: Sequence[str]) -> Rules:
    """Return the rules that words spell: NAME, GLOB=NAME or GLOB=NAME:SHARE+NAME:SHARE, one rule a word.

    Raises `KernelsimpError` for a word that is none of these.
    """
    table: dict[str, str | Mix] = {}
    for word in words:
        glob, equals, rule = word.rpartition("=")
        if not rule.strip() or (equals and not glob.strip()):
            raise KernelsimpError(f"--constrain '{word}'; expected NAME, GLOB=NAME or GLOB=NAME:SHARE+...")
        table[glob.strip() if equals else "*"] = _read_mix(word, rule.strip())
    return table


def _read_mix(word: str, rule: str) -> str | Mix:
    if ":" not in rule and "+" not in rule:
        return rule
    mix: dict[str, float] = {}
    for part in rule.split("+"):
        name, _, share = part.partition(":")
        try:
            mix[name.strip()] = float(share)
        except ValueError:
            raise KernelsimpError(
                f"--constrain '{word}': '{part}' is no share; expected NAME:SHARE, such as odd-h:0.25"
            ) from None
    return mix


def _number(name: str, prefix: str) -> int | None:
    tail = name.removeprefix(prefix)
    return int(tail) if name.startswith(prefix) and tail.isdigit() and int(tail) > 0 else None


def _check(name: str) -> None:
    pairs = (row.name for row in line_pairs((MOST_LINES, MOST_LINES)))
    if name in CONSTRAINTS or name in pairs:
        return
    raise KernelsimpError(f"unknown constraint '{name}'{did_you_mean(name, CONSTRAINTS)}")


def _check_glob(glob: str, spatial: Mapping[str, Shape], every: Mapping[str, Shape]) -> None:
    if any(fnmatchcase(layer, glob) for layer in spatial):
        return
    if any(fnmatchcase(layer, glob) for layer in every):
        raise KernelsimpError(f"constrain: '{glob}' names only layers with 1x1 kernels; leave it out")
    raise KernelsimpError(f"constrain: no layer matches '{glob}'{did_you_mean(glob, spatial)}")


def _check_mix(layer: str, mix: Mix, grid: Shape) -> None:
    if not mix:
        raise KernelsimpError(
            f"{layer}: an empty mix; expected families with shares, such as {{'odd-h': 0.5}}"
        )
    for name, share in mix.items():
        if not 0 <= share <= 1:
            raise KernelsimpError(f"{layer}: the share of '{name}' is {share:g}; expected 0..1")
        if numbers_left(name, grid) is None:
            shape = "x".join(str(side) for side in grid)
            there = ", ".join(offered_at(grid)) or "nothing"
            raise KernelsimpError(
                f"{layer}: '{name}' is not offered for kernels of shape {shape}; offered there: {there}"
            )
    total = sum(mix.values())
    if total > 1 + 1e-9:
        raise KernelsimpError(f"{layer}: the shares add up to {total:g}; expected 1 at most")
