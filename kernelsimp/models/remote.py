"""Networks at addresses, through fsspec: a local file with what a scan reads of them.

Of a safetensors file only its header and the tensors of more or fewer than two axes are fetched, by ranges;
matrices stay holes of a sparse file, since no kernel is in them. Anything else is fetched whole. What changes
meanwhile is refused.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from kernelsimp.error_text import short
from kernelsimp.errors import CheckpointError, KernelsimpError, how_to_install
from kernelsimp.files import temporary_folder

SAFETENSORS = ".safetensors"
NEAR = 1 << 16
"""Ranges with fewer bytes between them are fetched as one."""

MOST_HEADER = 100_000_000
"""Bytes of the longest header that the format allows."""

CHANGING = (
    "size",
    "ETag",
    "etag",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
    "modified",
    "generation",
)
"""What of an address's facts tells one state of it from another, where it is told."""


@dataclass(frozen=True)
class Fetched:
    """A local file that stands for an address; `fetched` bytes of its `size` came, and their SHA-256."""

    path: Path
    sha256: str
    fetched: int
    size: int


def is_address(text: str) -> bool:
    """Say whether a source is an address of fsspec's: `https://`, `s3://`, `hf://`, `file://`...

    >>> is_address("s3://bucket/net.pt"), is_address("nets/net.pt"), is_address("timm:resnet18")
    (True, False, False)
    """
    scheme, mark, _ = text.partition("://")
    return bool(mark) and scheme.isalnum()


def file_system(address: str) -> tuple[Any, str]:
    """Return the file system of an address and the path in it.

    Raises `KernelsimpError` where fsspec, or what it needs for this scheme, is not installed.
    """
    try:
        fsspec = import_module("fsspec")
    except ImportError as error:
        raise KernelsimpError(f"{address}: an address needs fsspec; {how_to_install('remote')}") from error
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise KernelsimpError(f"{address}: {short(error)}") from error
    return found


def files_at(address: str, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the addresses of the checkpoints that match a pattern or stand in a folder, or the one file."""
    system, path = file_system(address)
    if PurePosixPath(path).suffix.lower() in suffixes and "*" not in path:
        return (address,)
    try:
        found = system.glob(path) if "*" in path else system.find(path)
    except Exception as error:  # each file system has errors of its own
        raise KernelsimpError(f"{address}: cannot look there: {short(error)}") from error
    wanted = sorted(item for item in found if PurePosixPath(item).suffix.lower() in suffixes)
    return tuple(system.unstrip_protocol(item) for item in wanted)


def stamp_at(address: str) -> str | None:
    """Return what tells one state of an address from another; None where it does not answer."""
    try:
        system, path = file_system(address)
        return _stamp(system, path)
    except Exception:  # the scan says why
        return None


@contextmanager
def fetched(address: str) -> Iterator[Fetched]:
    """Yield a local file with what a scan reads of an address; it goes when the block ends.

    Raises `CheckpointError`, in one line, where it cannot be had or changed while it was read.
    """
    system, path = file_system(address)
    with temporary_folder() as folder:
        place = folder / (PurePosixPath(path).name or "network")
        try:
            before = _stamp(system, path)
            count = _fetch(system, path, place)
            system.invalidate_cache()
            after = _stamp(system, path)
        except KernelsimpError:
            raise
        except Exception as error:  # each file system has errors of its own
            reason = error.__cause__ or error  # "no such file" is said of a host that does not answer, too
            raise CheckpointError(f"{address}: cannot be had: {short(reason)}") from error
        if before != after:
            raise CheckpointError(
                f"{address}: changed while it was read; wait until it is written, then try again"
            )
        with place.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield Fetched(place, digest, count, place.stat().st_size)


def _stamp(system: Any, path: str) -> str:
    told = system.info(path)
    return json.dumps({key: str(told[key]) for key in CHANGING if told.get(key) is not None}, sort_keys=True)


def _fetch(system: Any, path: str, place: Path) -> int:
    """Fetch what a scan reads; return how many bytes."""
    if place.suffix.lower() != SAFETENSORS:
        system.get_file(path, str(place))
        return place.stat().st_size
    size = int(system.info(path).get("size") or 0)
    head = _range(system, path, 0, 8)
    length = int.from_bytes(head, "little")
    if not 2 <= length <= min(size - 8, MOST_HEADER):
        raise CheckpointError(
            f"{path}: no safetensors file: its header would be {length:,} of {size:,} bytes"
        )
    header = _range(system, path, 8, 8 + length)
    count = 8 + length
    with place.open("wb") as file:
        file.write(head + header)
        for start, stop in wanted_ranges(header, path):
            start, stop = 8 + length + start, 8 + length + stop
            file.seek(start)
            file.write(_range(system, path, start, stop))
            count += stop - start
        file.truncate(size)
    return count


def wanted_ranges(header: bytes, where: str) -> list[tuple[int, int]]:
    """Return the ranges of a safetensors file's data that hold anything but matrices, near ones joined.

    Raises `CheckpointError` for a header that tells no offsets.
    """
    try:
        tensors = {name: item for name, item in json.loads(header).items() if name != "__metadata__"}
        spans = sorted(
            tuple(map(int, item["data_offsets"])) for item in tensors.values() if len(item["shape"]) != 2
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{where}: a safetensors header that cannot be read: {short(error)}") from error
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and start - joined[-1][1] < NEAR:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return [(start, stop) for start, stop in joined if stop > start]


def _range(system: Any, path: str, start: int, stop: int) -> bytes:
    data: bytes = system.cat_file(path, start=start, end=stop)
    if len(data) != stop - start:
        raise CheckpointError(
            f"{path}: gave {len(data):,} bytes where {stop - start:,} were asked for: no ranges, or cut; "
            "download the file and scan that"
        )
    return data
