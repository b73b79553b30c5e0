"""Exported networks (ONNX, .pt2, TorchScript) give the same kernels as the network they came from."""

import ast
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import Bomb, flip_bit, position_of
from networks import Tied
from saying import Heard, file_refusal
from torch import Tensor, nn

from kernelsimp.commands import prune, simplify
from kernelsimp.errors import CheckpointError, KernelsimpError
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.models.exported import Convolution
from kernelsimp.models.layers import bank_from_checkpoint, bank_from_model, check_weights
from kernelsimp.models.scannable import open_to_scan
from kernelsimp.models.torchscript import convolution_of
from kernelsimp.settings import ModelSettings
from kernelsimp.settings_file import settle


class Every(nn.Module):
    """One convolution of each kind; `again` runs twice, `twin` shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(3, 3, 3, padding=1)
        self.depthwise = nn.Conv2d(3, 6, (3, 5), stride=(1, 2), groups=3)
        self.up = nn.ConvTranspose2d(6, 4, 3, groups=2)
        self.line = nn.Conv1d(4, 5, 7)
        self.inner = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False), nn.BatchNorm2d(2))
        self.head = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.up(self.depthwise(self.again(self.again(images))))
        pooled = self.line(features.flatten(2)).mean(2)
        return self.head(pooled) + self.inner(images[:, :1]).mean((2, 3))


@pytest.fixture(scope="module")
def network() -> Every:
    torch.manual_seed(0)
    return Every().eval()


IMAGES = torch.zeros(1, 3, 9, 9)


def write_traced(network: nn.Module, path: Path) -> None:
    torch.jit.trace(network, IMAGES).save(str(path))


def write_scripted(network: nn.Module, path: Path) -> None:
    torch.jit.script(network).save(str(path))


def write_frozen(network: nn.Module, path: Path) -> None:
    torch.jit.freeze(torch.jit.script(network)).save(str(path))


def write_pt2(network: nn.Module, path: Path) -> None:
    torch.export.save(torch.export.export(network, (IMAGES,)), path)


def write_decomposed(network: nn.Module, path: Path) -> None:
    torch.export.save(torch.export.export(network, (IMAGES,)).run_decompositions(), path)


WRITERS: dict[str, Callable[[nn.Module, Path], None]] = {
    "traced": write_traced,
    "scripted": write_scripted,
    "frozen": write_frozen,
    "exported": write_pt2,
    "decomposed": write_decomposed,
}


@pytest.fixture(scope="module")
def folder(network: Every, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network in every exported form, written once."""
    folder = tmp_path_factory.mktemp("exported")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the writers are deprecated; files that they wrote live on
        for name, write in WRITERS.items():
            write(network, folder / f"{name}.{'pt2' if name in ('exported', 'decomposed') else 'pt'}")
    return folder


def form(folder: Path, name: str) -> Path:
    return next(folder.glob(f"{name}.pt*"))


@pytest.mark.parametrize("name", WRITERS)
def test_the_graph_gives_exact_kinds_and_the_same_kernels(name: str, folder: Path, network: Every) -> None:
    checkpoint = load_checkpoint(form(folder, name))
    bank = bank_from_checkpoint(checkpoint)
    exact = {layer.name: layer for layer in bank_from_model(network).layers}
    assert len(bank.layers) == len(exact) == 5
    if name == "frozen":  # names are lost; batch norm is folded into the convolution before it
        found = {(layer.kind, layer.groups, layer.grid) for layer in bank.layers}
        assert found == {(layer.kind, layer.groups, layer.grid) for layer in exact.values()}
        return
    for layer in bank.layers:
        other = exact.pop(layer.name)
        assert (layer.kind, layer.groups, layer.kind_source) == (other.kind, other.groups, "architecture")
        assert layer.weight_shape == other.weight_shape
        assert torch.equal(layer.kernels, other.kernels)
    assert not exact
    names = {item.name for item in bank.skipped} | {f"{layer.name}.weight" for layer in bank.layers}
    assert names == set(checkpoint.tensors)


