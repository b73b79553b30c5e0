"""What a scan will take is known from a file's header, and said in one line where it is too much."""

import json
import struct
from pathlib import Path

import pytest
import torch
from builders import tiny_state, write_legacy, write_safetensors, write_zip
from processes import HERE, run_warm

from kernelsimp.analysis.room import BASE, check_room, needs_of
from kernelsimp.analysis.scan import scan_bank
from kernelsimp.cli.main import run
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.models.header import Header, convolutions_in, header_of
from kernelsimp.settings import ModelSettings, ScanSettings

HERE_IS = {"stem.weight": (4, 3, 3, 3), "depthwise.weight": (4, 1, 3, 3), "pointwise.weight": (6, 4, 1, 1)}


def sparse_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Write a safetensors file that is a header and a hole."""
    head, end = dict[str, object](), 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(head).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def test_a_file_of_gigabytes_is_refused_by_its_header(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "m.safetensors", {f"l{i}.weight": (8192, 8192, 3, 3) for i in range(4)})
    done = run_warm(HERE / "bounded.py", "1.5", "10", "scan", str(path), "--memory", "4", "-q")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"kernelsimp: {path}: 4 layers, 268,435,456 kernels of 3 x 3: a scan takes about 3"
    )
    assert "GB of memory, and --memory is 4.0; pass --memory 3" in line
    assert line.endswith("or choose layers with --layers GLOB")


@pytest.mark.parametrize(
    ("write", "payload"),
    [
        (write_safetensors, tiny_state()),
        (write_zip, tiny_state()),
        (write_zip, {"epoch": 3, "state_dict": tiny_state()}),
    ],
)
def test_a_header_tells_shapes(write, payload, tmp_path: Path) -> None:
    header = header_of(write(payload, tmp_path / "m.pt"), ModelSettings())
    assert convolutions_in(header) == HERE_IS
    assert header.held == 0


def test_what_has_no_header_tells_the_size_of_its_file(tmp_path: Path) -> None:
    path = write_legacy(tiny_state(), tmp_path / "m.pt")
    assert header_of(path, ModelSettings()) == Header({}, path.stat().st_size)
    (tmp_path / "bad.safetensors").write_bytes(struct.pack("<Q", 9) + b'{"a": {}}')
    assert header_of(tmp_path / "bad.safetensors", ModelSettings()) == Header()
    assert header_of(tmp_path / "missing", ModelSettings()) == Header()


def test_what_claims_more_than_it_holds_tells_nothing(tmp_path: Path) -> None:
    repeated = torch.randn(9).as_strided((1 << 14, 1 << 14, 3, 3), (0, 0, 3, 1))
    path = write_zip({"c.weight": repeated}, tmp_path / "m.pt")
    assert header_of(path, ModelSettings()).shapes == {}
    path = sparse_file(tmp_path / "m.safetensors", {"l.weight": (64, 64, 3, 3)})
    with path.open("r+b") as file:
        file.truncate(1000)
    assert header_of(path, ModelSettings()) == Header()


def test_a_network_of_no_header_is_refused_when_it_is_read(tmp_path: Path, capsys) -> None:
    path = write_legacy({"c.weight": torch.randn(64, 64, 3, 3)}, tmp_path / "m.pt")
    assert run(["scan", str(path), "-q", "--memory", "0.1"]) == 2
    assert "takes about" in capsys.readouterr().err
    assert run(["scan", str(path), "-q", "--memory", "0"]) == 2
    assert "--memory is 0; expected gigabytes, such as 4" in capsys.readouterr().err


def test_in_a_folder_the_others_are_scanned(tmp_path: Path, capsys) -> None:
    write_zip(tiny_state(), tmp_path / "a.pt")
    sparse_file(tmp_path / "b.safetensors", {"l.weight": (8192, 8192, 3, 3)})
    assert run(["scan", str(tmp_path), "--memory", "6"]) == 0
    said = capsys.readouterr().out
    assert "1 layers, 67,108,864 kernels of 3 x 3" in " ".join(said.split())


def test_what_is_to_come_is_said_of_a_large_network(tmp_path: Path, capsys, monkeypatch) -> None:
    path = write_zip(tiny_state(), tmp_path / "a.pt")
    assert run(["scan", str(path)]) == 0
    assert "about" not in capsys.readouterr().err
    monkeypatch.setattr("kernelsimp.commands.scan.EASY", 15)
    assert run(["scan", str(path)]) == 0
    assert f"{path}: 2 layers, 16 kernels of 3 x 3, about" in capsys.readouterr().err


def test_only_the_layers_that_are_chosen_count() -> None:
    shapes = {"a.weight": (512, 512, 3, 3), "b.weight": (8, 8, 5, 5), "c.weight": (512, 512, 1, 1)}
    assert needs_of(shapes, ScanSettings()).kernels == 512 * 512 + 64
    assert needs_of(shapes, ScanSettings(layers=("b",))).grids == {(5, 5): 64}
    assert needs_of(shapes, ScanSettings(skip_layers=("a",))).grids == {(5, 5): 64}
    assert needs_of(shapes, ScanSettings(layers=("none",))).kernels == 512 * 512 + 64
    assert needs_of({"a.weight": (4, 4, 9)}, ScanSettings()).grids == {(1, 9): 16}
    assert needs_of({"a.weight": (4, 4, 1, 1)}, ScanSettings()).working == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are told by Linux")
def test_a_scan_takes_no_more_than_was_said() -> None:
    def told(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    bank = KernelBank((LayerKernels("l", "dense", torch.randn(192, 192, 3, 3)),))
    before = told("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    scan_bank(bank, ScanSettings(depth="shallow"), {})
    needs = needs_of({"l.weight": (192, 192, 3, 3)}, ScanSettings())
    assert 0 < told("VmHWM") - before < needs.working < BASE + 5 * 10**7


def test_without_a_limit_all_that_is_free_may_be_taken(monkeypatch) -> None:
    needs = needs_of({"a.weight": (512, 512, 3, 3)}, ScanSettings())
    monkeypatch.setattr("kernelsimp.analysis.room.free_bytes", lambda _: needs.working)
    assert check_room(needs, 0, None, "m.pt") > needs.working
    with pytest.raises(KernelsimpError, match=r"and \d\.\d GB are free; pass --memory"):
        check_room(needs, 10**9, None, "m.pt")
