"""A network in more than one file, of any form: what it is, what its files are, what a copy is called."""

from collections.abc import Callable
from pathlib import Path

from kernelsimp.models.dcp import distributed_files, is_distributed, read_distributed
from kernelsimp.models.reading import Raw
from kernelsimp.models.shards import Shards, index_of, read_shards, shard_files

_UNNAMED = "model"
_ONE_FILE = ".pt"


def is_in_parts(path: Path) -> bool:
    """Say whether a path is an index of shards, a folder with one, or a distributed checkpoint."""
    return index_of(path) is not None or is_distributed(path)


def read_parts(path: Path, read: Callable[[Path], tuple[Raw, str]]) -> tuple[Raw, Shards | None, str]:
    """Return what such a path holds, its shards where it has some, and a SHA-256 over its files.

    `read` gives what one file holds, and its digest. Raises `CheckpointError` where a part is missing,
    damaged or hostile.
    """
    index = index_of(path)
    if index is not None:
        return read_shards(index, read)
    raw, digest = read_distributed(path)
    return raw, None, digest


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files in which a network stands; none where there is no such path."""
    index = index_of(path)
    if index is not None:
        return (index, *shard_files(index))
    if is_distributed(path):
        return distributed_files(path)
    return (path,) if path.is_file() else ()


def written_name(path: Path) -> Path:
    """Return what the simplified twin of a checkpoint is called inside its run.

    A file keeps its name, and so does a folder; an index stays in a folder of its own; what becomes one file
    gets an ending.

    >>> written_name(Path("nets/resnet.pt")), written_name(Path("nets/big/model.safetensors.index.json"))
    (PosixPath('resnet.pt'), PosixPath('big/model.safetensors.index.json'))
    """
    name = _folder_name(path)
    if is_distributed(path):
        return Path(name + _ONE_FILE)
    return Path(_folder_name(path.parent), name) if name.endswith(".json") else Path(name)


def written_places(run: Path, source: Path) -> tuple[Path, ...]:
    """Return where the run of `source`, which need not be there any more, may have its checkpoint."""
    return tuple(dict.fromkeys((run / written_name(source), run / (_folder_name(source) + _ONE_FILE))))


def _folder_name(path: Path) -> str:
    return path.name if path.name not in ("", "..") else _UNNAMED
