"""Read a checkpoint file into memory without running anything in it.

Zip files are checked by their CRC and memory-mapped; pickles go through PyTorch's restricted unpickler
with a short list of harmless extras, and those that name more through stand-ins (`stand_ins.py`). Malformed
files raise a dozen exception types from several libraries: here, and only here, all of them become
`CheckpointError`.
"""

import argparse
import pathlib
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

from kernelsimp.error_text import short
from kernelsimp.errors import CheckpointError
from kernelsimp.files import quiet, read_tensor_file
from kernelsimp.models.exported import Convolution, Exported
from kernelsimp.models.identify import Format
from kernelsimp.models.inert_tree import plain_data
from kernelsimp.models.onnx_file import read_onnx
from kernelsimp.models.packed import read_packed
from kernelsimp.models.pt2 import read_pt2
from kernelsimp.models.snapshot import private_copy
from kernelsimp.models.stand_ins import WouldRunError, load_plain_pickle, load_with_stand_ins
from kernelsimp.models.torchscript import read_torchscript
from kernelsimp.zip_records import check_records


@dataclass(frozen=True, eq=False)
class Raw:
    """What a file holds: `payload` as it was saved, `metadata` of safetensors, and remarks.

    `convolutions` is how an exported graph uses its weights; None where the file holds weights alone.
    `protocol` is that of a file of `pickle.dump`, which is written so again; None for every other.
    `unseen` says of each convolution whose weight cannot be read why.
    """

    format: Format
    payload: Any
    metadata: Mapping[str, str] | None = None
    warnings: tuple[str, ...] = ()
    convolutions: Mapping[str, Convolution] | None = None
    protocol: int | None = None
    unseen: Mapping[str, str] = field(default_factory=dict)


_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")

EXPORTED: Mapping[Format, Callable[[Path], Exported]] = {
    "onnx": read_onnx,
    "pt2": read_pt2,
    "torchscript": read_torchscript,
}
"""The formats that are read for scanning only."""


def read_raw(path: Path, file_format: Format, *, trust_pickle: bool = False) -> Raw:
    """Read a checkpoint or an exported network onto the CPU.

    Raises `CheckpointError` where the file is damaged, or calls functions and `trust_pickle` is false.
    """
    if file_format == "safetensors":
        return _read_safetensors(path)
    if file_format == "packed":
        return Raw("packed", read_packed(path))
    if file_format == "coded":
        from kernelsimp.models.coded import read_coded  # its compiler is slow to import

        return Raw("coded", read_coded(path))
    remarks = () if file_format in ("legacy", "onnx") else check_records(path)
    if file_format in EXPORTED:
        network = EXPORTED[file_format](path)
        remarks = (*remarks, *network.warnings)
        uses, unseen = network.convolutions, network.unseen
        return Raw(file_format, dict(network.tensors), warnings=remarks, convolutions=uses, unseen=unseen)
    if file_format == "legacy" and not trust_pickle and not _by_torch(path):
        return _read_inert(path, file_format, remarks)
    try:
        with quiet(), torch.serialization.safe_globals(_harmless()):
            payload = _load_zip(path, _strict) if file_format == "zip" else _load_legacy(path, _strict)
    except CheckpointError:
        raise
    except Exception as error:
        foreign = unsafe_names(path, file_format)
        if not foreign:
            raise CheckpointError(_damaged(path, error)) from error
        if not trust_pickle:
            return _read_inert(path, file_format, remarks)
        payload, remarks = _load_trusted(path), (*remarks, _trusted_remark(path, foreign))
    return Raw(file_format, _without_modules(payload), warnings=remarks)


def unsafe_names(path: Path, file_format: Format) -> list[str]:
    """Name, sorted, the classes and functions a pickle would run, without running them."""
    try:
        if file_format == "zip":
            with quiet(), torch.serialization.safe_globals(_harmless()):
                return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        with path.open("rb") as file:
            return sorted(set(_globals(file)) - _known_to_torch())
    except Exception:
        return []


def _read_inert(path: Path, file_format: Format, remarks: tuple[str, ...]) -> Raw:
    """Read a pickle that names more than tensors, with stand-ins; refuse one that calls a function."""
    protocol = None if file_format == "zip" or _by_torch(path) else _head(path)[1]
    try:
        with quiet():
            load = _load_zip if file_format == "zip" else _load_legacy
            plain = plain_data(load(path, load_with_stand_ins if protocol is None else load_plain_pickle))
    except WouldRunError as error:
        raise CheckpointError(_refusal(path, [error.name])) from error
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:
        raise CheckpointError(_damaged(path, error)) from error
    return Raw(file_format, plain.payload, warnings=(*remarks, *plain.remarks(str(path))), protocol=protocol)


def _by_torch(path: Path) -> bool:
    """Say whether a pickle is `torch.save`'s, which begins with a number of its own, or `pickle.dump`'s."""
    return _MAGIC in _head(path)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _strict(file: Path | BinaryIO, *, mapped: bool = False) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)


