"""Writing files so that a reader never sees half of one, and running other people's code from files.

Every output is written beside its final name and renamed into place; on any failure the partial
file is removed and the old one, if there was one, stays as it was.
"""

import glob
import hashlib
import importlib.util
import json
import os
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from kernelsimp.error_text import kind_and_words, short
from kernelsimp.errors import DamagedError, KernelsimpError, did_you_mean
from kernelsimp.run_lock import is_running

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T", bound="np.generic")

FORCE_TENSORS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""The variable of torch's that makes `weights_only` true wherever it is not."""

SEAL = b"\nsha256:"
SEALED = len(SEAL) + 64
"""What stands behind the content of a sealed file, and its length with the digest."""

LONGEST_NAME = 255
"""Bytes of a file's name on every system that we know."""

TEMPORARY = ".kernelsimp-"
"""What the names of temporary files and folders begin with."""

LARGE = 1 << 18
"""Arrays of more entries are spilled to a file."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary neighbour of `path`, then rename it to `path`.

    Raises `KernelsimpError` with the operating system's reason where the disk refuses.
    """
    partial = path.with_name(partial_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, partial_name(path.name).removesuffix(_ending()))
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        partial.chmod(mode)  # some writers make files that only their owner may read
        partial.replace(path)
    except Exception as error:
        if not _is_refusal(error):
            raise
        raise KernelsimpError(f"{path}: cannot write: {_reason(error)}; choose another place") from error
    finally:
        if _exists(partial):
            partial.unlink()


def partial_name(name: str) -> str:
    """Return what a file is called while it is written: by whom, and no longer than a name may be."""
    ending = _ending()
    if len(os.fsencode(name)) + len(ending) + 1 > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f".{name}{ending}"


def _ending() -> str:
    """Return how the names of what this process has not finished end."""
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return f".{host}-{os.getpid()}.partial"


def sweep(folder: Path, begin: str) -> None:
    """Remove what processes of this host that are gone have left half written under names that begin so."""
    host = _ending().rpartition("-")[0]
    for left in folder.glob(f"{glob.escape(begin)}*{host}-*.partial"):
        pid = left.name.rpartition("-")[2].removesuffix(".partial")
        if pid.isdecimal() and not is_running(int(pid)):
            _remove(left)


def remove_partials(folder: Path) -> None:
    """Remove what writers that were killed have left in `folder` and below."""
    for partial in list(folder.rglob(".*.partial")):
        _remove(partial)


def _remove(left: Path) -> None:
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
        return
    with suppress(OSError):  # another process was quicker, or it is another user's
        left.unlink()


@contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """Yield a folder that goes when the block ends, in `beside` or where temporary files are.

    Those of processes that were killed go, too.
    """
    place = beside or Path(tempfile.gettempdir())
    sweep(place, TEMPORARY)
    with tempfile.TemporaryDirectory(dir=place, prefix=TEMPORARY, suffix=_ending()) as name:
        yield Path(name)


@contextmanager
def temporary_file() -> Iterator[Path]:
    """Yield an empty file whose name goes when the block ends; its maps stay.

    Those of processes that were killed go, too.
    """
    sweep(Path(tempfile.gettempdir()), TEMPORARY)
    number, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=_ending())
    os.close(number)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary folder beside `path`, then put it in the place of `path`.

    Raises `KernelsimpError` with the operating system's reason where the disk refuses.
    """
    partial = path.with_name(partial_name(path.name))
    try:
        partial.mkdir(parents=True)
        write(partial)
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
    except OSError as error:
        raise KernelsimpError(f"{path}: cannot write: {_reason(error)}; choose another place") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data`, whole or not at all."""
    write_atomically(path, lambda partial: _write_bytes(partial, data))


def write_sealed(path: Path, write: Callable[[Path], None]) -> None:
    """Write as `write_atomically` does, with a SHA-256 of the content behind it for `read_sealed`."""

    def sealed(partial: Path) -> None:
        write(partial)
        with partial.open("r+b") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0, os.SEEK_END)
            file.write(SEAL + digest.encode())

    write_atomically(path, sealed)


