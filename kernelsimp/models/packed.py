"""The packed form of a checkpoint, `.kspack`: every tensor comes back bit for bit.

A kernel with a structure is written with the free numbers of that structure alone (`kernels.packing`), in
the dtype of the checkpoint; every other tensor is written whole. Numbers of one dtype are pooled, split into
byte planes and deflated. Behind the frame of `framed` stand the planes in the header's order, each with its
CRC-32 there.
"""

import lzma
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.errors import CheckpointError, KernelsimpError
from kernelsimp.kernels.packing import Coded, Pool, decode, encode, tensor_of
from kernelsimp.models.digest import tensors_sha256
from kernelsimp.models.framed import (
    Form,
    FramedFile,
    dtype_name,
    dtype_named,
    inflated,
    shared_memory,
    spelled,
)
from kernelsimp.models.identify import PACKED
from kernelsimp.models.stored_order import canonical, stored_order, tensor_name
from kernelsimp.records.plan import LayerPlan, Plan

SIGNATURE = PACKED + b"1\n"
SCHEMA = "kernelsimp.packed/1"

Bytes = NDArray[np.uint8]

CHOICES, SIDE = "choices", "side"
"""The pools that hold no numbers of a tensor: which structure each kernel has, and what some need beside."""

SMALL = 1 << 23
"""Planes of up to this many bytes are also tried with LZMA, which is slow."""

SAMPLE = 1 << 16

FORM = Form("packed", "unpack", SIGNATURE, SCHEMA)

_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 6}]


@dataclass(frozen=True, eq=False)
class _Pools:
    """The numbers collected so far, by pool, each part (numbers, bytes a number)."""

    parts: dict[str, list[Bytes]] = field(default_factory=dict)

    def add(self, name: str, numbers: NDArray[np.generic], width: int) -> None:
        flat = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).reshape(-1, width)
        self.parts.setdefault(name, []).append(flat)


def pack(state: Mapping[str, Tensor], plan: Plan | None = None, keys: Sequence[str] = ()) -> FramedFile:
    """Pack a state dict; `plan` says what structures its kernels have, and `keys` where it stood in its file.

    A plan never costs anything: a kernel that is not exactly in its structure is written whole. Raises
    `KernelsimpError` for a tensor without plain cells.
    """
    layers, pools = _layers_by_tensor(state, plan), _Pools()
    structures = plan.structures if plan else ("free",)
    entries, seen = [], dict[object, int]()
    for place, (name, tensor) in enumerate(state.items()):
        entry: dict[str, Any] = {"name": name, "dtype": dtype_name(name, tensor), "shape": list(tensor.shape)}
        twin = seen.setdefault(shared_memory(tensor) or name, place)
        if twin != place:
            entry["same"] = twin
        elif name in layers:
            entry["layer"] = _put_layer(tensor, layers[name], structures, pools)
        else:
            pools.add(entry["dtype"], _plain_bytes(tensor), tensor.element_size())
        entries.append(entry)
    planes = {
        name: [_compress_plane(plane, name) for plane in _planes(parts)]
        for name, parts in pools.parts.items()
    }
    head = {
        "keys": list(keys),
        "structures": list(structures),
        "tensors": entries,
        "pools": {name: _describe_pools(name, pools, planes[name]) for name in planes},
        "sha256": tensors_sha256(state),
    }
    return FramedFile(FORM.frame(head, (data for parts in planes.values() for _, data in parts)))


def read_packed(path: Path) -> dict[str, Any]:
    """Return what was packed: a state dict, under the keys where it stood.

    Raises `CheckpointError` where the file is cut off, damaged, of a newer form or hostile.
    """
    return FORM.read(path, lambda path, head, data: _state(head, _pools(path, head, data)))


# ---------------------------------------------------------------- tensors


