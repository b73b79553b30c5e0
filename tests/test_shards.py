"""A network in several files with an index: read as one, and written in the same files."""

import json
from pathlib import Path

import pytest
import torch
from builders import WRITERS, same, tiny_state
from safetensors.torch import load_file
from torch import Tensor, nn

from kernelsimp.cli.main import run
from kernelsimp.errors import CheckpointError
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.settings import ModelSettings


def write_shards(
    folder: Path, container: str, state: dict[str, Tensor] | None = None, **changes: object
) -> Path:
    """Write a network in two files with their index; return the index."""
    folder.mkdir(parents=True)
    state, end = state or tiny_state(), {"safetensors": ".safetensors"}.get(container, ".bin")
    names = list(state)
    files = {f"model-00001-of-00002{end}": names[:3], f"model-00002-of-00002{end}": names[3:]}
    for file, part in files.items():
        WRITERS[container]({name: state[name] for name in part}, folder / file)
    index = folder / ("model.safetensors.index.json" if end != ".bin" else "pytorch_model.bin.index.json")
    where = {name: file for file, part in files.items() for name in part}
    index.write_text(json.dumps({"metadata": {"total_size": 7}, "weight_map": where | changes}))
    (folder / "config.json").write_text('{"model_type": "resnet"}')
    return index


