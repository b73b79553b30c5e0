"""The coded form of a checkpoint, `.kscode`: weights as integers times a step, in an adaptive code.

Behind the frame of `framed` stands one stream a tensor. The header says of each tensor what it is:

- `integers`: the code of `kernels.integer_coding`, in the order of `coded`; a value is one float32 product of
  integer and step, cast to the tensor's dtype;
- `kernels`: the code of `kernels.kernel_coding`, kernels by the free numbers of the structures in a `menu`; a
  value is one float32 product of a whole number and the step; `tables` of the header turn cells into parts,
  and as many `drawings` as are named there stand in front of the stream (only such a file is of schema 2);
- `fill`: one value; `same`: the tensor of another name; `half`: float16; `raw`: its bytes; both deflated.

Decoding is integers alone up to that product, so it gives the same bits everywhere; the header has the
SHA-256 of what must come out.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernelsimp.errors import CheckpointError
from kernelsimp.kernels.coded_tensor import CodedTensor
from kernelsimp.kernels.integer_bases import Table
from kernelsimp.kernels.kernel_coding import CodedKernels, KernelForm, decode_kernels, encode_kernels
from kernelsimp.models.digest import tensors_sha256
from kernelsimp.models.framed import Form, FramedFile, dtype_name, dtype_named, inflated, shared_memory
from kernelsimp.models.identify import CODED
from kernelsimp.models.stored_order import canonical, stored_order

SIGNATURE = CODED + b"1\n"
SCHEMA = "kernelsimp.coded/1"

DRAWINGS_SCHEMA = "kernelsimp.coded/2"
"""Of files in which drawings stand once; what has none is written as ever."""

FORM = Form("coded", "decode", SIGNATURE, SCHEMA, (DRAWINGS_SCHEMA,))

CODED_KINDS = ("integers", "kernels")

HALF_ERROR = 1e-3
"""Vectors that no layer takes up go into 16 bits where that moves none of them by a larger share."""


@dataclass(frozen=True, eq=False)
class Layout:
    """How a matrix (outputs, cells of a filter) is stored: as a convolution of some kind and groups."""

    transposed: bool = False
    groups: int = 1

    def stored(self, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the weight of the stored `shape`."""
        if len(shape) <= 2:
            return matrix.reshape(shape)
        grid = shape[2:] if len(shape) > 3 else (1, *shape[2:])
        kind = "transposed" if self.transposed else "dense"
        return stored_order(matrix.reshape(len(matrix), -1, *grid), kind, self.groups, shape)


@dataclass(frozen=True, eq=False)
class CodedFile(FramedFile):
    """A coded checkpoint in memory; `kept` names what went in whole, in file order.

    `streams` has the bytes of the others, and `weights` how many numbers each has.
    """

    kept: tuple[str, ...] = ()
    streams: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, int] = field(default_factory=dict)


Integers = CodedTensor | CodedKernels

Coded = Mapping[str, tuple[Integers, Layout]]
"""What is coded by integers, by name, in the order of coding."""


def code_state(
    state: Mapping[str, Tensor], coded: Coded, keys: Sequence[str] = (), *, halve: bool = False
) -> CodedFile:
    """Return the file of a state dict whose tensors are already what `coded` decodes to.

    One that is not, bit for bit, goes in whole; so does what is not in `coded`. `keys` is where the state
    dict stood in its file; with `halve`, vectors that are not coded may go in as 16 bits. Raises
    `KernelsimpError` for a tensor without plain cells.
    """
    streams, tables = _code_integers(state, coded), list[Table]()
    entries, parts, kept, seen = list[dict[str, Any]](), list[bytes](), list[str](), dict[object, int]()
    for place, (name, tensor) in enumerate(state.items()):
        entry: dict[str, Any] = {"name": name, "dtype": dtype_name(name, tensor), "shape": list(tensor.shape)}
        twin = seen.setdefault(shared_memory(tensor) or name, place)
        if twin != place:
            entry |= {"kind": "same", "as": twin}
        elif name in streams:
            entry |= _integers_entry(coded[name], tables)
            parts.append(streams[name])
        elif (value := _filled_with(tensor)) is not None:
            entry |= {"kind": "fill", "value": value}
        else:
            kind, data = _whole(tensor, halve=halve)
            entry["kind"] = kind
            parts.append(data)
            kept.append(name)
        if entry["kind"] in (*CODED_KINDS, "half", "raw"):
            entry |= {"bytes": len(parts[-1]), "crc": zlib.crc32(parts[-1])}
        entries.append(entry)
    places = {entry["name"]: place for place, entry in enumerate(entries)}
    order = [places[name] for name in streams if entries[places[name]]["kind"] in CODED_KINDS]
    head: dict[str, Any] = {"keys": list(keys), "coded": order, "tensors": entries}
    if any("drawings" in entry for entry in entries):
        head["schema"] = DRAWINGS_SCHEMA
    if tables:
        head["tables"] = [[int(table.square), *table.turns] for table in tables]
    head["sha256"] = tensors_sha256(
        {name: _decoded_half(state[name], entries[places[name]]) for name in state}
    )
    sizes = {name: len(data) for name, data in streams.items()}
    return CodedFile(
        FORM.frame(head, parts), tuple(kept), sizes, {name: state[name].numel() for name in sizes}
    )