def _layers_by_tensor(state: Mapping[str, Tensor], plan: Plan | None) -> dict[str, LayerPlan]:
    """Return the plan's layers by the full name of their weight.

    The file may know the network under a prefix (`module.`, `backbone.`): the one under which all are there.
    """
    layers = {tensor_name(layer.name): layer for layer in plan.layers} if plan else {}
    if not layers:
        return {}
    first = next(iter(layers))
    prefixes = sorted((name.removesuffix(first) for name in state if name.endswith(first)), key=len)
    for prefix in prefixes:
        if all(_fits(state.get(prefix + name), layer) for name, layer in layers.items()):
            return {prefix + name: layer for name, layer in layers.items()}
    raise KernelsimpError(
        f"the plan is of another network: it has no '{first}' of that shape; name its own plan"
    )


def _fits(tensor: Tensor | None, layer: LayerPlan) -> bool:
    if tensor is None or tensor.ndim < 3:
        return False
    kernels = canonical(tensor, layer.kind, layer.groups)
    return tuple(kernels.shape) == (*layer.choice.shape, *layer.grid)


def _put_layer(
    tensor: Tensor, layer: LayerPlan, structures: tuple[str, ...], pools: _Pools
) -> dict[str, Any]:
    """Add the kernels of a layer to the pools; return what its entry says.

    A choice is written as its place in the layer's `menu`, the commonest structure first.
    """
    coded = encode(canonical(tensor, layer.kind, layer.groups), layer.choice, structures)
    menu = [index for index, _ in Counter(coded.choice.tolist()).most_common()]
    place = np.zeros(len(structures), "<u2")
    place[menu] = np.arange(len(menu))
    pools.add(CHOICES, place[coded.choice], 2)
    pools.add(SIDE, coded.side, 1)
    pools.add(dtype_name(layer.name, tensor), coded.values, tensor.element_size())
    sizes = {"values": int(coded.values.size), "side": int(coded.side.size)}
    return {"kind": layer.kind, "groups": layer.groups, "menu": menu, **sizes}


def _state(head: Mapping[str, Any], pools: Mapping[str, Pool]) -> dict[str, Tensor]:
    """Return the tensors by name, in order; raises where the header and the pools do not agree."""
    tensors: list[Tensor] = []
    structures = tuple(map(str, head["structures"]))
    for entry in head["tensors"]:
        dtype, shape = dtype_named(entry["dtype"]), tuple(map(int, entry["shape"]))
        if "same" in entry:
            tensors.append(tensors[int(entry["same"])])
        elif "layer" in entry:
            tensors.append(_layer(entry["layer"], (shape, dtype), structures, pools))
        else:
            numbers = pools[entry["dtype"]].take(int(np.prod(shape, dtype=np.int64)))
            tensors.append(tensor_of(numbers.copy(), dtype).reshape(shape))
    if any(pool.left for pool in pools.values()):
        raise ValueError("numbers are left over")
    return {str(entry["name"]): tensor for entry, tensor in zip(head["tensors"], tensors, strict=True)}


def _layer(
    entry: Mapping[str, Any],
    form: tuple[tuple[int, ...], torch.dtype],
    structures: tuple[str, ...],
    pools: Mapping[str, Pool],
) -> Tensor:
    """Return the stored weight of a layer, of the `form` (shape, dtype)."""
    shape, dtype = form
    kind, groups = str(entry["kind"]), int(entry["groups"])
    kernels = canonical(torch.empty(shape, device="meta"), kind, groups).shape
    menu = np.array(entry["menu"], np.int16)
    choice = menu[pools[CHOICES].take(int(kernels[0] * kernels[1]))]
    values = pools[spelled(dtype)].take(int(entry["values"])).view(f"<u{dtype.itemsize}").reshape(-1)
    coded = Coded(choice, values, pools[SIDE].take(int(entry["side"])).view(np.uint8).reshape(-1))
    return stored_order(decode(tuple(kernels), dtype, coded, structures), kind, groups, shape).contiguous()


