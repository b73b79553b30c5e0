"""Few distinct values and equal lines: against brute force over all partitions, and exact once written."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from builders import white64

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import few_values, partitions

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def brute_force(kernel, values):
    """The least relative residual over every way to cut the sorted cells into runs."""
    x = np.sort(kernel.reshape(-1))
    best = np.inf
    for cuts in combinations(range(1, len(x)), values - 1):
        runs = [x[a:b] for a, b in pairwise((0, *cuts, len(x)))]
        best = min(best, sum(((run - run.mean()) ** 2).sum() for run in runs))
    return np.sqrt(best / (x**2).sum())


@pytest.mark.parametrize("grid", [(1, 3), (2, 2), (3, 3), (2, 5)])
@pytest.mark.parametrize("values", [2, 3, 4, 5])
def test_matches_brute_force(grid, values):
    if values > grid[0] * grid[1]:
        pytest.skip("more values than cells")
    kernels = white64(30, *grid)
    found = few_values.fit(kernels, values)
    expected = [brute_force(kernel, values) for kernel in kernels.numpy()]
    assert np.allclose(found.residual.numpy(), expected, atol=1e-9)


def test_large_kernels_take_the_other_road_to_the_same_end(monkeypatch):
    kernels = white64(4, 9, 9)
    whole = few_values.fit_all(kernels, (2, 5))
    monkeypatch.setattr(few_values, "CHUNK_CELLS", 1)
    parts = few_values.fit_all(kernels, (2, 5))
    for first, second in zip(whole, parts, strict=True):
        assert torch.equal(first.labels, second.labels)
    assert np.allclose(whole[0].residual.numpy(), [brute_force(k, 2) for k in kernels.numpy()], atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [1, 2, 3, 5])
def test_snapped_kernels_have_so_few_values_exactly(dtype, values):
    kernels = white64(200, 3, 3).to(dtype)
    found = few_values.fit(kernels, values)
    written = few_values.snap(kernels, found)
    assert written.dtype == dtype
    for kernel in written.double().flatten(1).numpy():
        assert len(np.unique(kernel)) <= values
    assert bool(few_values.holds(written, values).all())
    assert bool(partitions.holds(written, found.labels).all())
    assert torch.equal(few_values.snap(written, found), written)


def test_planted_values_are_found_and_others_are_not():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (50, 9), generator=generator)
    values = torch.tensor([-1.0, 0.2, 0.9])
    kernels = (values[labels] * torch.rand(50, 1, generator=generator)).reshape(-1, 3, 3)
    assert few_values.fit(kernels, 3).residual.max() < 1e-7
    assert bool(few_values.holds(kernels, 3).all())
    assert not bool(few_values.holds(white64(30, 3, 3), 5).any())
    assert few_values.fit(white64(30, 3, 3), 2).residual.min() > 0.05


def test_residual_ignores_scale_and_more_values_never_hurt():
    kernels = white64(100, 3, 3)
    every = few_values.fit_all(kernels)
    tiny = few_values.fit_all(kernels * -1e-30)
    for first, second in zip(every, tiny, strict=True):
        assert torch.allclose(first.residual, second.residual, atol=1e-9)
    for less, more in pairwise(every):
        assert bool((more.residual <= less.residual + 1e-12).all())


def test_zero_broken_and_empty():
    kernels = white64(3, 3, 3)
    kernels[0], kernels[1, 0, 0] = 0, torch.inf
    found = few_values.fit(kernels, 2)
    assert found.residual[0] == 0
    assert bool(found.residual[1].isnan())
    assert not bool(few_values.holds(kernels, 9)[1])
    assert few_values.fit(kernels[:0], 2).labels.shape == (0, 9)


def test_too_many_values_are_refused():
    expected = r"^distinct values \(10,\) for kernels of 9 cells; use 1\.\.9$"
    with pytest.raises(KernelsimpError, match=expected):
        few_values.fit(white64(30, 3, 3), 10)
    assert few_values.is_offered((3, 3), 5)
    assert not few_values.is_offered((1, 3), 3)


def test_choice_bits_count_partitions():
    assert [round(2 ** partitions.bits(4, k)) for k in (1, 2, 3, 4)] == [1, 7, 6, 1]
    assert few_values.fit(white64(1, 3, 3), 2).choice_bits == pytest.approx(np.log2(255))
    with pytest.raises(KernelsimpError, match=r"^2 items cannot be parted into 3 classes$"):
        partitions.bits(2, 3)


def test_labels_are_numbered_by_first_appearance():
    labels = torch.tensor([[3, 1, 3, 0], [0, 0, 0, 0]])
    assert partitions.canonical(labels).tolist() == [[0, 1, 0, 2], [0, 0, 0, 0]]
    assert partitions.count(partitions.canonical(labels)).tolist() == [3, 1]


def test_labels_of_lines_become_labels_of_cells():
    lines = torch.tensor([[0, 1, 0]])
    rows = partitions.cell_labels(lines, (3, 2), 0)
    assert rows.tolist() == [[0, 1, 2, 3, 0, 1]]
    columns = partitions.cell_labels(lines, (2, 3), 1)
    assert columns.tolist() == [[0, 1, 0, 2, 3, 2]]


def set_partitions(items):
    """Every partition of 0..items-1 as canonical labels."""
    found = [[0]]
    for _ in range(items - 1):
        found = [[*labels, new] for labels in found for new in range(max(labels) + 2)]
    return found


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("labels", set_partitions(4))
def test_planted_equal_lines_are_reported_whatever_the_subset(axis, labels):
    lines = white64(20, 4, 5, seed=sum(labels))
    grids = lines[:, labels]
    kernels = grids if axis == 0 else grids.mT
    noisy = kernels + 0.01 * white64(20, *tuple(kernels.shape[1:]), seed=9)
    found = partitions.equal_lines(noisy, axis, 0.1)
    assert found.labels.tolist() == [labels] * 20
    assert found.classes.tolist() == [max(labels) + 1] * 20
    assert found.dof.tolist() == [5 * (max(labels) + 1)] * 20
    assert bool(partitions.holds(partitions.snap(noisy.half(), found.cells()), found.cells()).all())


def test_agglomeration_is_within_tolerance_and_mostly_as_good_as_all_partitions():
    kernels = white64(60, 5, 2)
    found = partitions.equal_lines(kernels, 0, 0.4)
    assert found.residual.max() <= 0.4 + 1e-12
    every, size = torch.tensor(set_partitions(5)), kernels.flatten(1).norm(dim=1)
    cells = partitions.cell_labels(every, (5, 2), 0)
    fewest = torch.full((60,), 5)
    for labels, lines in zip(cells, every, strict=True):
        moved = kernels - partitions.snap(kernels, labels.expand(60, -1))
        good = moved.flatten(1).norm(dim=1) <= 0.4 * size
        fewest = torch.where(good, fewest.clamp_max(int(lines.max()) + 1), fewest)
    assert bool((found.classes >= fewest).all())
    assert (found.classes == fewest).double().mean() > 0.85


def test_lines_of_zero_and_broken_kernels():
    kernels = white64(3, 3, 3)
    kernels[0], kernels[1, 2, 2] = 0, torch.nan
    found = partitions.equal_lines(kernels, 0, 0.01)
    assert found.classes.tolist() == [1, 3, 3]
    assert found.residual[0] == 0
    assert bool(found.residual[1].isnan())
    assert len(partitions.equal_lines(kernels[:0], 0).labels) == 0


def test_partitions_in_words():
    assert partitions.sentence([0, 1, 0]) == "rows 0 = 2"
    assert partitions.sentence([0, 1, 0, 1, 1], "column") == "columns 0 = 2, 1 = 3 = 4"
    assert partitions.sentence([0, 0]) == "all rows equal"
    assert partitions.sentence([0, 1]) == "no two rows equal"


def test_an_axis_that_is_none_is_refused():
    with pytest.raises(KernelsimpError, match=r"^axis 2; expected 0 for rows or 1 for columns$"):
        partitions.equal_lines(white64(30, 3, 3), 2)
