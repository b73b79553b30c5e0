"""Tensors out of a zip archive's raw records, built from plain bytes and checked numbers."""

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernelsimp.errors import CheckpointError


class Archive:
    """A zip file whose records stand under one folder, whose name is its own affair."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file
        self._names = {name.split("/", 1)[-1]: name for name in file.namelist()}
        self._names.update({name: name for name in file.namelist() if "/" not in name})

    def __contains__(self, record: str) -> bool:
        return record in self._names

    def records(self, begins: str, ends: str) -> list[str]:
        """List the records by the beginning and end of their names, in file order."""
        return [name for name in self._names if name.startswith(begins) and name.endswith(ends)]

    def size(self, record: str) -> int:
        """Return how many bytes a record has; raises KeyError where there is none."""
        return self._file.getinfo(self._names[record]).file_size

    def read(self, record: str) -> bytes:
        """Return a record's bytes; raises KeyError where there is none."""
        return self._file.read(self._names[record])

    def unpickle(self, record: str) -> Any:
        """Return a record that torch.save wrote, through the restricted unpickler."""
        return torch.load(io.BytesIO(self.read(record)), map_location="cpu", weights_only=True)


def flat(data: bytes, dtype: torch.dtype) -> Tensor:
    """Return raw bytes as a vector; raises ValueError where they are no whole number of elements."""
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def strided_view(storage: Tensor, sizes: Sequence[int], strides: Sequence[int], offset: int) -> Tensor:
    """Return a view of a vector; raises `CheckpointError` where it would reach beyond the end."""
    try:
        return torch.as_strided(storage, tuple(sizes), tuple(strides), offset)
    except RuntimeError as error:
        what = f"a tensor of sizes {tuple(sizes)} in a record of {storage.numel()} numbers"
        raise CheckpointError(f"{what}; the file is damaged, fetch it again") from error
