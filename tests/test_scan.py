from importlib import import_module

import numpy as np
import pytest
import torch

from kernelsimp.analysis.scan import scan_bank
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import LARGE, spill
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.families import find
from kernelsimp.settings import ScanSettings
from kernelsimp.watch import Watcher


def white(count: int = 4000, seed: int = 0) -> torch.Tensor:
    return torch.randn(count // 4, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def scanned(kernels: torch.Tensor, settings: ScanSettings | None = None):
    bank = KernelBank((LayerKernels("layer", "dense", kernels),))
    return scan_bank(bank, settings or ScanSettings(), {"path": "x"})


def test_white_kernels_match_as_often_as_chance_says():
    families = ("mirror-h", "transpose", "half-turn", "rows-0-1")
    layer = scanned(white(40_000), ScanSettings(tolerance=0.3, families=families, depth="shallow")).layers[0]
    for name in families:
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


def test_a_scan_keeps_to_one_thread_and_gives_the_others_back():
    class Counting(Watcher):
        threads = 0

        def step(self, amount: int = 1, **figures: float) -> None:
            self.threads = torch.get_num_threads()

    before, watcher = torch.get_num_threads(), Counting()
    torch.set_num_threads(2)
    try:
        bank = KernelBank((LayerKernels("layer", "dense", white(40)),))
        scan_bank(bank, ScanSettings(), {}, watcher)
        assert (watcher.threads, torch.get_num_threads()) == (1, 2)
        with pytest.raises(KernelsimpError, match="--tolerance"):
            scan_bank(bank, ScanSettings(tolerance=2), {}, watcher)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_large_arrays_go_aside_and_read_the_same():
    small, large = np.arange(5), np.arange(LARGE + 1, dtype=np.float32)
    assert spill(small) is small
    moved = spill(large)
    assert isinstance(moved, np.memmap)
    np.testing.assert_array_equal(moved, large)


def test_nan_is_refused_unless_its_layer_is_left_out():
    broken = white(40)
    broken[1, 2, 0, 0] = float("nan")
    bank = KernelBank((LayerKernels("bad", "dense", broken), LayerKernels("good", "dense", white(40))))
    with pytest.raises(KernelsimpError, match=r"bad: kernel \(1, 2\) holds NaN; .* pass --skip-layers bad"):
        scan_bank(bank, ScanSettings(), {})
    assert [layer.name for layer in scan_bank(bank, ScanSettings(skip_layers=("bad",)), {}).layers] == [
        "good"
    ]


def test_one_line_says_which_layers_fell_back_to_the_white_null():
    few = tuple(LayerKernels(f"few{i}", "dense", torch.randn(3, 1, 5, 5)) for i in range(5))
    notes = [note for note in scan_bank(KernelBank(few), ScanSettings(), {}).warnings if "ring" in note]
    assert notes == [
        "few0, few1, few2 and 2 more layers: ring null not estimated: 3 live kernels, at least 30 needed for "
        "the energies of 15 rings; white used instead"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "audit",
        "check",
        "compare",
        "demo",
        "evaluate",
        "export",
        "prune",
        "report",
        "scan",
        "simplify",
        "train",
    ],
)
def test_every_command_has_the_file_of_its_name(name):
    assert import_module(f"kernelsimp.commands.{name}").__doc__
    assert callable(getattr(import_module(f"kernelsimp.cli.{name}"), name))
