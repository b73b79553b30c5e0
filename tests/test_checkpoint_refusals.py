"""What is no checkpoint, is damaged, or is hostile: one line each, and nothing runs."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import (
    WRITERS,
    deflated,
    flip_bit,
    position_of,
    same,
    tiny_net,
    tiny_state,
    write_bombs,
    write_legacy,
    write_zip,
)
from saying import file_refusal

from kernelsimp.errors import CheckpointError
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.settings import ModelSettings

EXPECTED = "expected a PyTorch (.pt, .pth, .bin, .ckpt) or .safetensors checkpoint"


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    write_zip(tiny_state(), tmp_path / "nett.pt")
    assert file_refusal(path) == f"FILE: no such file; did you mean '{tmp_path / 'nett.pt'}'?"
    assert file_refusal(tmp_path / "nowhere" / "net.pt") == "FILE: no such file; check the path"
    assert file_refusal(tmp_path) == "FILE: is a directory; give one checkpoint file"
    path.write_bytes(b"")
    assert file_refusal(path) == "FILE: the file is empty; fetch it again"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    assert file_refusal(path) == "FILE: this is a git-LFS pointer, not the file itself; run 'git lfs pull'"
    for page in ("<!DOCTYPE html><html>no</html>", "  <html><body>404</body></html>"):
        path.write_text(page)
        assert file_refusal(path) == (
            "FILE: this is an HTML page, not a checkpoint; the download went wrong; fetch the file itself"
        )
    path.write_text("Hello,\nworld")
    assert file_refusal(path) == f"FILE: this is text ('Hello, world'), not a checkpoint; {EXPECTED}"
    path.write_bytes(bytes(range(200, 256)) * 50)
    assert file_refusal(path) == f"FILE: not a checkpoint: begins with c8 c9 ca cb cc cd ce cf; {EXPECTED}"


FOREIGN = {
    b"\x1f\x8b\x08": "a gzip archive; unpack it and give the checkpoint inside",
    b"\x89HDF\r\n": "an HDF5 file (Keras); convert it to a PyTorch state dict",
    b"\x89PNG\r\n": f"a PNG image; {EXPECTED}",
    b"\x93NUMPY": "a NumPy array; save a state dict with torch.save",
}


@pytest.mark.parametrize("signature", FOREIGN)
def test_known_foreign_formats_are_named(signature: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(signature + bytes(600))
    assert file_refusal(path) == f"FILE: this is {FOREIGN[signature]}"


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    np.savez(tmp_path / "arrays.npz", a=np.zeros(2))
    shutil.move(tmp_path / "arrays.npz", path)
    assert file_refusal(path) == f"FILE: a zip archive without a PyTorch state (it holds a.npy); {EXPECTED}"


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files(container: str, share: float, tmp_path: Path) -> None:
    path = WRITERS[container](tiny_state(), tmp_path / "net.pt")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert file_refusal(path).startswith("FILE: ")
    assert file_refusal(path).endswith("fetch it again")


@pytest.mark.parametrize("container", ["legacy", "safetensors"])
def test_a_file_that_grew(container: str, tmp_path: Path) -> None:
    path = WRITERS[container](tiny_state(), tmp_path / "net.pt")
    with path.open("ab") as file:
        file.write(b"more")
    assert file_refusal(path).endswith("fetch it again")


def test_a_flipped_bit_in_a_zip_fails_its_crc(tmp_path: Path) -> None:
    state = tiny_state()
    path = write_zip(state, tmp_path / "net.pt")
    flip_bit(path, position_of(path, state["stem.weight"].numpy().tobytes()), bit=1)
    assert (
        file_refusal(path)
        == "FILE: record 'net/data/0' fails its CRC check, the file is damaged; fetch it again"
    )


@pytest.mark.parametrize("container", ["legacy", "safetensors"])
def test_damaged_headers(container: str, tmp_path: Path) -> None:
    path = WRITERS[container](tiny_state(), tmp_path / "net.safetensors")
    flip_bit(path, 5, bit=6)
    assert file_refusal(path).endswith("fetch it again")


def test_every_single_flip_is_one_line_or_loads(tmp_path: Path) -> None:
    """Whatever bit of the pickled part of a legacy file is hit: a refusal in one line, or tensors."""
    path = write_legacy({"a.weight": torch.ones(1, 1, 3, 3)}, tmp_path / "net.pt")
    data = path.read_bytes()
    outcomes = []
    for position in range(0, len(data), 3):
        path.write_bytes(data)
        flip_bit(path, position, bit=position % 8)
        outcomes.append(_outcome(path))
    assert all("\n" not in words for words in outcomes)
    assert "" in outcomes
    assert any(outcomes)


def _outcome(path: Path) -> str:
    """Return the words of the refusal, none if the file loads."""
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    return ""


def test_a_zip_without_checksums_is_read_with_a_remark(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    try:
        torch.serialization.set_crc32_options(False)
        write_zip(tiny_state(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    checkpoint = load_checkpoint(path)
    assert checkpoint.warnings == (f"{path}: written without checksums, so damage cannot be seen",)


def test_a_compressed_zip_is_not_mapped(tmp_path: Path) -> None:
    path = deflated(write_zip(tiny_state(), tmp_path / "net.pt"))
    assert same(dict(load_checkpoint(path).tensors), tiny_state())


def test_sha256(tmp_path: Path) -> None:
    path = write_zip(tiny_state(), tmp_path / "net.pt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_checkpoint(path, ModelSettings(sha256=digest.upper())).sha256 == digest
    wrong = "0" * 64
    assert file_refusal(path, sha256=wrong) == (
        f"FILE: SHA-256 is {digest}, expected {wrong}; fetch the file again"
    )
    assert file_refusal(path, sha256="abc") == (
        "--sha256 'abc' is no SHA-256; expected 64 hexadecimal digits"
    )


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_full_pickled_module_with_trust(container: str, tmp_path: Path) -> None:
    path = WRITERS[container]({"model": tiny_net(), "epoch": 2}, tmp_path / "net.pt")
    checkpoint = load_checkpoint(path, ModelSettings(trust_pickle=True))
    assert same(dict(checkpoint.tensors), tiny_state())
    assert len(checkpoint.warnings) == 1
    assert "--trust-pickle ran code from builders.TinyNet" in checkpoint.warnings[0]
    checkpoint.save(tmp_path / "again.pt")
    assert load_checkpoint(tmp_path / "again.pt").wrapper == "model"  # a state dict now: no code left in it


def test_a_pickle_bomb_does_not_go_off(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for path in write_bombs(tmp_path, marker):
        assert file_refusal(path) == (
            f"FILE: a full pickled object that would run code from {os.system.__module__}.system; save its "
            "state_dict() instead, or pass --trust-pickle if you trust where it came from"
        )
        assert not marker.exists()


def test_trusting_a_pickle_whose_code_is_not_here(tmp_path: Path, monkeypatch) -> None:
    path = write_zip(tiny_net(), tmp_path / "net.pt")
    monkeypatch.delattr("builders.TinyNet")
    words = file_refusal(path, trust_pickle=True)
    assert words.startswith("FILE: the pickled object does not load (")
    assert words.endswith("; run where its code can be imported, or save its state_dict()")


def test_payloads_without_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    for payload, what in [
        ([1, 2], "a list"),
        (torch.ones(2, 3), "a single tensor (2, 3)"),
        ({}, "an empty dict"),
        ({"epoch": 1, "lr": 0.5}, "a dict with 2 entries ('epoch', 'lr')"),
    ]:
        write_zip(payload, path)
        assert file_refusal(path) == f"FILE: holds {what}, no state dict; save model.state_dict()"


def test_a_broken_pickle_is_not_met_with_advice_to_run_it(tmp_path: Path) -> None:
    path = write_legacy(tiny_state(), tmp_path / "net.pt")
    path.write_bytes(b"\x80\x02\xff" + path.read_bytes()[3:])
    assert file_refusal(path) == (
        "FILE: cannot be read (its pickle is broken); the file is damaged or truncated; fetch it again"
    )
