"""Prototypes: planted ones are counted, coverage is what the rebuilt layer has, and runs repeat."""

import pytest
import torch

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import prototypes
from kernelsimp.kernels.orbits import move_kernels
from kernelsimp.kernels.prototypes import PrototypeSettings, find


def planted(count, grid=(3, 3), kernels=400, noise=0.0):
    """Kernels a * (one of `count` shapes, turned or mirrored) + b."""
    generator = torch.Generator().manual_seed(count)
    cells = grid[0] * grid[1]
    images = move_kernels(torch.randn(count, cells, generator=generator, dtype=torch.float64), grid)
    which = torch.arange(kernels) % count
    move = torch.randint(0, len(images), (kernels,), generator=generator)
    a, b = torch.randn(2, kernels, 1, generator=generator, dtype=torch.float64)
    dirt = torch.randn(kernels, cells, generator=generator, dtype=torch.float64)
    return (a * images[move, which] + b + noise * dirt).reshape(-1, *grid)


def rebuild(found):
    """Return a * centre moved + b for every kernel, (n, kh, kw), in float64."""
    grid = found.centres.shape[1:]
    offset = found.b[:, None, None].expand(-1, *grid)
    if found.count == 0:
        return offset.clone()
    moved = move_kernels(found.centres.flatten(1), grid)[found.move, found.index]
    return (found.a[:, None] * moved).reshape(-1, *grid) + offset


def covered(kernels, found):
    return float(1 - (rebuild(found) - kernels).square().sum() / kernels.square().sum())


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("grid", [(3, 3), (3, 5)])
def test_planted_prototypes_are_counted(count, grid):
    kernels = planted(count, grid)
    found = find(kernels, PrototypeSettings(coverage=0.9999))
    assert count <= found.count <= count + count // 4  # clustering may end beside its optimum
    assert found.reached
    assert covered(kernels, found) > 0.9999


def test_coverage_is_that_of_the_rebuilt_layer():
    generator = torch.Generator().manual_seed(0)
    kernels = torch.randn(300, 3, 3, dtype=torch.float64, generator=generator)
    found = find(kernels)
    assert found.reached
    assert found.coverage >= 0.95
    assert covered(kernels, found) == pytest.approx(found.coverage, abs=1e-12)
    assert found.offsets == pytest.approx(float(9 * found.b.square().sum() / kernels.square().sum()))
    fewer = find(kernels, PrototypeSettings(coverage=0.7))
    assert fewer.count < found.count / 2


def test_turning_mirroring_and_scaling_kernels_changes_little():
    kernels = planted(4, noise=0.1)
    changed = kernels.clone()
    changed[::2] = -kernels[::2].mT.flip(1)
    settings = PrototypeSettings(coverage=0.9)
    first, second = find(kernels, settings), find(1e-3 * changed, settings)
    assert abs(first.count - second.count) <= 1
    assert first.coverage == pytest.approx(second.coverage, abs=0.03)


def test_centres_are_unit_without_mean():
    centres = find(planted(5, noise=0.2)).centres.flatten(1)
    assert torch.allclose(centres.norm(dim=1), torch.ones(len(centres), dtype=torch.float64))
    assert centres.mean(dim=1).abs().max() < 1e-7


def test_the_same_seed_gives_the_same_answer():
    kernels = torch.randn(200, 3, 3, generator=torch.Generator().manual_seed(1))
    first, second = find(kernels), find(kernels)
    assert torch.equal(first.centres, second.centres)
    assert torch.equal(first.index, second.index)


def test_a_limit_that_is_too_low_is_owned_up_to():
    kernels = torch.randn(500, 5, 5, generator=torch.Generator().manual_seed(2))
    found = find(kernels, PrototypeSettings(limit=4))
    assert found.count == 4
    assert not found.reached
    assert found.coverage < 0.95


def test_large_layers_learn_from_a_sample(monkeypatch):
    monkeypatch.setattr(prototypes, "SAMPLE", 100)
    kernels = planted(3)
    found = find(kernels, PrototypeSettings(coverage=0.997))
    assert found.count == 3
    assert len(found.index) == 400
    assert covered(kernels, found) > 0.997


def test_nothing_to_cover():
    zero = find(torch.zeros(5, 3, 3))
    assert zero.count == 0
    assert zero.coverage == 1
    flat = find(torch.ones(5, 3, 3) * torch.arange(5.0)[:, None, None])
    assert flat.count == 0
    assert flat.offsets == pytest.approx(1)
    assert torch.allclose(rebuild(flat).float(), torch.ones(5, 3, 3) * torch.arange(5.0)[:, None, None])
    assert find(torch.zeros(0, 3, 3)).count == 0


def test_broken_kernels_count_for_nothing():
    kernels = planted(2)
    kernels[7, 0, 0] = torch.nan
    found = find(kernels, PrototypeSettings(coverage=0.999))
    assert found.count == 2
    assert found.a[7] == 0


def test_settings_out_of_range_are_refused():
    with pytest.raises(KernelsimpError, match=r"^coverage 1.0; expected a share between 0 and 1$"):
        find(torch.zeros(1, 3, 3), PrototypeSettings(coverage=1.0))
    with pytest.raises(KernelsimpError, match=r"^limit of 0 prototypes; expected 1 or more$"):
        find(torch.zeros(1, 3, 3), PrototypeSettings(limit=0))
