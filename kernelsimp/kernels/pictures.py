"""Kernels for the eye: small pictures in characters, and the shortest name that holds.

In a picture each cell is a sign and a shade, strength relative to the kernel's largest cell. In a name,
`horizontal`, `vertical`, `diagonal` (from top left) and `anti-diagonal` say how the lines of a kernel run,
which is across the direction in which it varies.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.kernels import few_values, rank, template_fit
from kernelsimp.kernels.cells import Grid, grid_of, rows_of
from kernelsimp.kernels.families import offered_families
from kernelsimp.kernels.subspace import OrbitSubspace
from kernelsimp.kernels.template_fit import TemplateFit
from kernelsimp.kernels.templates import by_name, parameters_of

SHADES = "·░▒▓█"
ASCII_SHADES = ".:=%#"
FAINT = 1 / 16
"""Cells weaker than this share of the largest are drawn as nothing."""

CHOICE_BITS_PER_NUMBER = 4.0
"""What one number is worth in bits when a partition's cost is weighed against dimensions."""

NOTHING = "no simple structure"

NOUNS = {
    "sobel-x": "vertical Sobel",
    "sobel-y": "horizontal Sobel",
    "prewitt-x": "vertical Prewitt",
    "prewitt-y": "horizontal Prewitt",
    "laplacian-4": "Laplacian",
    "laplacian-8": "eight-neighbour Laplacian",
    "gaussian": "Gaussian",
    "laplacian-of-gaussian": "Laplacian of Gaussian",
    "difference-of-gaussians": "difference of Gaussians",
    "gaussian-derivative": "Gaussian-derivative",
    "second-derivative": "second Gaussian-derivative",
    "edge": "edge",
    "oriented-gaussian": "long Gaussian",
    "bar": "bar",
    "gabor": "Gabor",
}

ROUND = ("laplacian-4", "laplacian-8", "gaussian", "laplacian-of-gaussian", "difference-of-gaussians")
"""Templates whose name already says how they are symmetric."""

PHRASES = {
    "mirror-h": "even left-right",
    "mirror-v": "even top-bottom",
    "transpose": "even across the diagonal",
    "anti-transpose": "even across the anti-diagonal",
    "half-turn": "even under half a turn",
    "both-mirrors": "even left-right and top-bottom",
    "both-transposes": "even across both diagonals",
    "full-square": "fully symmetric",
    "quarter-turn": "even under a quarter turn",
    "radial": "round",
    "odd-h": "odd left-right",
    "odd-v": "odd top-bottom",
    "odd-transpose": "odd across the diagonal",
    "odd-anti-transpose": "odd across the anti-diagonal",
    "odd-half-turn": "odd under half a turn",
    "odd-h-even-v": "odd left-right",
    "even-h-odd-v": "odd top-bottom",
    "odd-turn-even-h": "odd under a quarter turn, even left-right",
    "odd-turn-odd-h": "odd under a quarter turn, odd left-right",
    "odd-square": "even under a quarter turn, odd left-right",
    "equal-rows": "equal rows",
    "equal-columns": "equal columns",
    "constant": "constant",
    "centre-cell": "centre cell",
    "centre-row": "centre row only",
    "centre-column": "centre column only",
    "cross": "cross only",
}

COMPLETE = ("constant", "centre-cell")
"""Families that leave one number: nothing need be added to their names."""

_DIRECTIONS = ("", "vertical ", "anti-diagonal ", "horizontal ", "diagonal ")


@dataclass(frozen=True, eq=False)
class Matches:
    """Each kernel's linear family: `best` (n,) indexes `families`, -1 for none; `dims` are theirs."""

    families: tuple[str, ...]
    dims: NDArray[np.int64]
    best: NDArray[np.int64]


def picture(kernel: Tensor, *, ascii_only: bool = False) -> list[str]:
    """Return one kernel (kh, kw) as lines of text, three characters a cell less the last space."""
    return pictures(kernel[None], ascii_only=ascii_only)[0]


def pictures(kernels: Tensor, *, ascii_only: bool = False) -> list[list[str]]:
    """Return kernels (n, kh, kw) as lines of text; a cell that is not finite is drawn as '??'."""
    cells = kernels.detach().double()
    size = cells.abs().nan_to_num(0, 0, 0).flatten(1).amax(dim=1)[:, None, None]
    share = cells.abs() / torch.where(size > 0, size, 1.0)
    bounds = torch.tensor([FAINT, 0.25, 0.5, 0.75], dtype=torch.float64)
    level = torch.bucketize(share.nan_to_num(0), bounds)
    glyph = torch.where(level == 0, 0, level + 4 * (cells < 0))
    glyph = torch.where(cells.isfinite(), glyph, 9)
    drawn = np.array(_glyphs(ASCII_SHADES if ascii_only else SHADES))[glyph.numpy()]
    return [[" ".join(row) for row in kernel] for kernel in drawn.tolist()]


