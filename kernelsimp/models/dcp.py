"""Folders of `torch.distributed.checkpoint` (DCP): each process of a training wrote its parts of the tensors.

What the parts are stands in `.metadata`, a pickle: it is read with inert stand-ins, and PyTorch's own reader
gets a description made of plain numbers and names. Parts are read as tensors alone; what is no tensor there
is a pickle of its own and left out.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from kernelsimp.error_text import short
from kernelsimp.errors import CheckpointError
from kernelsimp.files import quiet
from kernelsimp.models.reading import Raw
from kernelsimp.models.snapshot import steady
from kernelsimp.models.stand_ins import StandIn, WouldRunError, load_plain_pickle

METADATA = ".metadata"


def is_distributed(path: Path) -> bool:
    """Say whether a path is a folder that `torch.distributed.checkpoint` wrote."""
    return path.is_dir() and (path / METADATA).is_file() and any(path.glob("*.distcp"))


def distributed_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of such a folder."""
    return (folder / METADATA, *sorted(folder.glob("*.distcp")))


def read_distributed(folder: Path) -> tuple[Raw, str]:
    """Return all tensors of such a folder as the nested dict that was saved, and a SHA-256 over its files.

    Raises `CheckpointError` where a part is missing, damaged or out of the folder, and where its description
    would run code.
    """
    with ExitStack() as stack:
        parts = [stack.enter_context(steady(path)) for path in distributed_files(folder)]
        digest = hashlib.sha256("".join(parts).encode()).hexdigest()
        tree = _description(folder)
        try:
            described = _Described(folder, tree)
            tensors = described.read()
        except CheckpointError:
            raise
        except FileNotFoundError as error:
            name = Path(str(error.filename)).name
            raise CheckpointError(f"{folder}: the file '{name}' is not there; fetch it too") from error
        except Exception as error:  # whatever a damaged folder makes of PyTorch's reader
            raise CheckpointError(
                f"{folder}: damaged torch.distributed.checkpoint folder ({short(error)}); fetch it again"
            ) from error
    remarks = [f"{folder}: a torch.distributed.checkpoint folder; it is written back as one plain .pt file"]
    if described.left_out:
        listed = ", ".join(described.left_out[:3])
        more = f" and {len(described.left_out) - 3} more" if len(described.left_out) > 3 else ""
        remarks.append(f"{folder}: left out, as no tensors: {listed}{more}")
    return Raw("dcp", _nested(tensors, described.paths), warnings=tuple(remarks)), digest


def _description(folder: Path) -> StandIn:
    """Return the stand-in of the description that `.metadata` holds."""
    path = folder / METADATA
    try:
        with path.open("rb") as file, quiet():
            tree = load_plain_pickle(file)
    except WouldRunError as error:
        raise CheckpointError(
            f"{path}: would run code from {error.name}; it is no description of tensors, fetch it again"
        ) from error
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read ({short(error)}); fetch it again") from error
    if not isinstance(tree, StandIn) or not isinstance(tree.state, dict):
        raise CheckpointError(f"{path}: holds no description of tensors; fetch it again")
    return tree


class _Described:
    """What a folder says of its tensors, checked and made of plain values."""

    def __init__(self, folder: Path, tree: StandIn) -> None:
        from torch.distributed.checkpoint import metadata as known

        self._folder = folder
        entries: Mapping[str, Any] = tree.state["state_dict_metadata"]
        sized = {str(name): item for name, item in entries.items() if "Tensor" in _last(item)}
        self.left_out = [str(name) for name in entries if name not in sized]
        self.tensors = {name: _tensor_metadata(name, item) for name, item in sized.items()}
        storage = dict(self._places(tree.state["storage_data"]))
        self.metadata = known.Metadata(dict(self.tensors), None, storage, known.StorageMeta())
        paths = tree.state.get("planner_data")
        self.paths = paths if isinstance(paths, dict) else {}

    def read(self) -> dict[str, torch.Tensor]:
        """Return the tensors, put together of their parts."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        described = self.metadata

        class Reader(FileSystemReader):
            """Reads the parts; the description is the one that was checked, and not unpickled."""

            def read_metadata(self, *_args: Any, **_kwargs: Any) -> Any:
                return described

        made: dict[str, Any] = {
            name: torch.zeros(item.size, dtype=item.properties.dtype) for name, item in self.tensors.items()
        }
        try:
            with quiet():
                load(made, storage_reader=Reader(self._folder), no_dist=True)
        except CheckpointException as error:  # no Exception, and it wraps what the one process raised
            raise next(iter(error.failures.values()))[0] from error
        return made

    def _places(self, storage: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
        """Yield where each part of a tensor stands: a file of this folder, and which of its bytes."""
        from torch.distributed.checkpoint.filesystem import (
            _StorageInfo,
        )  # PyTorch's reader expects this class
        from torch.distributed.checkpoint.metadata import MetadataIndex

        for key, value in storage.items():
            name, place = str(key.state["fqn"]), value.state
            if name not in self.tensors:
                continue
            file = place["relative_path"]
            if not isinstance(file, str) or file != Path(file).name or file in ("", ".."):
                raise CheckpointError(
                    f"{self._folder}: '{name}' is said to be out of the folder, in '{file}'"
                )
            if place.get("transform_descriptors"):
                raise CheckpointError(f"{self._folder}: '{name}' is compressed; save it without extensions")
            offset = key.state.get("offset")
            index = MetadataIndex(name, None if offset is None else _numbers(offset))
            yield index, _StorageInfo(file, int(place["offset"]), int(place["length"]))


def _tensor_metadata(name: str, item: StandIn) -> Any:
    """Return PyTorch's description of a tensor made of checked numbers."""
    from torch.distributed.checkpoint import metadata as known

    dtype = item.state["properties"].state[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"'{name}' has no dtype")
    size = _numbers(item.state["size"])
    chunks = []
    for chunk in item.state["chunks"]:
        offsets, sizes = _numbers(chunk.state["offsets"]), _numbers(chunk.state["sizes"])
        inside = len(offsets) == len(sizes) == len(size) and all(
            begin + many <= whole for begin, many, whole in zip(offsets, sizes, size, strict=True)
        )
        if not inside:
            raise ValueError(f"a part of '{name}' lies outside it")
        chunks.append(known.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(size):
        raise ValueError(f"the parts of '{name}' do not make the whole of it")
    return known.TensorStorageMetadata(known.TensorProperties(dtype=dtype), torch.Size(size), chunks)


def _numbers(values: Any) -> tuple[int, ...]:
    numbers = tuple(values)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a size that is no number")
    return numbers


def _last(item: Any) -> str:
    return str(getattr(item, "kind", "")).rpartition(".")[2]


def _nested(tensors: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors in the nested dicts that were saved, by the path of keys that each had there."""
    payload: dict[str, Any] = {}
    for name, tensor in tensors.items():
        path = paths.get(name)
        keys = [str(key) for key in path] if isinstance(path, tuple) and path else [name]
        at = payload
        for key in keys[:-1]:
            inner = at.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ValueError(f"'{name}' stands inside a tensor")
            at = inner
        at[keys[-1]] = tensor
    return payload
