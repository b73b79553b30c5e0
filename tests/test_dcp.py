"""Folders of torch.distributed.checkpoint: read without running anything, written as one plain file."""

import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from builders import same, tiny_state
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from kernelsimp.cli.main import run
from kernelsimp.errors import CheckpointError
from kernelsimp.models.checkpoint import load_checkpoint


def write_dcp(folder: Path, **beside: object) -> Path:
    """Write the tiny network, under a key, as a training in one process does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": tiny_state(), **beside}, checkpoint_id=str(folder))
    return folder


def rewrite(folder: Path, change) -> None:
    """Change the description of a folder."""
    path = folder / ".metadata"
    described = pickle.loads(path.read_bytes())
    change(described)
    path.write_bytes(pickle.dumps(described))


def test_it_is_read_as_it_was_saved(tmp_path: Path, capsys) -> None:
    folder = write_dcp(tmp_path / "dcp", epoch=3, optimizer={"step": torch.ones(2)})
    checkpoint = load_checkpoint(folder)
    assert checkpoint.wrapper == "model"
    assert dict(checkpoint.tensors).keys() == tiny_state().keys()
    assert same({name: checkpoint.tensors[name] for name in tiny_state()}, tiny_state())
    assert checkpoint.dropped == ("optimizer",)
    assert run(["scan", str(folder), "-q"]) == 0
    told = capsys.readouterr().err
    assert (
        f"{folder}: a torch.distributed.checkpoint folder; it is written back as one plain .pt file" in told
    )
    assert f"{folder}: left out, as no tensors: epoch" in told


def test_it_is_simplified_to_one_plain_file_and_checked(tmp_path: Path) -> None:
    folder, out = write_dcp(tmp_path / "nets" / "dcp"), tmp_path / "run"
    assert run(["simplify", str(folder), "--tolerance", "0.6", "--out", str(out), "-q"]) == 0
    written = out / "dcp.pt"
    state = torch.load(written, weights_only=True)["model"]
    assert state.keys() == tiny_state().keys()
    assert not torch.equal(state["stem.weight"], tiny_state()["stem.weight"])
    assert run(["check", str(written), "--baseline", str(out), "-q"]) == 0
    assert run(["export", str(out), "--to", "safetensors", "--out", str(tmp_path / "one.safetensors")]) == 0
    assert run(["scan", str(tmp_path / "nets"), "--json", str(tmp_path / "json"), "-q"]) == 0
    assert (tmp_path / "json" / "dcp.json").is_file()


def test_a_tensor_in_parts_of_two_processes_is_put_together(tmp_path: Path) -> None:
    folder = tmp_path / "dcp"
    folder.mkdir()
    whole = torch.arange(8 * 2 * 3 * 3.0).reshape(8, 2, 3, 3)
    chunks, storage = [], {}
    for rank, (begin, end) in enumerate(((0, 5), (5, 8))):
        torch.save(whole[begin:end].clone(), folder / f"__{rank}_0.distcp")
        offset, size = torch.Size([begin, 0, 0, 0]), torch.Size([end - begin, 2, 3, 3])
        chunks.append(ChunkStorageMetadata(offset, size))
        length = (folder / f"__{rank}_0.distcp").stat().st_size
        storage[MetadataIndex("conv.weight", offset)] = _StorageInfo(f"__{rank}_0.distcp", 0, length)
    entry = TensorStorageMetadata(TensorProperties(torch.float32), whole.shape, chunks)
    described = Metadata({"conv.weight": entry}, storage_data=storage)
    (folder / ".metadata").write_bytes(pickle.dumps(described))
    assert same(dict(load_checkpoint(folder).tensors), {"conv.weight": whole})
    (folder / "__1_0.distcp").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"the file '__1_0.distcp' is not there; fetch it too"):
        load_checkpoint(folder)
    described.state_dict_metadata["conv.weight"] = TensorStorageMetadata(
        entry.properties, whole.shape, chunks[:1]
    )
    (folder / ".metadata").write_bytes(pickle.dumps(described))
    with pytest.raises(CheckpointError, match=r"the parts of 'conv.weight' do not make the whole of it"):
        load_checkpoint(folder)


class Bomb:
    """Runs a function of the file's when it is unpickled by pickle.load."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return Path.write_text, (self.place, "boom")


class Loud:
    """The same by a function that has no object."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.place}",)


@pytest.mark.parametrize("kind", [Bomb, Loud])
@pytest.mark.parametrize("where", ["metadata", "bytes", "alone"])
def test_nothing_of_it_is_run(kind: type, where: str, tmp_path: Path) -> None:
    fuse = tmp_path / "fuse"
    folder = write_dcp(tmp_path / "dcp", **({"beside": kind(fuse)} if where == "bytes" else {}))
    if where == "metadata":
        rewrite(folder, lambda described: setattr(described, "planner_data", kind(fuse)))
    if where == "alone":
        (folder / ".metadata").write_bytes(pickle.dumps(kind(fuse)))
    assert run(["scan", str(folder), "-q"]) == (0 if where == "bytes" else 2)
    assert not fuse.exists()


def test_a_part_that_is_a_pickle_is_not_run(tmp_path: Path) -> None:
    fuse, folder = tmp_path / "fuse", write_dcp(tmp_path / "dcp")
    part = next(folder.glob("*.distcp"))
    data = part.read_bytes()
    torch.save(Loud(fuse), tmp_path / "bomb")
    part.write_bytes((tmp_path / "bomb").read_bytes() + data)
    rewrite(
        folder, lambda described: [setattr(item, "offset", 0) for item in described.storage_data.values()]
    )
    assert run(["scan", str(folder), "-q"]) == 2
    assert not fuse.exists()


def out_of_the_folder(described: Metadata) -> None:
    next(iter(described.storage_data.values())).relative_path = "../other.distcp"


def compressed(described: Metadata) -> None:
    next(iter(described.storage_data.values())).transform_descriptors = ["zstd"]


def too_large(described: Metadata) -> None:
    entry = described.state_dict_metadata["model.stem.weight"]
    entry.size = entry.chunks[0].sizes = torch.Size([2**40, 2**20, 3, 3])


def unsized(described: Metadata) -> None:
    described.state_dict_metadata["model.stem.weight"].size = ("a",)


def without_places(described: Metadata) -> None:
    described.storage_data = {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (out_of_the_folder, "is said to be out of the folder, in '../other.distcp'"),
        (compressed, "is compressed; save it without extensions"),
        (too_large, "damaged torch.distributed.checkpoint folder"),
        (unsized, "a size that is no number"),
        (without_places, "damaged torch.distributed.checkpoint folder"),
    ],
)
def test_what_is_wrong_with_a_description_is_one_line(change, words: str, tmp_path: Path, capsys) -> None:
    folder = write_dcp(tmp_path / "dcp")
    rewrite(folder, change)
    assert run(["scan", str(folder), "-q"]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_a_damaged_part_or_description_is_one_line(tmp_path: Path, capsys) -> None:
    folder = write_dcp(tmp_path / "dcp")
    part = next(folder.glob("*.distcp"))
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    assert run(["scan", str(folder), "-q"]) == 2
    (folder / ".metadata").write_bytes(b"\x80\x04junk")
    assert run(["scan", str(folder), "-q"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert all("fetch it again" in line for line in told)
