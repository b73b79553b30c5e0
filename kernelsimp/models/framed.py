"""The frame of our own files: a signature, a checked header, the bytes behind it; read whole or refused.

Eight bytes of signature, the length and the CRC-32 of the header (little-endian uint32 each), the header
(deflated JSON), then whatever a form puts there. Every header has the schema, the keys under which the state
dict stood, and the SHA-256 of the tensors that must come out.
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernelsimp.error_text import short
from kernelsimp.errors import CheckpointError, KernelsimpError
from kernelsimp.files import write_atomically
from kernelsimp.models.digest import tensors_sha256

MOST_GROWTH, ALWAYS = 256, 1 << 26
"""A file that says it becomes more than so many times its size, and so many bytes, is refused."""

HEADER_GROWTH, HEADER_ALWAYS = 64, 1 << 22
"""The same of its header, which lists the tensors in words that are much alike."""


@dataclass(frozen=True, eq=False)
class FramedFile:
    """A file in memory, in the parts that are written one behind the other."""

    parts: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(map(len, self.parts))

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomically(path, self._write)

    def _write(self, partial: Path) -> None:
        with partial.open("wb") as file:
            file.writelines(self.parts)


@dataclass(frozen=True)
class Form:
    """One form of file: its `word` in sentences, what reading it is called, its first bytes, its schema.

    `further` schemas are read, too, and a header may name one of them in place of `schema`.
    """

    word: str
    undo: str
    signature: bytes
    schema: str
    further: tuple[str, ...] = ()

    @staticmethod
    def most_header(size: int) -> int:
        """Return how many bytes a header may become that takes `size` in its file."""
        return max(HEADER_ALWAYS, HEADER_GROWTH * size)

    def frame(self, head: Mapping[str, Any], parts: Iterable[bytes]) -> tuple[bytes, ...]:
        """Return the parts of a file with this header, its schema added."""
        text = json.dumps({"schema": self.schema, **head}, separators=(",", ":"))
        header = zlib.compress(text.encode(), 9)
        return (self.signature + struct.pack("<II", len(header), zlib.crc32(header)), header, *parts)

    def read(
        self, path: Path, state_of: Callable[[Path, Mapping[str, Any], bytes], dict[str, Tensor]]
    ) -> dict[str, Any]:
        """Return the state dict that `state_of` makes of header and bytes, under the keys where it stood.

        Raises `CheckpointError` where the file is cut off, damaged, of a newer form or hostile.
        """
        try:
            data = path.read_bytes()
            head, begin = self._header(path, data)
            state = state_of(path, head, data[begin:])
            if tensors_sha256(state) != head["sha256"]:
                raise ValueError("the SHA-256 of its tensors is another")
            payload: dict[str, Any] = state
            for key in reversed(head["keys"]):
                payload = {str(key): payload}
        except CheckpointError:
            raise
        except MemoryError as error:
            raise CheckpointError(f"{path}: too large to {self.undo} in this machine's memory") from error
        except Exception as error:  # whatever a damaged file makes of the code above
            raise CheckpointError(
                f"{path}: damaged {self.word} checkpoint ({short(error)}); fetch it again"
            ) from error
        return payload

    def _header(self, path: Path, data: bytes) -> tuple[dict[str, Any], int]:
        """Return the header and where it ends; a newer form and a cut file have words of their own."""
        begin = len(self.signature) + 8
        if len(data) < begin:
            raise CheckpointError(f"{path}: cut off after {len(data)} bytes; fetch it again")
        if not data.startswith(self.signature):
            raise CheckpointError(
                f"{path}: a {self.word} form that this version does not know; update kernelsimp"
            )
        length, crc = struct.unpack("<II", data[len(self.signature) : begin])
        header = data[begin : begin + length]
        if len(header) < length:
            raise CheckpointError(f"{path}: cut off after {len(data):,} bytes, in its header; fetch it again")
        if zlib.crc32(header) != crc:
            raise CheckpointError(
                f"{path}: its header fails its CRC check, the file is damaged; fetch it again"
            )
        text = inflated(header, self.most_header(len(header)))
        head = json.loads(text)
        if not isinstance(head, dict):
            raise ValueError("its header is no object")
        if head.get("schema") not in (self.schema, *self.further):
            found = str(head.get("schema"))[:60]
            raise CheckpointError(
                f"{path}: of schema {found!r}, this version reads '{self.schema}'; update kernelsimp"
            )
        return head, begin + length

    def check_growth(self, path: Path, size: int, whole: int) -> None:
        """Raise `CheckpointError` where `size` bytes would become too many bytes, `whole`."""
        if whole > max(MOST_GROWTH * size, ALWAYS):
            raise CheckpointError(
                f"{path}: {size:,} bytes that would {self.undo} to {whole:,}; damaged or hostile"
            )


def inflated(data: bytes, size: int) -> bytes:
    """Undo deflate; raises ValueError where that gives more than `size` bytes."""
    whole = zlib.decompressobj().decompress(data, size + 1)
    if len(whole) > size:
        raise ValueError(f"a part that inflates beyond {size:,} bytes")
    return whole


def shared_memory(tensor: Tensor) -> object:
    """Return what tensors have in common that are one and the same in memory; None where there is nothing."""
    place = tensor.data_ptr()
    return (place, tensor.dtype, tuple(tensor.shape), tensor.stride()) if place else None


def dtype_name(name: str, tensor: Tensor) -> str:
    """Return how a header spells a tensor's dtype; raises `KernelsimpError` where it has no plain cells."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise KernelsimpError(f"'{name}' is sparse, quantised or empty of values: it has no packed form")
    return spelled(tensor.dtype)


def spelled(dtype: torch.dtype) -> str:
    """Return a dtype's name, such as float32."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """Return the dtype that a header names; raises ValueError where there is none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"there is no dtype '{name}'")
    return dtype