@pytest.mark.parametrize("name", WRITERS)
def test_the_graph_gives_strides(name: str, folder: Path) -> None:
    strides = open_to_scan(form(folder, name), ModelSettings()).strides
    if name == "frozen":  # names are lost, and some strides with them
        assert set(strides.values()) == {1, 2}
        return
    assert sorted(strides.values()) == [1, 1, 1, 1, 2]
    assert strides["depthwise"] == 2


def test_a_stride_that_the_text_hides_is_not_known() -> None:
    call = ast.parse("torch.conv2d(x, weight, None, stride)").body[0].value  # type: ignore[attr-defined]
    assert convolution_of(call) == Convolution(1, False, None)


@pytest.mark.parametrize("name", ["traced", "exported"])
def test_exported_files_are_only_read(name: str, folder: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(form(folder, name))
    with pytest.raises(KernelsimpError) as caught:
        checkpoint.save(tmp_path / "out.pt")
    what = f"{checkpoint.format} files are only read, not written"
    assert str(caught.value) == (
        f"{checkpoint.path}: {what}; simplify the PyTorch checkpoint it was exported from"
    )


@pytest.mark.parametrize("command", [simplify.simplify, prune.prune])
def test_what_cannot_be_written_is_refused_before_anything_is_done(
    command: Callable[..., object], folder: Path, tmp_path: Path
) -> None:
    settings, heard = settle({"plan": {"tolerance": 0.2}}), Heard()
    with pytest.raises(KernelsimpError, match="only read, not written"):
        command(form(folder, "traced"), settings, tmp_path / "run", heard)
    assert not (tmp_path / "run").exists()
    assert not heard.stages


@pytest.mark.parametrize("name", ["traced", "scripted", "exported"])
@pytest.mark.filterwarnings("ignore")
def test_a_tied_weight_counts_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / ("net.pt2" if name == "exported" else "net.pt")
    WRITERS[name](Tied(), path)
    bank = bank_from_checkpoint(load_checkpoint(path))
    assert [layer.name for layer in bank.layers] == ["first"]
    reasons = {item.name: item.reason for item in bank.skipped}
    assert reasons["second.weight"] == "the same tensor as first.weight"


def repacked(source: Path, path: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Path:
    """Write a zip archive again with other records."""
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in change(records).items():
            archive.writestr(name, data)
    return path


def ending(records: dict[str, bytes], tail: str) -> str:
    return next(name for name in records if name.endswith(tail))


@pytest.mark.parametrize("layout", ["pickled weights", "flat"])
def test_older_layouts_of_pt2(layout: str, folder: Path, network: Every, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "state.pt")
    state = (tmp_path / "state.pt").read_bytes()

    def change(records: dict[str, bytes]) -> dict[str, bytes]:
        graph = records[ending(records, "models/model.json")]
        if layout == "flat":
            return {"serialized_exported_program.json": graph, "serialized_state_dict.pt": state}
        return {"n/archive_format": b"pt2", "n/models/model.json": graph, "n/data/weights/model.pt": state}

    path = repacked(form(folder, "exported"), tmp_path / "old.pt2", change)
    kinds = {layer.name: layer.kind for layer in bank_from_checkpoint(load_checkpoint(path)).layers}
    assert kinds == {layer.name: layer.kind for layer in bank_from_model(network).layers}


def test_torchscript_whose_text_cannot_be_read_falls_back_to_shapes(folder: Path, tmp_path: Path) -> None:
    def change(records: dict[str, bytes]) -> dict[str, bytes]:
        return {name: b"def (" if name.endswith(".py") else data for name, data in records.items()}

    path = repacked(form(folder, "scripted"), tmp_path / "net.pt", change)
    bank = bank_from_checkpoint(load_checkpoint(path))
    assert {layer.kind_source for layer in bank.layers} == {"weights"}
    assert "3-D; if it is a Conv1d, pass --arch" in {item.reason for item in bank.skipped}


# ---------------------------------------------------------------- refusals


def read_bank(path: Path) -> KernelBank:
    return bank_from_checkpoint(load_checkpoint(path))


def test_hostile_archives_do_not_go_off(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    bomb = pickle.dumps(Bomb(marker), protocol=2)

    def script(records: dict[str, bytes]) -> dict[str, bytes]:
        return {name: bomb if name.endswith("/data.pkl") else data for name, data in records.items()}

    def program(records: dict[str, bytes]) -> dict[str, bytes]:
        torch.save({"a": Bomb(marker)}, tmp_path / "state.pt")
        state = (tmp_path / "state.pt").read_bytes()
        graph = records[ending(records, "models/model.json")]
        return {"serialized_exported_program.json": graph, "serialized_state_dict.pt": state}

    words = file_refusal(repacked(form(folder, "traced"), tmp_path / "net.pt", script), read_bank)
    assert words == (
        f"FILE: a TorchScript archive that asks for {__import__('os').system.__module__}.system; "
        "save a state dict instead"
    )
    assert file_refusal(
        repacked(form(folder, "exported"), tmp_path / "net.pt2", program), read_bank
    ).startswith("FILE: not a valid .pt2 archive (")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["traced", "exported"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_truncated_archives(name: str, share: float, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / form(folder, name).name
    data = form(folder, name).read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert file_refusal(path, read_bank).startswith("FILE: truncated or damaged zip archive (")


@pytest.mark.parametrize("name", ["traced", "exported"])
def test_a_flipped_bit_fails_the_crc(name: str, folder: Path, network: Every, tmp_path: Path) -> None:
    path = tmp_path / form(folder, name).name
    path.write_bytes(form(folder, name).read_bytes())
    weight = network.depthwise.weight.detach().numpy().tobytes()
    flip_bit(path, position_of(path, weight), bit=3)
    assert "fails its CRC check, the file is damaged; fetch it again" in file_refusal(path, read_bank)


def test_an_archive_whose_sizes_lie(folder: Path, tmp_path: Path) -> None:
    def change(records: dict[str, bytes]) -> dict[str, bytes]:
        name = ending(records, "model_weights_config.json")
        table = json.loads(records[name])
        table["config"]["again.weight"]["tensor_meta"]["sizes"][0]["as_int"] = 4000
        return {**records, name: json.dumps(table).encode()}

    path = repacked(form(folder, "exported"), tmp_path / "net.pt2", change)
    what = "a tensor of sizes (4000, 3, 3, 3) in a record of 81 numbers"
    assert file_refusal(path, read_bank) == f"FILE: {what}; the file is damaged, fetch it again"


def test_a_pt2_without_a_graph(folder: Path, tmp_path: Path) -> None:
    path = repacked(form(folder, "exported"), tmp_path / "net.pt2", lambda _: {"n/archive_format": b"pt2"})
    assert (
        file_refusal(path, read_bank) == "FILE: no exported graph in it; export again with torch.export.save"
    )


# ---------------------------------------------------------------- ONNX


def onnx_model(nodes: list[object], weights: dict[str, np.ndarray]) -> bytes:
    """A serialised ONNX model of these nodes and initialisers."""
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        nodes, "g", [value], [], [numpy_helper.from_array(array, name) for name, array in weights.items()]
    )
    return bytes(helper.make_model(graph).SerializeToString())


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    from onnx import helper, numpy_helper

    random = np.random.default_rng(0)
    shapes = {"stem.weight": (4, 3, 3, 3), "dw": (4, 1, 5, 5), "up": (4, 3, 2, 2), "line": (5, 4, 7)}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights["half"] = random.normal(size=(2, 4, 3, 3)).astype(np.float16)
    weights["table"] = np.zeros((1, 2, 3, 4), np.float32)
    weights["shape"] = np.array([1, -1], np.int64)
    constant = numpy_helper.from_array(random.normal(size=(6, 2, 3, 3)).astype(np.float32))
    branch = helper.make_graph([helper.make_node("Conv", ["x", "half"], ["h"])], "b", [], [])
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"]),
        helper.make_node("Conv", ["a", "dw"], ["b"], group=4, strides=[2, 1]),
        helper.make_node("ConvTranspose", ["b", "up"], ["c"], group=2),
        helper.make_node("Conv", ["c", "line"], ["d"]),
        helper.make_node("Constant", [], ["made"], value=constant),
        helper.make_node("Conv", ["d", "made"], ["e"], group=2),
        helper.make_node("Conv", ["d", "computed"], ["f"]),
        helper.make_node("If", ["e"], ["g"], then_branch=branch, else_branch=branch),
    ]
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_model(nodes, weights))
    return path


def test_onnx_graphs_give_exact_kinds(onnx_file: Path) -> None:
    checkpoint = load_checkpoint(onnx_file)
    bank = bank_from_checkpoint(checkpoint)
    found = {layer.name: (layer.kind, layer.groups, tuple(layer.kernels.shape)) for layer in bank.layers}
    assert found == {
        "stem": ("dense", 1, (4, 3, 3, 3)),
        "dw": ("depthwise", 4, (4, 1, 5, 5)),
        "up": ("transposed", 2, (6, 2, 2, 2)),
        "line": ("dense", 1, (5, 4, 1, 7)),
        "half": ("dense", 1, (2, 4, 3, 3)),
        "made": ("grouped", 2, (6, 2, 3, 3)),
    }
    assert {item.name: item.reason for item in bank.skipped} == {
        "computed": "its weight is no constant of the file",
        "table": "4-D, but no convolution uses it",
        "shape": "a vector: bias or normalisation",
    }
    strides = open_to_scan(onnx_file, ModelSettings()).strides
    assert strides == {name: 2 if name == "dw" else 1 for name in found}
    told = f"{onnx_file}: 1 convolution passed over: computed (its weight is no constant of the file)"
    assert checkpoint.warnings == bank.warnings == (told,)


def test_damaged_and_empty_onnx_files(onnx_file: Path) -> None:
    whole = onnx_file.read_bytes()
    onnx_file.write_bytes(b"")
    assert file_refusal(onnx_file, read_bank) == "FILE: the file is empty; fetch it again"
    onnx_file.write_bytes(onnx_model([], {}))
    assert (
        file_refusal(onnx_file, read_bank)
        == "FILE: an empty ONNX model without a single node; export it again"
    )
    onnx_file.write_bytes(whole[: len(whole) // 2])
    assert file_refusal(onnx_file, read_bank).startswith("FILE: not a valid ONNX file (")
    onnx_file.write_text("<html>404</html>")
    assert file_refusal(onnx_file, read_bank).startswith("FILE: this is an HTML page, not a checkpoint; ")
    onnx_file.write_bytes(bytes(range(256)) * 8)
    assert file_refusal(onnx_file, read_bank).startswith("FILE: not a valid ONNX file (")


def test_an_onnx_whose_names_are_no_text(onnx_file: Path) -> None:
    onnx_file.write_bytes(onnx_file.read_bytes().replace(b"table", b"t\xffble"))
    assert file_refusal(onnx_file, read_bank).startswith("FILE: not a valid ONNX file (")


def test_an_onnx_without_convolutions(tmp_path: Path) -> None:
    from onnx import helper

    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.zeros((2, 3))}))
    assert file_refusal(path, read_bank) == (
        "FILE: no convolution found among 1 tensors (1 2-D); expected a 4-D '*.weight'"
    )


def test_without_the_onnx_package(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(onnx_file)
    assert str(caught.value) == "reading .onnx needs a package: pip install onnx onnxruntime"


def test_a_published_detector(shared_data: Path) -> None:
    bank = bank_from_checkpoint(load_checkpoint(shared_data / "checkpoints" / "picodet_s_320.onnx"))
    check_weights(bank)
    counts: dict[tuple[str, tuple[int, ...]], int] = {}
    for layer in bank.spatial:
        key = (layer.kind, layer.grid)
        counts[key] = counts.get(key, 0) + layer.count
    assert counts == {("depthwise", (5, 5)): 1_344, ("depthwise", (3, 3)): 1_724, ("dense", (3, 3)): 72}