def _code_integers(state: Mapping[str, Tensor], coded: Coded) -> dict[str, bytes]:
    from kernelsimp.kernels.integer_coding import encode, new_memory

    memory, streams, seen = new_memory(), dict[str, bytes](), set[object]()
    for name, (item, layout) in coded.items():
        tensor = state[name]
        twin = shared_memory(tensor) or name
        value = numbers_of(item, layout, tensor)
        if twin not in seen and _bytes(value) == _bytes(tensor):
            streams[name] = (
                encode_kernels(item, memory)
                if isinstance(item, CodedKernels)
                else encode(item.values, memory)
            )
            seen.add(twin)
    return streams


def numbers_of(item: Integers, layout: Layout, like: Tensor) -> Tensor:
    """Return the tensor that integers stand for, of the shape and the dtype of `like`."""
    return layout.stored(torch.from_numpy(item.numbers()), tuple(like.shape)).to(like.dtype).contiguous()


def _integers_entry(coded: tuple[Integers, Layout], tables: list[Table]) -> dict[str, Any]:
    item, layout = coded
    entry: dict[str, Any] = {"kind": "integers", "step": int(np.float32(item.step).view(np.uint32))}
    if isinstance(item, CodedKernels):
        entry |= {"kind": "kernels", "menu": list(item.menu)}
        if item.table is not None:
            if item.table not in tables:
                tables.append(item.table)
            entry["table"] = tables.index(item.table)
        if item.drawings is not None:
            entry["drawings"] = len(item.drawings.cells)
    if layout.transposed or layout.groups > 1:
        entry["layout"] = [int(layout.transposed), layout.groups]
    return entry