def _plain_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    return np.asarray(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


# ---------------------------------------------------------------- planes of bytes


def _planes(parts: Sequence[Bytes]) -> Iterator[Bytes]:
    """Yield byte 0 of every number, then byte 1...: signs and exponents are alike, mantissas are not."""
    whole = np.concatenate(parts)
    for place in range(whole.shape[1]):
        yield np.ascontiguousarray(whole[:, place])


def _describe_pools(name: str, pools: _Pools, planes: list[tuple[str, bytes]]) -> dict[str, Any]:
    count = sum(len(part) for part in pools.parts[name])
    return {"count": count, "planes": [[codec, len(data), zlib.crc32(data)] for codec, data in planes]}


def _compress_plane(plane: Bytes, pool: str) -> tuple[str, bytes]:
    """Return the shortest of what the codecs make of a plane; numbers that look random stay as they are."""
    raw = plane.tobytes()
    tried = [("raw", raw)]
    if len(zlib.compress(raw[:SAMPLE], 6)) < 0.99 * min(len(raw), SAMPLE):
        tried += [("deflate", zlib.compress(raw, 6)), ("deflate", _huffman(raw))]
    if len(tried) > 1 and len(raw) <= SMALL and pool in (CHOICES, SIDE):
        tried.append(("lzma", lzma.compress(raw, lzma.FORMAT_RAW, filters=_LZMA)))
    return min(tried, key=lambda item: len(item[1]))


def _huffman(raw: bytes) -> bytes:
    packer = zlib.compressobj(6, strategy=zlib.Z_HUFFMAN_ONLY)
    return packer.compress(raw) + packer.flush()


def _pools(path: Path, head: Mapping[str, Any], data: bytes) -> dict[str, Pool]:
    """Return the pools of numbers; raises `CheckpointError` where bytes are missing, damaged or too many."""
    described = head["pools"]
    expected = sum(int(size) for pool in described.values() for _, size, _ in pool["planes"])
    if len(data) != expected:
        what = "cut off" if len(data) < expected else "too long"
        raise CheckpointError(
            f"{path}: {what}: {len(data):,} bytes of numbers, its header says {expected:,}; fetch it again"
        )
    _check_growth(path, head, len(data))
    pools, at = {}, 0
    for name, pool in described.items():
        planes = []
        for codec, size, crc in pool["planes"]:
            part, at = data[at : at + size], at + size
            if zlib.crc32(part) != crc:
                raise CheckpointError(f"{path}: pool '{name}' fails its CRC check; fetch the file again")
            planes.append(np.frombuffer(bytearray(_decompress(codec, part, int(pool["count"]))), np.uint8))
        pools[name] = _join_planes(planes, int(pool["count"]))
    return pools


def _check_growth(path: Path, head: Mapping[str, Any], size: int) -> None:
    cells = sum(
        int(np.prod(entry["shape"], dtype=object)) * dtype_named(entry["dtype"]).itemsize
        for entry in head["tensors"]
    )
    pooled = sum(int(pool["count"]) * len(pool["planes"]) for pool in head["pools"].values())
    FORM.check_growth(path, size, max(cells, pooled))


def _join_planes(planes: list[Bytes], count: int) -> Pool:
    """Return a pool of numbers from its byte planes; complex numbers stay rows of bytes."""
    if any(plane.size != count for plane in planes):
        raise ValueError("a plane of bytes has another length than its pool")
    whole = np.ascontiguousarray(np.stack(planes, axis=1))
    return Pool(whole.view(f"<u{len(planes)}").reshape(-1) if len(planes) in (1, 2, 4, 8) else whole)


def _decompress(codec: str, data: bytes, size: int) -> bytes:
    """Undo a codec, to at most `size` bytes."""
    if codec == "raw":
        return data
    if codec == "deflate":
        return inflated(data, size)
    if codec == "lzma":
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA).decompress(data, size + 1)
    raise ValueError(f"unknown codec '{codec[:20]}'")
