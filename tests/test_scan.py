import numpy as np
import pytest
import torch

from kernelsimp.analysis.scan import scan_bank
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.families import find
from kernelsimp.settings import ScanSettings


def white(count: int = 4000, seed: int = 0) -> torch.Tensor:
    return torch.randn(count // 4, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def scanned(kernels: torch.Tensor, settings: ScanSettings | None = None):
    bank = KernelBank((LayerKernels("layer", "dense", kernels),))
    return scan_bank(bank, settings or ScanSettings(), {"path": "x"})


def test_white_kernels_match_as_often_as_chance_says():
    layer = scanned(white(40_000), ScanSettings(tolerance=0.3)).layers[0]
    for name in ("mirror-h", "transpose", "half-turn", "rows-0-1"):
        family = layer.families[name]
        expected = family.null["white"].expected
        assert expected > 100
        assert abs(family.observed - expected) < 5 * np.sqrt(expected)
        assert family.null["white"].enrichment == pytest.approx(family.observed / expected)


def test_planted_kernels_are_counted_and_named():
    kernels = white()
    kernels[:5, 0] = find("full-square", (3, 3)).snap(kernels[:5, 0])
    scan = scanned(kernels, ScanSettings(depth="shallow"))  # a template of two numbers may lie nearer
    layer = scan.layers[0]
    assert layer.families["full-square"].observed == 5
    best = layer.best.reshape(1000, 4)[:5, 0]
    assert {scan.families[i] for i in best} == {"full-square"}
    assert (layer.residual.reshape(1000, 4)[:5, 0] < 1e-6).all()


def test_dead_kernels_never_match():
    kernels = white(400)
    kernels[0, 0] = 0
    kernels[1, 0] = 1e-4
    layer = scanned(kernels).layers[0]
    assert layer.dead == 2
    assert layer.families["constant"].observed == 0
    assert layer.best.reshape(100, 4)[0, 0] == -1


def test_counts_keep_pointwise_kernels_apart():
    bank = KernelBank(
        (LayerKernels("p", "dense", torch.randn(8, 4, 1, 1)), LayerKernels("q", "dense", white(40)))
    )
    scan = scan_bank(bank, ScanSettings(), {})
    assert (scan.pointwise, len(scan.layers), scan.weights) == (32, 1, 32 + 40 * 9)


@pytest.mark.parametrize("shape", [(1, 5), (2, 2), (3, 5), (31, 31), (1, 2)])
def test_odd_shapes_are_scanned(shape):
    layer = scanned(torch.randn(6, 2, *shape)).layers[0]
    assert layer.kernels == 12
    assert all(0 < family.dim < np.prod(shape) for family in layer.families.values())


def test_bad_settings_are_one_line():
    with pytest.raises(KernelsimpError, match="--tolerance is 2; expected a number from 0 to 1"):
        scanned(white(40), ScanSettings(tolerance=2.0))
    with pytest.raises(KernelsimpError, match="unknown family 'odd-hh'; did you mean 'odd-h'"):
        scanned(white(40), ScanSettings(families=("odd-hh",)))
