"""Exporting a run: the packed file gives every tensor back, every command reads it, damage is one line."""

import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import (
    NET,
    TinyNet,
    flip_bit,
    same,
    tiny_state,
    weights_in,
    write_legacy,
    write_safetensors,
    write_zip,
)

from kernelsimp.cli.main import run
from kernelsimp.errors import CheckpointError, KernelsimpError
from kernelsimp.kernels.structures import find
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.models.packed import SIGNATURE, pack, read_packed
from kernelsimp.records.plan import LayerPlan, Plan


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a wrapped checkpoint whose names have a prefix, and which holds more than weights."""
    folder = tmp_path_factory.mktemp("export")
    state = {f"module.{name}": value for name, value in tiny_state().items()}
    model = write_zip({"state_dict": state, "best_prec1": 91.0}, folder / "tiny.pt")
    words = ["simplify", str(model), "--arch", NET, "--tolerance", "0.9", "--out", str(folder / "run"), "-q"]
    assert run(words) == 0
    return folder


def test_a_packed_run_gives_every_tensor_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(place / "run")]) == 0
    target = place / "run" / "tiny.kspack"
    said = capsys.readouterr().out
    assert said.startswith(f"packed: {target}, ")
    assert " % of " in said
    assert "left out, as no weights: 'best_prec1'" in said
    assert same(read_packed(target)["state_dict"], weights_in(place / "run" / "tiny.pt"))


def test_the_report_has_the_bytes_of_that_file(place: Path) -> None:
    assert run(["export", str(place / "run"), "--out", str(place / "size.kspack")]) == 0
    size = json.loads((place / "run" / "report.json").read_text())["size"]
    assert size["packed"] == (place / "size.kspack").stat().st_size
    assert "packed" in (place / "run" / "report.md").read_text()


@pytest.mark.parametrize("form", ["safetensors", "torch", "packed"])
def test_every_form_goes_to_every_other(place: Path, form: str) -> None:
    first = place / f"first.{form}"
    assert run(["export", str(place / "run"), "--to", form, "--out", str(first)]) == 0
    assert run(["export", str(first), "--to", "torch", "--out", str(place / "back.pt")]) == 0
    back = torch.load(place / "back.pt", weights_only=True)
    expected = weights_in(place / "run" / "tiny.pt")
    back = back if form == "safetensors" else back["state_dict"]
    assert same({name: back[name] for name in expected}, expected)


def test_every_command_reads_a_packed_file(place: Path) -> None:
    packed = place / "read.kspack"
    assert run(["export", str(place / "run"), "--out", str(packed)]) == 0
    base = str(place / "run" / "report.json")
    assert run(["check", str(packed), "--baseline", base, "-q"]) == 0
    assert run(["scan", str(packed), "-q"]) == 0
    again = place / "again"
    assert run(["simplify", str(packed), "--tolerance", "0.01", "--out", str(again), "-q"]) == 0
    assert same(read_packed(again / "read.kspack")["state_dict"], weights_in(place / "run" / "tiny.pt"))


def test_onnx_keeps_the_kernels_and_computes_the_same(place: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    path = place / "net.onnx"
    words = ["export", str(place / "run"), "--arch", NET, "--to", "onnx", "--input-size", "8"]
    assert run([*words, "--out", str(path)]) == 0
    onnx.checker.check_model(str(path))
    stored = load_checkpoint(path).tensors
    state = {key.removeprefix("module."): item for key, item in weights_in(place / "run" / "tiny.pt").items()}
    assert torch.equal(stored["depthwise.weight"], state["depthwise.weight"])
    net = TinyNet().eval()
    net.load_state_dict(state)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(images).numpy()
    (found,) = ReferenceEvaluator(str(path)).run(None, {"images": images.numpy()})
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["{run}", "--to", "zip"],
            "--to is 'zip'; known: coded, factorised, onnx, packed, safetensors, torch",
        ),
        (["{run}", "--to", "pakced"], "--to is 'pakced'; did you mean 'packed'?"),
        (["{folder}/none.pt"], "none.pt: no such file"),
        (["{folder}"], "report.json: there is no report"),
        (
            ["{run}/tiny.pt", "--to", "onnx"],
            "--to onnx needs the network, not its weights alone: pass --arch",
        ),
        (
            ["{run}", "--to", "onnx"],
            f"code {NET}, which no report may have run; pass --arch {NET} if you trust",
        ),
        (["{run}", "--to", "onnx", "--arch", NET], "--to onnx needs the side of an image: pass --input-size"),
        (
            ["{run}", "--out", "{run}/tiny.pt"],
            "run/tiny.pt would overwrite the input",
        ),
        (["{run}", "--out", "{folder}"], "is a directory; --out names the file to write"),
    ],
)
def test_bad_input_is_one_line(
    place: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(run=place / "run", folder=place) for word in words]
    assert run(["export", *filled]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_run_without_its_checkpoint_is_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = place / "bare"
    bare.mkdir()
    (bare / "report.json").write_bytes((place / "run" / "report.json").read_bytes())
    assert run(["export", str(bare)]) == 2
    assert "the run's checkpoint 'tiny.pt' is not there; run simplify again" in capsys.readouterr().err
    (bare / "tiny.pt").write_bytes((place / "run" / "tiny.pt").read_bytes())
    assert run(["export", str(bare)]) == 2
    assert "plan.safetensors: there is no plan" in capsys.readouterr().err


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def cut_to_nothing(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:12])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def with_header(change: Callable[[dict[str, object]], None]) -> Callable[[Path], None]:
    """Return a damage that writes another header, with the right length and checksum."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        length = struct.unpack("<I", data[8:12])[0]
        head = json.loads(zlib.decompress(data[16 : 16 + length]))
        change(head)
        header = zlib.compress(json.dumps(head).encode())
        begin = SIGNATURE + struct.pack("<II", len(header), zlib.crc32(header))
        path.write_bytes(begin + header + data[16 + length :])

    return damage