def _filled_with(tensor: Tensor) -> str | None:
    """Return the bytes of the one value of all cells, in hexadecimal digits; None where there are several."""
    data, width = _bytes(tensor), tensor.element_size()
    return data[:width].hex() if data and data == data[:width] * (len(data) // width) else None


def _whole(tensor: Tensor, *, halve: bool) -> tuple[str, bytes]:
    half = _as_half(tensor) if halve else None
    data = _bytes(tensor if half is None else half)
    return ("raw" if half is None else "half"), zlib.compress(data, 9)


def _as_half(tensor: Tensor) -> Tensor | None:
    """Return a vector of floats in 16 bits, where these are near enough."""
    if tensor.dtype not in (torch.float32, torch.float64) or tensor.ndim != 1:
        return None
    half = tensor.detach().half()
    near = (half.to(tensor.dtype) - tensor.detach()).abs() <= HALF_ERROR * tensor.detach().abs()
    return half if bool(near.all()) else None


def _decoded_half(tensor: Tensor, entry: Mapping[str, Any]) -> Tensor:
    return tensor.detach().half().to(tensor.dtype) if entry["kind"] == "half" else tensor


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


# ---------------------------------------------------------------- reading


def read_coded(path: Path) -> dict[str, Any]:
    """Return what was coded: a state dict, under the keys where it stood.

    Raises `CheckpointError` where the file is cut off, damaged, of a newer form or hostile.
    """
    return FORM.read(path, _state)


@dataclass(frozen=True)
class _Entry:
    """One tensor, as the header has it, checked."""

    about: Mapping[str, Any]
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    kind: str

    @property
    def cells(self) -> int:
        return math.prod(self.shape)


def _entries(path: Path, head: Mapping[str, Any], size: int) -> list[_Entry]:
    """Return the tensors; raises where they are malformed, or too large for the file that they stand in."""
    entries = []
    for about in head["tensors"]:
        shape = about["shape"]
        if any(type(side) is not int or side < 0 for side in shape):
            raise ValueError("a shape is no list of sizes")
        entries.append(
            _Entry(about, str(about["name"]), dtype_named(about["dtype"]), tuple(shape), about["kind"])
        )
    whole = sum(entry.cells * entry.dtype.itemsize for entry in entries)
    FORM.check_growth(path, size, whole)
    if len({entry.name for entry in entries}) != len(entries):
        raise ValueError("two tensors have one name")
    return entries


def _streams(path: Path, entries: Sequence[_Entry], data: bytes) -> Iterator[bytes]:
    """Yield the stream of each tensor, empty where it has none; raises where one is damaged."""
    sizes = [int(entry.about.get("bytes", 0)) for entry in entries]
    if min(sizes, default=0) < 0 or sum(sizes) != len(data):
        what = "cut off" if len(data) < sum(sizes) else "too long"
        raise CheckpointError(
            f"{path}: {what}: {len(data):,} bytes of streams, its header says {sum(sizes):,}; fetch it again"
        )
    at = 0
    for entry, size in zip(entries, sizes, strict=True):
        part, at = data[at : at + size], at + size
        if "crc" in entry.about and zlib.crc32(part) != entry.about["crc"]:
            raise CheckpointError(f"{path}: '{entry.name}' fails its CRC check; fetch the file again")
        yield part


def _state(path: Path, head: Mapping[str, Any], data: bytes) -> dict[str, Tensor]:
    from kernelsimp.kernels.integer_coding import decode, new_memory

    entries = _entries(path, head, len(data) + 1)
    streams = list(_streams(path, entries, data))
    integers, memory = dict[int, Integers](), new_memory()
    order = [int(place) for place in head["coded"]]
    if sorted(order) != [place for place, entry in enumerate(entries) if entry.kind in CODED_KINDS]:
        raise ValueError("the order of coding is not of its tensors")
    tables = [Table(tuple(map(int, turns[1:])), bool(turns[0])) for turns in head.get("tables", [])]
    for place in order:
        entry = entries[place]
        step = np.array([entry.about["step"]], np.uint32).view(np.float32)[0]
        if entry.kind == "integers":
            integers[place] = CodedTensor(decode(streams[place], _matrix_shape(entry), memory), step)
        else:
            shape, form = _kernel_form(entry, tables)
            integers[place] = replace(decode_kernels(streams[place], shape, form, memory), step=step)
    tensors: list[Tensor] = []
    for place, entry in enumerate(entries):
        tensors.append(_tensor(entry, streams[place], integers.get(place), tensors))
    return {entry.name: tensor for entry, tensor in zip(entries, tensors, strict=True)}


def _layout(entry: _Entry) -> Layout:
    transposed, groups = entry.about.get("layout", (0, 1))
    return Layout(bool(transposed), int(groups))


def _matrix_shape(entry: _Entry) -> tuple[int, ...]:
    layout, shape = _layout(entry), entry.shape
    if len(shape) < 2:
        return (entry.cells,)
    if len(shape) == 2:
        return shape
    kind = "transposed" if layout.transposed else "dense"
    kernels = canonical(torch.empty(shape, device="meta"), kind, layout.groups)
    return int(kernels.shape[0]), math.prod(kernels.shape[1:])


def _kernel_form(entry: _Entry, tables: Sequence[Table]) -> tuple[tuple[int, int], KernelForm]:
    """Return (outputs, inputs / groups) of a layer's kernels, and their form."""
    layout = _layout(entry)
    kind = "transposed" if layout.transposed else "dense"
    kernels = canonical(torch.empty(entry.shape, device="meta"), kind, layout.groups).shape
    table = tables[int(entry.about["table"])] if "table" in entry.about else None
    menu, drawings = tuple(map(str, entry.about["menu"])), int(entry.about.get("drawings", 0))
    return (kernels[0], kernels[1]), KernelForm(tuple(kernels[2:]), menu, table, drawings)


def _tensor(entry: _Entry, stream: bytes, integers: Integers | None, before: Sequence[Tensor]) -> Tensor:
    if integers is not None:
        like = torch.empty(entry.shape, dtype=entry.dtype, device="meta")
        return numbers_of(integers, _layout(entry), like)
    if entry.kind == "same":
        twin = int(entry.about["as"])
        if not 0 <= twin < len(before) or before[twin].shape != entry.shape:
            raise ValueError("a tensor is the same as one that is not there")
        return before[twin]
    if entry.kind == "fill":
        cell = _from_bytes(bytes.fromhex(entry.about["value"]), entry.dtype, ())
        return cell.expand(entry.shape).contiguous().clone()
    if entry.kind == "half":
        return _from_bytes(inflated(stream, 2 * entry.cells), torch.float16, entry.shape).to(entry.dtype)
    if entry.kind == "raw":
        return _from_bytes(inflated(stream, entry.cells * entry.dtype.itemsize), entry.dtype, entry.shape)
    raise ValueError(f"unknown kind '{str(entry.kind)[:20]}'")


def _from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor has another length than its shape")
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(dtype).reshape(shape)
