"""What the controls offer: as much freedom to pick as the structures that they stand for."""

import math

import pytest
import torch
from torch import Tensor

from kernelsimp.kernels.partitions import bits
from kernelsimp.kernels.structures import find
from kernelsimp.solver.candidates import Structure
from kernelsimp.solver.controls import MOST_PICKS, Masked, Picked, random_rivals

CELLS = 9


def kernels(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, CELLS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(dim: int, side_bits: float) -> Structure:
    return random_rivals(Structure("some", dim, None, side_bits), CELLS, torch.Generator().manual_seed(0))


def share_left(item: Structure) -> float:
    rows = kernels(500, 1)
    return float((item.errors(rows).square().sum(1) / rows.square().sum(1)).mean())


def test_masks_keep_the_largest_cells() -> None:
    rows = kernels(20)
    kept = rows - Masked("3 cells", 3, None).errors(rows)
    assert (kept != 0).sum(1).eq(3).all()
    assert torch.equal(kept.abs().amax(1), rows.abs().amax(1))


def test_every_kernel_takes_the_nearest_of_the_subspaces() -> None:
    item, rows = drawn(2, 6.0), kernels(30)
    assert isinstance(item, Picked)
    assert len(item.bases) == 64
    each = item.bases @ item.bases.mT
    left = (rows[:, None] - torch.einsum("mij,nj->nmi", each, rows)).norm(dim=2).amin(1)
    assert torch.allclose(item.errors(rows).norm(dim=1), left)
    projectors = item.projectors(rows)
    assert torch.allclose(projectors @ projectors, projectors)
    assert torch.allclose(projectors.diagonal(dim1=1, dim2=2).sum(1), torch.tensor(2.0).double())


def test_a_structure_without_a_pick_is_met_by_one_subspace() -> None:
    item = drawn(3, 0.0)
    assert item.projector is not None
    assert share_left(item) == pytest.approx(1 - 3 / CELLS, abs=0.02)


def test_a_pick_among_many_is_a_fair_rival_of_few_values() -> None:
    # white noise has neither structure: 255 partitions into two values leave about what 255 subspaces do
    rows = kernels(500, 1)
    few = float(find("few-values-2", (3, 3)).residual(rows.reshape(-1, 3, 3)).square().mean())
    picks = share_left(drawn(2, bits(CELLS, 2)))
    assert picks == pytest.approx(few, abs=0.06)
    assert share_left(drawn(2, 0.0)) > picks + 0.3


def test_no_more_subspaces_are_drawn_than_can_be_compared() -> None:
    item = drawn(2, 40.0)
    assert isinstance(item, Picked)
    assert len(item.bases) == MOST_PICKS
    assert item.side_bits == math.log2(MOST_PICKS)
