"""Say what a file is from its first bytes, before anything tries to load it.

The content decides, not the ending; only ONNX, which has no signature, goes by its name. What is no
checkpoint gets one line that says what it is instead.
"""

import stat
import zipfile
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from kernelsimp.errors import CheckpointError

Format = Literal[
    "zip", "legacy", "safetensors", "packed", "coded", "onnx", "pt2", "torchscript", "sharded", "dcp"
]

EXPECTED = "expected a PyTorch (.pt, .pth, .bin, .ckpt) or .safetensors checkpoint"

_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a git-LFS pointer, not the file itself", "run 'git lfs pull'"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it and give the checkpoint inside"),
    (0, b"BZh", "a bzip2 archive", "unpack it and give the checkpoint inside"),
    (0, b"\xfd7zXZ", "an xz archive", "unpack it and give the checkpoint inside"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it and give the checkpoint inside"),
    (257, b"ustar", "a tar archive", "unpack it and give the checkpoint inside"),
    (0, b"\x89HDF", "an HDF5 file (Keras)", "convert it to a PyTorch state dict"),
    (0, b"\x93NUMPY", "a NumPy array", "save a state dict with torch.save"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it to ONNX"),
    (0, b"GGUF", "a GGUF file", EXPECTED),
    (0, b"\x89PNG", "a PNG image", EXPECTED),
    (0, b"\xff\xd8\xff", "a JPEG image", EXPECTED),
    (0, b"%PDF", "a PDF document", EXPECTED),
)
"""(offset, signature, what it is, what to do)."""

_HEAD = 4096

PACKED = b"kspack"
"""What a packed checkpoint begins with, of whatever version."""

CODED = b"kscode"
"""What a coded checkpoint begins with."""


def identify(path: Path) -> Format:
    """Return the container format of the checkpoint at `path`.

    Raises `CheckpointError` for a missing file, a directory, an unreadable or empty file, and for one whose
    content is recognisably something else.
    """
    head = _head(path)
    for offset, signature, what, advice in _FOREIGN:
        if head[offset : offset + len(signature)] == signature:
            raise CheckpointError(f"{path}: this is {what}; {advice}")
    if path.suffix.lower() == ".onnx":
        _refuse_text(path, head)
        return "onnx"
    if head[:4] == b"PK\x03\x04":
        return _zip_format(path)
    if head[:6] == PACKED:
        return "packed"
    if head[:6] == CODED:
        return "coded"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "legacy"
    if _safetensors_header(head) or path.suffix.lower() == ".safetensors":
        return "safetensors"
    _refuse_text(path, head)
    raise CheckpointError(f"{path}: not a checkpoint: begins with {head[:8].hex(' ')}; {EXPECTED}")


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(f"{path}: is a directory; give one checkpoint file")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe that nobody writes to would never be opened
            raise CheckpointError(f"{path}: is a pipe or a device, no file; save it to one first")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file{_neighbour(path)}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror}; check its permissions") from error
    if not head:
        raise CheckpointError(f"{path}: the file is empty; fetch it again")
    return head


def _neighbour(path: Path) -> str:
    """Return a hint at a file with nearly this name in the same place."""
    names = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, names, n=1)
    return f"; did you mean '{path.with_name(near[0])}'?" if near else "; check the path"


def _safetensors_header(head: bytes) -> bool:
    """A safetensors file opens with the header's length (8 bytes, little-endian) and its JSON."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40


def _refuse_text(path: Path, head: bytes) -> None:
    try:
        text = head[: _HEAD - 4].decode("utf-8").lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError:
        return
    if any(ord(letter) < 32 and letter not in "\t\r\n\f" for letter in text):
        return
    if text[:15].lower().startswith(("<!doctype html", "<html")):
        advice = "the download went wrong; fetch the file itself"
        raise CheckpointError(f"{path}: this is an HTML page, not a checkpoint; {advice}")
    begins = " ".join(text[:40].split())
    raise CheckpointError(f"{path}: this is text ('{begins}'), not a checkpoint; {EXPECTED}")


def _zip_format(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            # a cut file may end in the directory of a smaller archive that it holds
            if names and min(item.header_offset for item in archive.infolist()) != 0:
                raise zipfile.BadZipFile("its directory is missing")
    except Exception as error:
        raise CheckpointError(
            f"{path}: truncated or damaged zip archive ({error}); fetch it again"
        ) from error
    inner = {name.split("/", 1)[-1] for name in names} | set(names)
    if "archive_format" in inner or "serialized_exported_program.json" in inner:
        return "pt2"
    if "data.pkl" not in inner:
        raise CheckpointError(f"{path}: a zip archive without a PyTorch state ({_sample(names)}); {EXPECTED}")
    return "torchscript" if "constants.pkl" in inner else "zip"


def _sample(names: Sequence[str]) -> str:
    if not names:
        return "it is empty"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"it holds {', '.join(names[:3])}{more}"