def _load_zip(path: Path, load: Callable[..., Any]) -> Any:
    with zipfile.ZipFile(path) as archive:
        # a record that someone deflated cannot be mapped: the bytes at its offset are not the numbers
        plain = all(item.compress_type == zipfile.ZIP_STORED for item in archive.infolist())
    with private_copy(path) if plain else nullcontext() as copy:
        if copy is not None:
            return load(copy, mapped=True)
    with path.open("rb") as file:
        return load(file)


def load_mapped(path: Path) -> Any:
    """Return what a zip file of stored records holds, its numbers mapped from the file itself.

    It is for shapes: whoever reads a number of a file that becomes shorter meanwhile ends by a signal. Raises
    what torch does where it cannot be read.
    """
    with quiet(), torch.serialization.safe_globals(_harmless()):
        try:
            return _strict(path, mapped=True)
        except pickle.UnpicklingError:
            return plain_data(load_with_stand_ins(path, mapped=True)).payload


def _load_legacy(path: Path, load: Callable[..., Any]) -> Any:
    size = path.stat().st_size
    with path.open("rb") as file:
        payload = load(file)
        end = file.tell()
    if end != size:
        raise CheckpointError(
            f"{path}: {size - end} bytes follow the last tensor, the file is damaged; fetch it again"
        )
    return payload


def _load_trusted(path: Path) -> Any:
    try:
        with quiet():
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        advice = "run where its code can be imported, or save its state_dict()"
        raise CheckpointError(
            f"{path}: the pickled object does not load ({short(error)}); {advice}"
        ) from error


def _read_safetensors(path: Path) -> Raw:
    from safetensors import safe_open
    from safetensors.torch import load

    try:
        with private_copy(path) as copy:
            if copy is None:
                data, metadata = read_tensor_file(path)
                return Raw("safetensors", load(data), metadata)
            with safe_open(copy, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                return Raw("safetensors", tensors, file.metadata())
    except Exception as error:
        advice = "damaged or truncated; fetch it again"
        raise CheckpointError(f"{path}: not a valid safetensors file ({short(error)}); {advice}") from error


def _harmless() -> list[Any]:
    """Return what training scripts leave beside weights and what does nothing when rebuilt."""
    core = np.float64(0).__reduce__()[0]
    rebuild = np.zeros(0).__reduce__()[0]
    dtypes = [getattr(np.dtypes, name) for name in np.dtypes.__all__]
    older = [(core, "numpy.core.multiarray.scalar"), (rebuild, "numpy.core.multiarray._reconstruct")]
    paths = [pathlib.PosixPath, pathlib.PurePosixPath]
    return [core, rebuild, *older, np.dtype, np.ndarray, *dtypes, argparse.Namespace, *paths]


def _known_to_torch() -> set[str]:
    """Return the names that the restricted unpickler accepts by itself, and our harmless extras."""
    from torch._weights_only_unpickler import _get_allowed_globals  # no public name exists

    extras = {f"{item.__module__}.{item.__qualname__}" for item in _harmless() if not isinstance(item, tuple)}
    older = {item[1] for item in _harmless() if isinstance(item, tuple)}
    return set(_get_allowed_globals()) | extras | older


def _globals(file: BinaryIO) -> Iterator[str]:
    """Yield what the pickles at the head of a legacy file import; it has four, a plain pickle one."""
    for _ in range(4):
        strings: list[str] = []
        try:
            for opcode, argument, _position in pickletools.genops(file):
                if isinstance(argument, str):
                    strings.append(argument)
                if opcode.name == "GLOBAL":
                    yield str(argument).replace(" ", ".").replace("__builtin__.", "builtins.")
                elif opcode.name == "STACK_GLOBAL":
                    yield ".".join(strings[-2:])
        except ValueError:  # the tensors' bytes begin here, or the file ends
            return


def _damaged(path: Path, error: Exception) -> str:
    return f"{path}: cannot be read ({_why(error)}); the file is damaged or truncated; fetch it again"


def _why(error: Exception) -> str:
    """Return the reason of a failed load; the unpickler's own would advise to run the file's code."""
    return "its pickle is broken" if isinstance(error, pickle.UnpicklingError) else short(error)


def _refusal(path: Path, foreign: list[str]) -> str:
    more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    return (
        f"{path}: a full pickled object that would run code from {', '.join(foreign[:3])}{more}; save its "
        "state_dict() instead, or pass --trust-pickle if you trust where it came from"
    )


def _trusted_remark(path: Path, foreign: list[str]) -> str:
    more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    return (
        f"{path}: --trust-pickle ran code from {', '.join(foreign[:3])}{more}; written back as a state dict"
    )


def _without_modules(payload: Any) -> Any:
    """Return the payload with each module, at the top or one level down, replaced by its state dict."""
    if isinstance(payload, nn.Module):
        return payload.state_dict()
    if isinstance(payload, dict) and any(isinstance(value, nn.Module) for value in payload.values()):
        return {
            key: value.state_dict() if isinstance(value, nn.Module) else value
            for key, value in payload.items()
        }
    return payload
