"""Writing files so that a reader never sees half of one.

Every output is written beside its final name and renamed into place; on any failure the partial
file is removed and the old one, if there was one, stays as it was.
"""

import os
from collections.abc import Callable
from pathlib import Path

from kernelsimp.errors import KernelsimpError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary neighbour of `path`, then rename it to `path`.

    Raises `KernelsimpError` with the operating system's reason where the disk refuses.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        partial.chmod(mode)  # some writers make files that only their owner may read
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        raise KernelsimpError(f"{path}: cannot write: {_reason(error)}; choose another place") from error
    finally:
        if _exists(partial):
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write_atomically(path, lambda partial: _write_text(partial, text))


def _write_text(partial: Path, text: str) -> None:
    partial.write_text(text, encoding="utf-8")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a file stands where a folder should be
        return False


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:200]
