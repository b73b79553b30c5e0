"""A checkpoint file at one moment: what is digested, read and mapped are the same bytes.

A file that another process cuts short while it is mapped ends this process with a signal that nobody can
catch, and one that is written over is a mixture. So only private copies are mapped, and a file that changes
between the first look and the last is refused.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kernelsimp.errors import CheckpointError
from kernelsimp.files import temporary_file


@contextmanager
def steady(path: Path) -> Iterator[str]:
    """Yield the SHA-256 of a file that is read within the block.

    Raises `CheckpointError` where it cannot be read, or changed before the block ended.
    """
    before = _stamp(path)
    yield file_sha256(path)
    if _stamp(path) != before:
        raise CheckpointError(f"{path}: changed while it was read; wait until it is written, then try again")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits; raises `CheckpointError` if unreadable."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror}") from error


@contextmanager
def private_copy(path: Path) -> Iterator[Path | None]:
    """Yield a copy that nobody else knows, to be mapped; None where the temporary folder has no room for it.

    It has no name any more when the block ends, and goes when its last map goes.
    """
    with ExitStack() as stack:
        copy: Path | None = None
        try:
            copy = stack.enter_context(temporary_file())
            with path.open("rb") as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except OSError:
            copy = None
        yield copy


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        told = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror}") from error
    return (told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns)