def read_as_a_library_does(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of an index by their files, and prove that each stands where the index says."""
    index = next(folder.glob("*.index.json"))
    where = json.loads(index.read_text())["weight_map"]
    state: dict[str, Tensor] = {}
    for file in set(where.values()):
        path = folder / file
        part = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        assert set(part) == {name for name, home in where.items() if home == file}
        state |= part
    return {name: state[name] for name in where}


@pytest.mark.parametrize("container", WRITERS)
def test_an_index_or_its_folder_is_one_network(container: str, tmp_path: Path, capsys) -> None:
    index = write_shards(tmp_path / "net", container)
    for path in (index, index.parent):
        checkpoint = load_checkpoint(path)
        assert same(dict(checkpoint.tensors), tiny_state())
        assert checkpoint.sha256 == load_checkpoint(index).sha256
        assert run(["scan", str(path), "--json", "-", "-q"]) == 0
        layers = {layer["name"]: layer["kind"] for layer in json.loads(capsys.readouterr().out)["layers"]}
        assert layers == {"stem": "dense", "depthwise": "depthwise"}
    with pytest.raises(CheckpointError, match="SHA-256 is"):
        load_checkpoint(index, ModelSettings(sha256="0" * 64))


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("by_index", [False, True])
def test_it_is_written_in_the_same_files_and_checked(container: str, by_index: bool, tmp_path: Path) -> None:
    index = write_shards(tmp_path / "net", container)
    source, out = index if by_index else index.parent, tmp_path / "run"
    assert run(["simplify", str(source), "--tolerance", "0.6", "--out", str(out), "-q"]) == 0
    written = out / "net"
    assert sorted(path.name for path in written.iterdir()) == sorted(p.name for p in index.parent.iterdir())
    assert json.loads((written / index.name).read_text()) == json.loads(index.read_text())
    assert (written / "config.json").read_text() == (index.parent / "config.json").read_text()
    state, before = read_as_a_library_does(written), tiny_state()
    assert list(state) == list(before)
    changed = {name for name in state if not torch.equal(state[name], before[name])}
    assert changed
    assert changed <= {"stem.weight", "depthwise.weight"}
    for path in (written, written / index.name):
        assert run(["check", str(path), "--baseline", str(out), "-q"]) == 0
        assert (
            run(["check", str(path), "--baseline", str(tmp_path / "b.json"), "--update-baseline", "-q"]) == 0
        )
    assert run(["export", str(out), "--to", "packed", "--out", str(tmp_path / "one.kspack")]) == 0
    assert same(dict(load_checkpoint(tmp_path / "one.kspack").tensors), state)
    name = "stem.weight"
    file = written / json.loads(index.read_text())["weight_map"][name]
    part = load_file(file) if container == "safetensors" else torch.load(file, weights_only=True)
    part = {key: item.clone() for key, item in part.items()}
    part[name].view(-1)[:9] = torch.arange(9.0) ** 2
    WRITERS[container](part, file)
    assert run(["check", str(written), "--baseline", str(out), "-q"]) == 1


def test_a_weight_in_parts_of_two_files_is_folded_into_the_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)) for _ in range(2))
    state = {"beside": torch.zeros(2), **nn.Sequential(first, second).state_dict()}
    index = write_shards(tmp_path / "net", "safetensors", state)
    before = json.loads(index.read_text())["weight_map"]
    names = [f"0.parametrizations.weight.original{part}" for part in (0, 1)]
    assert before[names[0]] != before[names[1]]
    out = tmp_path / "run"
    assert run(["simplify", str(index.parent), "--tolerance", "0.9", "--out", str(out), "-q"]) == 0
    after = read_as_a_library_does(out / "net")
    assert set(after) == {"beside", "0.bias", "0.weight", "1.bias", "1.weight"}
    where = json.loads((out / "net" / index.name).read_text())["weight_map"]
    assert where["0.weight"] == before[names[0]]
    assert run(["check", str(out / "net"), "--baseline", str(out), "-q"]) == 0


def test_one_file_is_made_of_it_beside_the_folder(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "net.v2", "safetensors").parent
    assert run(["export", str(folder), "--to", "safetensors"]) == 0
    one = load_checkpoint(tmp_path / "net.v2.safetensors")
    assert same(dict(sorted(one.tensors.items())), dict(sorted(tiny_state().items())))


def test_a_folder_of_networks_counts_one_in_parts_once(tmp_path: Path, capsys) -> None:
    write_shards(tmp_path / "nets" / "a", "safetensors")
    torch.save(tiny_state(), tmp_path / "nets" / "b.pt")
    assert run(["scan", str(tmp_path / "nets"), "--json", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "b.pt.json"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"a": "model-3.safetensors"},
            "names the file 'model-3.safetensors', which is not there; fetch it too",
        ),
        (
            {"a": "model-00001-of-00002.safetensors"},
            "'a' is not in 'model-00001-of-00002.safetensors', as it says",
        ),
        *(
            ({"a": place}, "no index of shards: expected 'weight_map'")
            for place in ("../model.safetensors", "..", "", "/etc/passwd", "..\\model.safetensors", 3, None)
        ),
    ],
)
def test_what_is_wrong_with_an_index_is_named(changes: dict, words: str, tmp_path: Path, capsys) -> None:
    index = write_shards(tmp_path / "net", "safetensors", **changes)
    assert run(["scan", str(index.parent), "-q"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"kernelsimp: {index}: {words}")
    assert told.count("\n") == 1


def test_an_index_that_is_none_and_a_tensor_in_two_files_are_refused(tmp_path: Path) -> None:
    index = write_shards(tmp_path / "net", "safetensors")
    first = index.parent / "model-00001-of-00002.safetensors"
    second = index.parent / "model-00002-of-00002.safetensors"
    moved = next(iter(load_file(first).items()))
    WRITERS["safetensors"]({**load_file(second), moved[0]: moved[1]}, second)
    with pytest.raises(CheckpointError, match=f"'{moved[0]}' is in '{first.name}' and '{second.name}'"):
        load_checkpoint(index)
    for text in ("[1]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "{", '{"weight_map": 1}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="no index of shards"):
            load_checkpoint(index)


def test_what_the_index_does_not_name_is_read_told_and_kept(tmp_path: Path) -> None:
    index = write_shards(tmp_path / "net", "safetensors")
    content = json.loads(index.read_text())
    name, file = content["weight_map"].popitem()
    index.write_text(json.dumps(content))
    checkpoint = load_checkpoint(index)
    assert checkpoint.warnings == (
        f"{index}: does not name '{name}', which its files hold; read all the same",
    )
    assert same(dict(checkpoint.tensors), tiny_state())
    checkpoint.save(tmp_path / "new" / index.name)
    assert read_as_a_library_does(tmp_path / "new").keys() == tiny_state().keys()
    assert name in load_file(tmp_path / "new" / file)


def test_no_output_lands_in_the_folder_that_is_read(tmp_path: Path, capsys) -> None:
    index = write_shards(tmp_path / "net", "safetensors")
    for source, out in ((index.parent, tmp_path), (index.parent, index.parent / "run"), (index, tmp_path)):
        assert run(["simplify", str(source), "--tolerance", "0.6", "--out", str(out), "-q"]) == 2
        assert "would overwrite" in capsys.readouterr().err
    other = index.with_name("pytorch_model.bin.index.json")
    other.write_text(index.read_text())
    assert load_checkpoint(index.parent).warnings == (
        f"{index.parent}: also holds '{other.name}'; give that file to read it",
    )