def orbit_picture(space: OrbitSubspace) -> list[str]:
    """Return the pattern of a family: one letter a value, a minus for its negative, a dot for zero."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    cells = [
        " ·" if orbit < 0 else ("-" if sign < 0 else " ") + letters[orbit % len(letters)]
        for orbit, sign in zip(space.orbit.tolist(), space.sign.tolist(), strict=True)
    ]
    width = space.shape[-1]
    return [" ".join(cells[start : start + width]) for start in range(0, len(cells), width)]


def match(kernels: Tensor, tolerance: float = 0.1) -> Matches:
    """Return for each kernel (n, kh, kw) the family of least dimension within the relative residual.

    Several of one dimension: the least residual, then the order of the table.
    """
    rows = offered_families(grid_of(kernels))
    dims = np.array([row.subspace.dim for row in rows], dtype=np.int64)
    if not rows:
        return Matches((), dims, np.full(len(kernels), -1, dtype=np.int64))
    grids = rows_of(kernels)[0].reshape(kernels.shape)
    residual = torch.stack([row.subspace.residual(grids) for row in rows]).numpy()
    score = np.where(residual <= tolerance, dims[:, None] + 0.5 * residual, np.inf)
    best = np.where(np.isfinite(score.min(axis=0)), score.argmin(axis=0), -1)
    return Matches(tuple(row.name for row in rows), dims, best)


def describe(
    kernels: Tensor,
    matches: Matches | None = None,
    fitted: TemplateFit | None = None,
    tolerance: float = 0.1,
) -> list[str]:
    """Return the shortest description that holds for each kernel (n, kh, kw).

    `zero`, `constant` and `centre cell` stand alone. A template is named where it fits within the tolerance
    and needs no more numbers than the matching family leaves (or half the cells where no family matches);
    the family's symmetry follows. A template without shape parameters goes first where it fits within half
    the tolerance. Else the family, rank one or few values, whichever leaves least.
    """
    matches = match(kernels, tolerance) if matches is None else matches
    fitted = template_fit.fit(kernels) if fitted is None else fitted
    fitted = _plainest(kernels, fitted, tolerance)
    noun = _nouns(kernels, matches, fitted, tolerance)
    phrase = _phrases(kernels, matches, noun, tolerance)
    direction = np.where(noun >= 0, _directions(fitted), 0)
    codes = np.stack([noun, direction, phrase], axis=1)
    kinds, place = np.unique(codes, axis=0, return_inverse=True)
    names = [_legend(fitted.names, matches.families, code) for code in kinds.tolist()]
    return [names[index] for index in place.reshape(-1).tolist()]


def sentence(names: Sequence[str], most: int = 3) -> str:
    """Return a layer in one sentence: its commonest kernels with their counts."""
    if not names:
        return "no kernels"
    counts = Counter(names)
    without = counts.pop(NOTHING, 0)
    common = counts.most_common(most)
    others = len(names) - without - sum(count for _, count in common)
    parts = [f"{count} {name}" for name, count in common]
    parts += [f"{others} of other shapes"] if others else []
    parts += [f"{without} with {NOTHING}"] if without else []
    return f"{len(names)} kernel{'s' * (len(names) != 1)}: {', '.join(parts)}"


def _glyphs(shades: str) -> list[str]:
    """Two characters a cell: nothing, four strengths above zero, four below, and not finite."""
    above, below = ([sign + shade for shade in shades[1:]] for sign in "+-")
    return [" " + shades[0], *above, *below, "??"]


_ZERO, _RANK_ONE, _TWO, _THREE, _NONE = -5, -4, -3, -2, -1
_OTHERS = {_ZERO: "zero", _RANK_ONE: "rank one", _TWO: "two values", _THREE: "three values", _NONE: ""}


def _plainest(kernels: Tensor, fitted: TemplateFit, tolerance: float) -> TemplateFit:
    """Put templates without shape parameters, the shortest to name, where they fit within half of it."""
    fixed = [name for name in fitted.names if not by_name(name).parameters]
    plain = template_fit.fit(kernels, fixed)
    wins = (plain.template >= 0) & (plain.residual <= tolerance / 2)
    renumbered = torch.tensor([*(fitted.names.index(name) for name in plain.names), -1])[plain.template]
    return replace(
        fitted,
        template=torch.where(wins, renumbered, fitted.template),
        parameters=torch.where(wins[:, None], 0.0, fitted.parameters),
        b=torch.where(wins, plain.b, fitted.b),
        residual=torch.where(wins, plain.residual, fitted.residual),
    )


def _nouns(kernels: Tensor, matches: Matches, fitted: TemplateFit, tolerance: float) -> NDArray[np.int64]:
    """Return the template worth naming for each kernel, -1 for none."""
    flat, _ = rows_of(kernels)
    cells = flat.shape[1]
    allowed = np.where(matches.best >= 0, np.append(matches.dims, 0)[matches.best], cells // 2)
    needed = _numbers(fitted, fitted.grid)
    offset = fitted.b.abs() * cells**0.5 > tolerance * flat.norm(dim=1)
    needed = needed + offset.numpy()
    holds = (fitted.residual <= tolerance).numpy() & (fitted.template >= 0).numpy() & (needed <= allowed)
    alone = np.isin(matches.best, [i for i, name in enumerate(matches.families) if name in COMPLETE])
    return np.where(holds & ~alone, fitted.template.numpy(), -1)


def _numbers(fitted: TemplateFit, grid: Grid) -> NDArray[np.int64]:
    """Count a and the shape parameters, less an angle or a phase that words can give."""
    counts = [1 + len(parameters_of(by_name(name), grid)) for name in fitted.names]
    numbers = np.array([*counts, 0], dtype=np.int64)[fitted.template.numpy()]
    for parameter, turns in (("angle", 4), ("phase", 2)):
        value = fitted.value(parameter).numpy()
        steps = np.nan_to_num(value * turns / np.pi, nan=0.5)
        numbers = numbers - (np.abs(steps - np.round(steps)) * np.pi / turns < np.radians(8))
    return np.asarray(numbers)


def _directions(fitted: TemplateFit) -> NDArray[np.int64]:
    """Return how the lines of each fit run: 0 for not at all, 1..4 the words, 5.. multiples of 15 degrees.

    Degrees turn from the horizontal against the clock, so that 45 is anti-diagonal.
    """
    angle = np.degrees(fitted.value("angle").numpy()) % 180
    steps = np.nan_to_num(np.round(angle / 15), nan=-1).astype(np.int64) % 12
    word = np.where(steps % 3 == 0, 1 + steps // 3, 5 + steps)
    return np.where(np.isnan(angle), 0, word)


def _phrases(
    kernels: Tensor, matches: Matches, noun: NDArray[np.int64], tolerance: float
) -> NDArray[np.int64]:
    """Return what follows or replaces the noun: a family, or one of the codes in `_OTHERS`."""
    flat, broken = rows_of(kernels)
    phrase = matches.best.astype(np.int64).copy()
    best_dim = np.append(matches.dims, flat.shape[1])[phrase].astype(np.float64)
    for code, residual, numbers in _non_linear(kernels):
        better = (noun < 0) & (residual <= tolerance) & (numbers < best_dim)
        phrase, best_dim = np.where(better, code, phrase), np.where(better, numbers, best_dim)
    phrase = np.where(broken.numpy(), _NONE, phrase)
    return np.where((flat == 0).all(dim=1).numpy() & ~broken.numpy(), _ZERO, phrase)


def _non_linear(kernels: Tensor) -> list[tuple[int, NDArray[np.float64], float]]:
    """Return (code, residual of each kernel, numbers left) of rank one and of two and three values."""
    grid = grid_of(kernels)
    found = []
    if rank.is_offered(grid, 1):
        found.append((_RANK_ONE, rank.residual(kernels).numpy(), float(rank.dof(grid, 1))))
    counts = [u for u in (2, 3) if few_values.is_offered(grid, u)]
    for values in few_values.fit_all(kernels, counts) if counts else ():
        numbers = values.dof + values.choice_bits / CHOICE_BITS_PER_NUMBER
        found.append((_TWO if values.values == 2 else _THREE, values.residual.numpy(), numbers))
    return found


def _legend(templates: Sequence[str], families: Sequence[str], code: list[int]) -> str:
    noun, direction, phrase = code
    if noun < 0:
        return (_phrase(families[phrase], alone=True) if phrase >= 0 else _OTHERS[phrase]) or NOTHING
    name = templates[noun]
    head = NOUNS[name]
    if direction > 4:
        head = f"{head} at {(90 - 15 * (direction - 5)) % 180} degrees"
    elif direction:
        head = _DIRECTIONS[direction] + head
    plain = name in ROUND or phrase < 0 or families[phrase] not in PHRASES
    return head if plain else f"{head}, {_phrase(families[phrase], alone=False)}"


def _phrase(family: str, *, alone: bool) -> str:
    """Return a family in words; a template's name already tells the even half of Sobel's class."""
    if alone and family in ("odd-h-even-v", "even-h-odd-v"):
        even = "top-bottom" if family == "odd-h-even-v" else "left-right"
        return f"{PHRASES[family]}, even {even}"
    return line_words(family) or PHRASES[family]


def line_words(family: str) -> str | None:
    """Return two equal lines in words, `rows 0 and 2 equal` for rows-0-2; None for another name."""
    parts = family.split("-")
    if len(parts) != 3 or parts[0] not in ("rows", "columns"):
        return None
    return f"{parts[0]} {parts[1]} and {parts[2]} equal"
