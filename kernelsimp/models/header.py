"""What a checkpoint says of its tensors before a number is read: names, shapes, and what reading it takes.

Safetensors have a header, zip files a pickle of their own that names shapes; both are read without their
numbers. Other formats tell only once they are read, which takes at least the size of their file.
"""

import json
import math
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernelsimp.errors import KernelsimpError
from kernelsimp.models.folders import files_of
from kernelsimp.models.identify import Format, identify
from kernelsimp.models.reading import load_mapped
from kernelsimp.models.wrappers import find_state_dict, is_array, value_at
from kernelsimp.settings import ModelSettings
from kernelsimp.zip_records import check_sizes

Shape = tuple[int, ...]

MOST_HEADER = 100_000_000
"""Bytes of the longest header that the format of safetensors allows."""


@dataclass(frozen=True)
class Header:
    """What is known of a network before it is read: shapes as stored, by tensor; `held` bytes of reading it.

    `shapes` is empty where the format tells none.
    """

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    held: int = 0


def header_of(path: Path, settings: ModelSettings) -> Header:
    """Return what the files of a network say of it, without reading a number.

    A file that cannot be read so tells nothing here; the reading says what is wrong with it.
    """
    shapes: dict[str, Shape] = {}
    held = 0
    for file in files_of(path):
        if file.suffix == ".json":  # an index
            continue
        try:
            kind = identify(file)
            shapes |= _shapes(file, kind, settings)
            held += _held(file, kind)
        except Exception:  # damaged, hostile or foreign
            return Header()
    return Header(shapes, held)


def convolutions_in(header: Header) -> dict[str, Shape]:
    """Return the shapes that may be convolutions: 3-D to 5-D, of a name that is a weight's or part of one."""
    words = ("weight", "weight_v", "weight_orig", "original", "original0", "original1")
    return {
        name: shape
        for name, shape in header.shapes.items()
        if 3 <= len(shape) <= 5 and name.rpartition(".")[2] in words
    }


def _shapes(path: Path, kind: Format, settings: ModelSettings) -> Mapping[str, Shape]:
    if kind == "safetensors":
        return safetensors_shapes(path)
    if kind != "zip" or _inflated(path):
        return {}
    payload = load_mapped(path)
    try:
        state: Mapping[Any, Any] = value_at(payload, find_state_dict(payload, settings.weights, path).keys)
    except KernelsimpError:
        return {}
    found = {str(name): value for name, value in state.items() if is_array(value)}
    if any(math.prod(value.shape) * value.itemsize > path.stat().st_size for value in found.values()):
        return {}  # numbers that are repeated: the reading refuses them, or writes them out
    return {name: tuple(value.shape) for name, value in found.items()}


def _inflated(path: Path) -> int:
    """Return the bytes that a zip file becomes; 0 where all its records are stored as they are."""
    with zipfile.ZipFile(path) as archive:
        check_sizes(archive)
        records = archive.infolist()
    deflated = any(item.compress_type != zipfile.ZIP_STORED for item in records)
    return sum(item.file_size for item in records) if deflated else 0


def safetensors_shapes(path: Path) -> dict[str, Shape]:
    """Return the shapes that the header of a safetensors file names.

    Raises ValueError where it has none, or names more than the file holds.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MOST_HEADER:
            raise ValueError(f"its header would be {length:,} bytes")
        head = json.loads(file.read(length))
    entries = {str(name): entry for name, entry in head.items() if name != "__metadata__"}
    if any(int(entry["data_offsets"][1]) > size for entry in entries.values()):
        raise ValueError("it is cut off")
    shapes = {name: tuple(int(side) for side in entry["shape"]) for name, entry in entries.items()}
    if any(math.prod(shape) > 2 * size for shape in shapes.values()):  # the smallest numbers take half a byte
        raise ValueError("it names more numbers than there are")
    return shapes


def _held(path: Path, kind: Format) -> int:
    """Return the bytes of memory that reading a file takes, beside maps of a private copy.

    What is mapped counts for nothing: the system takes it back when it needs to.
    """
    size = path.stat().st_size
    if kind == "zip" and (inflated := _inflated(path)):
        return inflated
    if kind not in ("safetensors", "zip"):
        return size
    return 0 if size < shutil.disk_usage(tempfile.gettempdir()).free else 2 * size
