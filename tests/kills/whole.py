"""Whether a file is whole: every kind that a command writes, by its name, is opened and read to its end."""

import csv
import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from kernelsimp.files import read_sealed
from kernelsimp.models.checkpoint import load_checkpoint

PARTIAL = re.compile(r"\..*\.partial")


def faults_in(folder: Path) -> list[str]:
    """Return what is wrong with the files of a folder; those that are plainly half written are none."""
    return [f"{path}: {fault}" for path in files_of(folder) if (fault := fault_of(path))]


def files_of(folder: Path) -> list[Path]:
    """Return the files that pass for results: neither half written nor locks nor a stage's own shelves."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if not _beside(path.relative_to(folder))]


def partials_of(folder: Path) -> list[Path]:
    """Return what writers have left half written."""
    return [path for path in folder.rglob("*") if PARTIAL.fullmatch(path.name)]


def fault_of(path: Path) -> str:
    """Say what is wrong with a file; nothing where it is whole."""
    read = read_sealed if _is_sealed(path) else READERS.get(path.suffix)
    if read is None and "events.out.tfevents" in path.name:
        read = _read_events
    if read is None:
        return "a file of no known kind"
    try:
        read(path)
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.200}"
    return ""


def digests_of(folder: Path, globs: tuple[str, ...]) -> dict[str, str]:
    """Return a digest of each file, or of the rows of each data set, that the globs name in a folder."""
    found = sorted({path for glob in globs for path in folder.glob(glob)})
    return {str(path.relative_to(folder)): _digest(path) for path in found if not path.name.startswith(".")}


def _digest(path: Path) -> str:
    if path.suffix == ".safetensors" and not _is_sealed(path):  # whose library writes metadata in any order
        return hashlib.sha256("".join(_content(path)).encode()).hexdigest()
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    lines = sorted(line for table in ("networks", "families", "kernels") for line in _rows(path, table))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_sealed(path: Path) -> bool:
    """Say whether a file has its digest behind it: whatever a run goes on from."""
    return path.parent.name == "resume"


def _content(path: Path) -> Iterator[str]:
    with safe_open(path, framework="np") as file:
        yield json.dumps(file.metadata(), sort_keys=True)
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            yield f"{name} {tensor.dtype} {tensor.shape} {hashlib.sha256(tensor.tobytes()).hexdigest()}"


def _rows(folder: Path, table: str) -> Iterator[str]:
    from kernelsimp.report.dataset import Dataset

    for row in Dataset(folder).read(table):
        yield json.dumps({"table": table, **row}, sort_keys=True)


def _beside(path: Path) -> bool:
    hidden = any(PARTIAL.fullmatch(part) for part in path.parts)
    return hidden or path.name in (".lock", ".writable") or path.name.startswith("shelf-")


def _read_text(end: str) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        if not path.read_text(encoding="utf-8").endswith(end):
            raise ValueError(f"does not end in {end!r}")

    return read


def _read_lines(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        json.loads(line)
    if text and not text.endswith("\n"):
        raise ValueError("the last line has no end")


def _read_csv(path: Path) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        if len({len(row) for row in csv.reader(file)}) != 1:
            raise ValueError("rows of several lengths")


def _read_tensors(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            file.get_tensor(name)


def _read_arrays(path: Path) -> None:
    with path.open("rb") as file, np.load(file) as arrays:
        for name in arrays:
            assert arrays[name] is not None


def _read_table(path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.ParquetFile(path).read(use_threads=False)


def _read_events(path: Path) -> None:
    """Go through TensorBoard's records: a length (8 bytes), its CRC (4), the content and its CRC (4)."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        place += 16 + int.from_bytes(data[place : place + 8], "little")
    if not data or place != len(data):
        raise ValueError(f"ends {place - len(data)} bytes early")


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_bytes()),
    ".jsonl": _read_lines,
    ".csv": _read_csv,
    ".html": _read_text("</html>"),
    ".md": _read_text("\n"),
    ".toml": lambda path: tomllib.loads(path.read_text(encoding="utf-8")),
    ".pt": load_checkpoint,
    ".kspack": load_checkpoint,
    ".safetensors": _read_tensors,
    ".npz": _read_arrays,
    ".parquet": _read_table,
}