def write_sealed_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with its SHA-256 behind it."""
    write_sealed(path, lambda partial: _write_bytes(partial, text.encode()))


def read_sealed(path: Path) -> bytes:
    """Return what `write_sealed` was given.

    Raises `DamagedError` where the content is not what was written, and OSError where it cannot be read.
    """
    whole = path.read_bytes()
    content, mark, digest = whole[:-SEALED], whole[-SEALED : -2 * 32], whole[-2 * 32 :]
    if mark != SEAL or hashlib.sha256(content).hexdigest().encode() != digest:
        raise DamagedError(f"{path}: damaged: its content is not what was written")
    return content


def read_tensor_file(path: Path) -> tuple[bytes, dict[str, str]]:
    """Return the bytes of a safetensors file and its metadata; nothing is mapped.

    Raises OSError where it cannot be read and ValueError where it has no header.
    """
    data = path.read_bytes()
    return data, tensor_file_metadata(data)


def tensor_file_metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file's bytes; raises ValueError where there is no header."""
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found = head.get("__metadata__") or {} if isinstance(head, dict) else {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError("its metadata is no text by name")
    return found


def spill(array: "NDArray[T]") -> "NDArray[T]":
    """Return the array; a large one as a map of a nameless temporary file, which goes when the array goes.

    A scan keeps numbers of every kernel, and a network of 10 GB has 300 million of them.
    """
    if array.size <= LARGE:
        return array
    import numpy as np

    try:
        with tempfile.TemporaryFile() as file:
            array.tofile(file)
            file.flush()
            return np.memmap(file, dtype=array.dtype, mode="r+", shape=array.shape)
    except OSError:  # no room: it stays where it is
        return array


def key_of(*known: object) -> str:
    """Return 16 digits for the name of a file, which tell what was made from `known` from anything else."""
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def _write_bytes(partial: Path, data: bytes) -> None:
    partial.write_bytes(data)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a file stands where a folder should be
        return False


def _is_refusal(error: Exception) -> bool:
    """Say whether a disk may have refused: torch and safetensors have words of their own for it."""
    from safetensors import SafetensorError

    return isinstance(error, OSError | RuntimeError | SafetensorError)


def _reason(error: Exception) -> str:
    if isinstance(error, FileExistsError):  # a folder to write in is no folder
        return f"{short(error.filename, 200)} is no folder"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return short(reason, 200)


def user_function(text: str) -> Callable[..., Any]:
    """Run the file of `file.py:callable` as a module and return the function that it names.

    Raises `KernelsimpError` where the file or the function is missing, and where the file raises.
    """
    file, _, name = text.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise KernelsimpError(f"{path}: no such file; expected file.py:callable")
    try:
        module = run_file(path)
    except (Exception, SystemExit) as error:  # the user's code
        raise KernelsimpError(f"{path}: {kind_and_words(error, 200)}; mend the file") from error
    function = getattr(module, name, None)
    if not callable(function):
        own = {key for key, item in vars(module).items() if callable(item) and not key.startswith("_")}
        hint = did_you_mean(name, own) if own else ""
        tail = hint if hint.startswith("; did") else "; expected file.py:callable"
        raise KernelsimpError(f"{path}: no function '{name}'{tail}")
    return function  # type: ignore[no-any-return]


def run_file(path: Path) -> ModuleType:
    """Run a Python file as a module that can import its neighbours; whatever it raises comes out."""
    recipe = importlib.util.spec_from_file_location(f"_kernelsimp_user_{path.stem}", path)
    if recipe is None or recipe.loader is None:
        raise KernelsimpError(f"{path}: not a Python file; expected file.py:callable")
    module = importlib.util.module_from_spec(recipe)
    before = sys.modules.get(recipe.name)
    sys.modules[recipe.name] = module  # dataclasses and pickling look it up there
    try:
        with importing_from(path.resolve().parent):
            recipe.loader.exec_module(module)
    except BaseException:
        del sys.modules[recipe.name]
        if before is not None:
            sys.modules[recipe.name] = before
        raise
    return module


@contextmanager
def tensors_only() -> Iterator[None]:
    """Have every `torch.load` within the block, other packages' too, refuse what is more than tensors."""
    before = os.environ.get(FORCE_TENSORS)
    os.environ[FORCE_TENSORS] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE_TENSORS]
        if before is not None:
            os.environ[FORCE_TENSORS] = before


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Let a user's code import its neighbours within the block, and leave no compiled copies beside them."""
    leaves_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.dont_write_bytecode = leaves_none
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's own warnings about old formats and defaults to itself within the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
