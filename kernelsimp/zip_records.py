"""What the records of a zip archive may become, looked at in its directory before one is inflated.

A record that is stored takes what it takes in the file. A deflated one may claim a thousand times that:
numbers are inflated to `GROWTH` times what the file holds, and texts and pickles, of which readers make
larger things, to `TEXT_GROWTH` times.
"""

import re
import zipfile
from pathlib import Path

from kernelsimp.error_text import short
from kernelsimp.errors import CheckpointError

GROWTH, ALWAYS = 64, 1 << 26
"""All records together may become so many times the file, and so many bytes at any rate."""

TEXT_GROWTH, TEXT_ALWAYS = 16, 1 << 24
"""The same of one record that holds no numbers."""

_NUMBERS = re.compile(r"(^|/)(data|constants|tensors)/([^/]+/)*[^/.]+$|\.npy$")


def check_records(path: Path) -> tuple[str, ...]:
    """Check the sizes of a zip file's records, then every record by its CRC-32; return remarks.

    PyTorch loads a flipped bit silently. Files written with `set_crc32_options(False)` carry zeros in
    place of checksums: those are passed with a remark. Raises `CheckpointError` naming the bad record.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if len({item.filename for item in records}) != len(records):  # readers differ in which they take
                raise zipfile.BadZipFile("it holds two records of one name")
            check_sizes(archive)
            if not any(item.CRC for item in records):
                return (f"{path}: written without checksums, so damage cannot be seen",)
            bad = archive.testzip()
    except Exception as error:
        raise CheckpointError(f"{path}: damaged zip archive ({short(error)}); fetch it again") from error
    if bad is not None:
        raise CheckpointError(
            f"{path}: record '{short(bad)}' fails its CRC check, the file is damaged; fetch it again"
        )
    return ()


def check_sizes(archive: zipfile.ZipFile) -> None:
    """Raise `zipfile.BadZipFile` where the directory of an archive says that it becomes too much."""
    records = archive.infolist()
    for item in records:
        most = max(TEXT_ALWAYS, TEXT_GROWTH * item.compress_size)
        if item.file_size > most and _NUMBERS.search(item.filename) is None:
            raise zipfile.BadZipFile(
                f"record '{short(item.filename, 40)}' of {item.compress_size:,} bytes would inflate to "
                f"{item.file_size:,}"
            )
    size, whole = (sum(getattr(item, name) for item in records) for name in ("compress_size", "file_size"))
    if whole > max(ALWAYS, GROWTH * size):
        raise zipfile.BadZipFile(f"its {size:,} bytes would inflate to {whole:,}")
