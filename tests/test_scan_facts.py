"""Published figures that a scan must reproduce on real checkpoints; skipped where those are not at hand."""

from pathlib import Path

import numpy as np
import pytest

from kernelsimp.commands import scan
from kernelsimp.kernels.families import SEVENTEEN
from kernelsimp.records.scan import Scan
from kernelsimp.settings import ScanSettings, Settings


def scanned(path: Path, **settings: object) -> Scan:
    return scan.scan(path, Settings(scan=ScanSettings(**settings)))  # type: ignore[arg-type]


def test_mirrors_of_resnet20_are_chance_and_smoothness(shared_data: Path) -> None:
    """95 % of the energy in the left-right mirror: 12.7 % of kernels, 4.6 % by white, 11.7 % by matched."""
    path = shared_data / "checkpoints" / "resnet20-12fca82f.th"
    scan = scanned(path, tolerance=float(np.sqrt(0.05)), families=("mirror-h",), depth="shallow")
    live = sum(layer.kernels - layer.dead for layer in scan.layers)
    mirrors = [layer.families["mirror-h"] for layer in scan.layers]
    share = {null: 100 * sum(m.null[null].expected for m in mirrors) / live for null in ("white", "matched")}
    assert 100 * sum(mirror.observed for mirror in mirrors) / live == pytest.approx(12.7, abs=0.5)
    assert share["white"] == pytest.approx(4.6, abs=0.1)
    assert share["matched"] == pytest.approx(11.7, abs=0.5)


def test_depthwise_kernels_of_a_detector_are_structured(shared_data: Path) -> None:
    """62 % of backbone depthwise kernels lie near a family or rank one, 16 % of the shuffled ones."""
    path = shared_data / "checkpoints" / "yolofastestv2-coco.pth"
    scan = scanned(path, layers=("backbone*",), kinds=("depthwise",), families=(*SEVENTEEN,), null="white")
    near = [layer.extra["near_any"] for layer in scan.layers]
    live = sum(item["live"] for item in near)
    assert 100 * sum(item["observed"] for item in near) / live == pytest.approx(62, abs=3)
    assert 100 * sum(item["permuted"] for item in near) / live == pytest.approx(16, abs=3)


@pytest.mark.parametrize("name", ["picodet_s_320.onnx"])
def test_an_exported_detector_is_scanned_with_exact_kinds(shared_data: Path, name: str) -> None:
    scan = scanned(shared_data / "checkpoints" / name, depth="shallow", families=("mirror-h",))
    counts: dict[tuple[int, ...], int] = {}
    for layer in scan.layers:
        if layer.kind == "depthwise":
            counts[layer.weight_shape[2:]] = counts.get(layer.weight_shape[2:], 0) + layer.kernels
    assert counts == {(5, 5): 1344, (3, 3): 1724}
