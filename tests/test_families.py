"""What the table of families says at each shape, against dimensions and kernels known from elsewhere."""

from itertools import combinations

import numpy as np
import pytest
import torch

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.families import (
    FAMILIES,
    SEVENTEEN,
    Offered,
    check_name,
    find,
    line_pairs,
    offered_families,
)

SHAPES = [(1, 3), (2, 2), (3, 3), (3, 5), (5, 5), (7, 7)]

KNOWN_DIMENSIONS = {
    "mirror-h": (6, 15, 28),
    "mirror-v": (6, 15, 28),
    "transpose": (6, 15, 28),
    "anti-transpose": (6, 15, 28),
    "half-turn": (5, 13, 25),
    "both-mirrors": (4, 9, 16),
    "both-transposes": (4, 9, 16),
    "quarter-turn": (3, 7, 13),
    "full-square": (3, 6, 10),
    "odd-h": (3, 10, 21),
    "odd-transpose": (3, 10, 21),
    "odd-half-turn": (4, 12, 24),
    "odd-h-even-v": (2, 6, 12),
    "equal-rows": (3, 5, 7),
    "equal-columns": (3, 5, 7),
    "constant": (1, 1, 1),
    "centre-cell": (1, 1, 1),
    "centre-row": (3, 5, 7),
    "cross": (5, 9, 13),
    "rows-0-2": (6, 20, 42),
}

SOBEL = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])


def named(shape: tuple[int, ...]) -> dict[str, Offered]:
    return {row.name: row for row in offered_families(shape)}


@pytest.mark.parametrize(("name", "dims"), KNOWN_DIMENSIONS.items())
def test_known_dimensions(name: str, dims: tuple[int, ...]) -> None:
    assert tuple(find(name, (k, k)).dim for k in (3, 5, 7)) == dims


@pytest.mark.parametrize("k", [3, 5, 7, 9])
def test_known_formulas(k: int) -> None:
    assert find("mirror-h", (k, k)).dim == k * (k + 1) // 2
    assert find("half-turn", (k, k)).dim == (k * k + 1) // 2
    assert find("both-mirrors", (k, k)).dim == (k + 1) ** 2 // 4
    assert find("quarter-turn", (k, k)).dim == (k * k + 3) // 4
    assert find("full-square", (k, k)).dim == (k + 1) * (k + 3) // 8


@pytest.mark.parametrize("shape", SHAPES)
def test_odd_complements_even(shape: tuple[int, ...]) -> None:
    """One sign character each: P_even + P_odd = I."""
    for even, odd in [("mirror-h", "odd-h"), ("mirror-v", "odd-v"), ("half-turn", "odd-half-turn")]:
        both = find(even, shape).projector + find(odd, shape).projector
        np.testing.assert_allclose(both, np.eye(int(np.prod(shape))), atol=1e-12)


def holds(name: str, kernel: torch.Tensor) -> bool:
    return bool(find(name, tuple(kernel.shape)).residual(kernel) < 1e-12)


def test_sobel_is_odd_under_one_mirror_and_even_under_the_other() -> None:
    families = {row.name for row in offered_families((3, 3)) if holds(row.name, SOBEL)}
    assert families == {"odd-h", "mirror-v", "odd-half-turn", "odd-h-even-v"}
    assert {row.name for row in offered_families((3, 3)) if holds(row.name, SOBEL.T)} == {
        *("mirror-h", "odd-v", "odd-half-turn", "even-h-odd-v")
    }


def test_the_laplacian_has_all_eight_symmetries() -> None:
    for name in ["mirror-h", "mirror-v", "transpose", "anti-transpose", "half-turn", "both-mirrors"]:
        assert holds(name, LAPLACIAN)
    for name in ["both-transposes", "full-square", "quarter-turn", "cross"]:
        assert holds(name, LAPLACIAN)
    assert not any(holds(name, LAPLACIAN) for name in named((3, 3)) if name.startswith("odd"))


def test_directions_are_not_swapped() -> None:
    rows, columns = torch.ones(3, 3) * torch.tensor([1.0, 2, 4]), torch.ones(3, 3)
    columns = columns * torch.tensor([[1.0], [2], [4]])
    assert holds("equal-rows", rows)
    assert not holds("equal-columns", rows)
    assert holds("mirror-v", rows)
    assert not holds("mirror-h", rows)
    assert holds("equal-columns", columns)
    assert not holds("equal-rows", columns)
    ramp = torch.arange(9.0).reshape(3, 3)
    assert holds("transpose", ramp + ramp.T)
    assert not holds("anti-transpose", ramp + ramp.T)
    assert holds("rows-0-1", torch.tensor([[1.0, 2, 3], [1, 2, 3], [7, 5, 6]]))


@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 3), (4, 4)])
def test_offered_families_differ_and_are_proper(shape: tuple[int, ...]) -> None:
    rows = offered_families(shape)
    assert all(0 < row.subspace.dim < row.subspace.cells for row in rows)
    for one, other in combinations(rows, 2):
        assert np.abs(one.subspace.projector - other.subspace.projector).max() > 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_table_order_is_kept_and_aliases_are_equal(shape: tuple[int, ...]) -> None:
    table = [row.name for row in (*FAMILIES, *line_pairs(shape))]
    places = [table.index(row.name) for row in offered_families(shape)]
    assert places == sorted(places)
    for row in offered_families(shape):
        for alias in row.aliases:
            np.testing.assert_allclose(find(alias, shape).projector, row.subspace.projector, atol=1e-12)


def test_merged_names() -> None:
    """Quarter turn = full square at 3x3; radial = full square up to 9x9."""
    assert {"quarter-turn", "radial"} <= set(named((3, 3))["full-square"].aliases)
    assert named((3, 3))["mirror-v"].aliases == ("rows-0-2",)
    assert "quarter-turn" in named((5, 5))
    for k in (5, 7, 9):
        assert "radial" in named((k, k))["full-square"].aliases
    assert "radial" in named((11, 11))


def test_seventeen() -> None:
    assert len(set(SEVENTEEN)) == 17
    assert [row.name for row in offered_families((5, 5), SEVENTEEN, pairs=False)] == [
        row.name for row in FAMILIES if row.name in SEVENTEEN
    ]


@pytest.mark.parametrize(("shape", "count"), [((3, 3), 6), ((5, 5), 20), ((3, 5), 13), ((1, 3), 3)])
def test_pairs_of_lines(shape: tuple[int, ...], count: int) -> None:
    assert len(list(line_pairs(shape))) == count


def test_no_diagonal_families_on_oblong_kernels() -> None:
    assert not {"transpose", "quarter-turn", "full-square"} & set(named((3, 5)))
    with pytest.raises(
        KernelsimpError, match=r"^family 'transpose' is not offered for kernels of shape \(3, 5\)$"
    ):
        find("transpose", (3, 5))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(KernelsimpError, match=r"^unknown family 'miror-h'; did you mean 'mirror-h'\?$"):
        offered_families((3, 3), ("miror-h",))
    with pytest.raises(KernelsimpError, match=r"^unknown family 'half-turns'; did you mean 'half-turn'\?$"):
        find("half-turns", (3, 3))
    check_name("rows-0-2")
    check_name("cross")