def grow(head: dict[str, object]) -> None:
    head["tensors"][0]["shape"] = [1 << 20, 1 << 20]  # type: ignore[index]


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, "cut off: [0-9,]+ bytes of numbers, its header says [0-9,]+; fetch it again"),
    "cut in its header": (cut_in_header, "cut off after 40 bytes, in its header; fetch it again"),
    "cut to nothing": (cut_to_nothing, "cut off after 12 bytes; fetch it again"),
    "lengthened": (lengthen, "too long: "),
    "a flipped bit": (lambda path: flip_bit(path, -5), "pool '[a-z0-9]+' fails its CRC check"),
    "a flipped bit in the header": (lambda path: flip_bit(path, 30), "its header fails its CRC check"),
    "a newer form": (
        with_header(lambda head: head.update(schema="kernelsimp.packed/2")),
        "of schema 'kernelsimp.packed/2', this version reads 'kernelsimp.packed/1'; update kernelsimp",
    ),
    "another digest": (
        with_header(lambda head: head.update(sha256="0")),
        "damaged packed checkpoint .the SHA-256 of its tensors is another.",
    ),
    "a tensor that never ends": (with_header(grow), "that would unpack to [0-9,]+; damaged or hostile"),
    "no pools": (with_header(lambda head: head.pop("pools")), "damaged packed checkpoint .'pools'."),
    "no such dtype": (
        with_header(lambda head: head["tensors"][0].update(dtype="load")),
        "there is no dtype 'load'",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_one_line(
    place: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, said = DAMAGES[name]
    path = tmp_path / "net.kspack"
    pack(tiny_state()).save(path)
    damage(path)
    assert run(["scan", str(path), "-q"]) == 2
    told = capsys.readouterr().err
    assert re.search(said, told), told
    assert told.count("\n") == 1


def test_no_flipped_byte_goes_unseen(tmp_path: Path) -> None:
    path = tmp_path / "net.kspack"
    pack({"weight": tiny_state()["stem.weight"]}).save(path)
    whole = path.read_bytes()
    for place_ in range(len(whole)):
        path.write_bytes(whole[:place_] + bytes([whole[place_] ^ 0x10]) + whole[place_ + 1 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_odd_tensors_come_back(tmp_path: Path) -> None:
    state = {
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "nothing": torch.zeros(0, 3),
        "phase": torch.randn(3, 2, dtype=torch.complex64),
        "wide": torch.randn(2, 2, dtype=torch.complex128),
        "half": torch.randn(4, dtype=torch.bfloat16),
        "turned": torch.randn(3, 4).T,
    }
    state["tied"] = state["half"]
    path = tmp_path / "odd.kspack"
    pack(state).save(path)
    back = read_packed(path)
    assert same(back, state)
    assert back["tied"].data_ptr() == back["half"].data_ptr()
    back["turned"][0] = 0  # no two others share memory
    assert torch.equal(back["steps"], state["steps"])


def test_a_sparse_tensor_has_no_packed_form() -> None:
    with pytest.raises(KernelsimpError, match="'weight' is sparse, quantised or empty of values"):
        pack({"weight": torch.eye(3).to_sparse()})


@pytest.mark.parametrize("write", [write_zip, write_legacy, write_safetensors])
def test_what_cannot_be_squeezed_grows_by_little(
    write: Callable[[object, Path], Path], tmp_path: Path
) -> None:
    path = write({"a.weight": torch.randn(64, 64, 3, 3)}, tmp_path / "a.bin")
    assert run(["export", str(path), "--out", str(tmp_path / "a.kspack")]) == 0
    assert (tmp_path / "a.kspack").stat().st_size < path.stat().st_size


def test_a_plan_of_a_transposed_and_a_line_convolution_fits() -> None:
    up, line = torch.randn(4, 2, 3, 3), torch.randn(6, 5, 7)
    mirror = find("mirror-h", (3, 3))
    up = mirror.snap(up)
    line = find("mirror-h", (1, 7)).snap(line.unsqueeze(2)).squeeze(2)
    layers = (
        planned("up", "transposed", (2, 4), (3, 3)),
        planned("line", "dense", (6, 5), (1, 7)),
    )
    state = {"net.up.weight": up, "net.line.weight": line, "net.up.bias": torch.randn(2)}
    packed = pack(state, Plan(("free", "mirror-h"), layers))
    assert packed.size < pack(state).size


def planned(name: str, kind: str, kernels: tuple[int, int], grid: tuple[int, ...]) -> LayerPlan:
    choice, blank = np.ones(kernels, np.int16), np.zeros(kernels, np.bool_)
    dims = np.array([9, 6], np.int16)
    return LayerPlan(name, kind, 1, grid, choice, blank, blank, np.zeros(kernels, np.float32), dims)


def test_a_plan_of_another_network_is_refused() -> None:
    plan = Plan(("free", "mirror-h"), (planned("stem", "dense", (5, 5), (3, 3)),))
    with pytest.raises(KernelsimpError, match=r"it has no 'stem.weight' of that shape; name its own plan"):
        pack(tiny_state(), plan)


def test_what_was_exported_of_the_run_before_is_told(model, tmp_path, capsys):
    out = tmp_path / "run"
    simplify = ["simplify", str(model), "--tolerance", "0.5", "--overwrite", "-q", "--out", str(out)]
    assert run(simplify) == 0
    assert run(["export", str(out), "--to", "packed", "-q"]) == 0
    capsys.readouterr()
    assert run(simplify) == 0
    (line,) = capsys.readouterr().err.splitlines()
    name = f"{model.stem}.kspack"
    assert line == f"warning: {name} in {out}: of the run before, not of this one; export again"
