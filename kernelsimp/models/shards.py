"""A network in several files with an index beside them, as large ones are published: read as one network.

The index is JSON whose `weight_map` says for every tensor which file holds it. What is written has the same
files with the same tensors, the index, and the small files beside it from which their own library builds the
network.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelsimp.errors import CheckpointError
from kernelsimp.files import write_atomically, write_text
from kernelsimp.models.reading import Raw
from kernelsimp.models.wrappers import FoundState, find_state_dict, value_at
from kernelsimp.models.writing import write_state

_INDEX = re.compile(r"\.(safetensors|bin|pt|pth|ckpt)\.index(\.[\w-]+)?\.json$")
_ANY_INDEX = re.compile(r"\.index(\.[\w-]+)?\.json$")
_COMPANIONS, _LARGEST_COMPANION = (".json", ".txt", ".model"), 1 << 26
"""What a library reads beside the weights: settings and vocabularies. Code is not copied."""


@dataclass(frozen=True, eq=False)
class Shards:
    """An index as it was read, and what each of its files holds: its content, and where the tensors stand."""

    index: Path
    content: Mapping[str, Any]
    parts: Mapping[str, tuple[Raw, FoundState]]

    def write(self, path: Path, state: Mapping[str, Any], folded: Mapping[str, str]) -> None:
        """Write all of `state` in the same files at `path`, which is an index or a folder.

        `folded` names, for a tensor that the index does not have, the one in whose file it goes.
        """
        folder, index = (path.parent, path.name) if _ANY_INDEX.search(path.name) else (path, self.index.name)
        homes = self._homes()
        where = {name: homes[name if name in homes else folded[name]] for name in state}
        for file, (raw, found) in self.parts.items():
            own = value_at(raw.payload, found.keys)
            others = {name: value for name, value in own.items() if name not in homes}  # no tensors
            part = {name: value for name, value in state.items() if where[name] == file}
            write_state(raw, found, {**part, **others}, folder / file)
        for companion in _companions(self.index.parent):
            write_atomically(folder / companion.name, _copier(companion))
        content = {**self.content, "weight_map": {name: where[name] for name in self._order(where)}}
        write_text(folder / index, json.dumps(content, indent=2) + "\n")

    def _homes(self) -> dict[str, str]:
        """Return the file of each tensor, those that the index does not name included."""
        named = dict(self.content["weight_map"])
        for file, (raw, found) in self.parts.items():
            named.update({name: file for name in _tensors(raw, found) if name not in named})
        return named

    def _order(self, where: Mapping[str, str]) -> list[str]:
        """Return the names of the index that are still there, then new ones."""
        old = [name for name in self.content["weight_map"] if name in where]
        return [*old, *(name for name in where if name not in set(old))]


def index_of(path: Path) -> Path | None:
    """Return the index of shards that a path is or, as a folder, holds; None where there is none."""
    if path.is_dir():
        found = sorted(path.glob("*.index*.json"))  # of a folder that may not be read: none
        found = [item for item in found if _INDEX.search(item.name) and item.is_file()]
        plain = [item for item in found if item.name.endswith(".index.json")] or found
        return next((item for item in plain if "safetensors" in item.name), next(iter(plain), None))
    return path if _ANY_INDEX.search(path.name) and path.is_file() else None


def shard_files(index: Path) -> tuple[Path, ...]:
    """Return the files that an index names; raises `CheckpointError` for an index that is none."""
    return tuple(index.parent / file for file in dict.fromkeys(_content(index)["weight_map"].values()))


def read_shards(index: Path, read: Callable[[Path], tuple[Raw, str]]) -> tuple[Raw, Shards, str]:
    """Return all tensors of an index in its order, its files, and a SHA-256 over the index and its files.

    `read` gives what one file holds, and its digest. Raises `CheckpointError` for an index that is none, for
    a file or a tensor that is not there, and for a tensor that two files hold.
    """
    content = _content(index)
    names: Mapping[str, str] = content["weight_map"]
    digest = hashlib.sha256(index.read_bytes())
    parts: dict[str, tuple[Raw, FoundState]] = {}
    for file in dict.fromkeys(names.values()):
        path = index.parent / file
        if not path.is_file():
            raise CheckpointError(f"{index}: names the file '{file}', which is not there; fetch it too")
        raw, one = read(path)
        if raw.convolutions is not None:
            raise CheckpointError(f"{index}: '{file}' is a {raw.format} network of its own, not a shard")
        digest.update(one.encode())
        parts[file] = raw, find_state_dict(raw.payload, None, path)
    shards = Shards(index, content, parts)
    payload, remarks = _merged(shards)
    remarks = (*(words for raw, _ in parts.values() for words in raw.warnings), *remarks, *_others(index))
    return Raw("sharded", payload, warnings=tuple(dict.fromkeys(remarks))), shards, digest.hexdigest()


def _merged(shards: Shards) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the tensors of all files by name, in the order of the index, and remarks."""
    index, names = shards.index, shards.content["weight_map"]
    states = {file: _tensors(raw, found) for file, (raw, found) in shards.parts.items()}
    twice = [
        name for name, count in Counter(n for state in states.values() for n in state).items() if count > 1
    ]
    if twice:
        files = " and ".join(f"'{file}'" for file, state in states.items() if twice[0] in state)
        raise CheckpointError(f"{index}: '{twice[0]}' is in {files}; one of them is stale, fetch all again")
    for name, file in names.items():
        if name not in states[file]:
            raise CheckpointError(f"{index}: '{name}' is not in '{file}', as it says; fetch both again")
    payload = {name: states[file][name] for name, file in names.items()}
    extra = {name: item for state in states.values() for name, item in state.items() if name not in names}
    if not extra:
        return payload, ()
    more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
    told = f"{index}: does not name '{next(iter(extra))}'{more}, which its files hold; read all the same"
    return {**payload, **extra}, (told,)


def _tensors(raw: Raw, found: FoundState) -> dict[str, Any]:
    """Return the entries of one file that have a shape, by name."""
    state = value_at(raw.payload, found.keys)
    return {name: item for name, item in state.items() if isinstance(name, str) and hasattr(item, "shape")}


def _others(index: Path) -> Iterator[str]:
    for other in sorted(index.parent.iterdir()):
        if other != index and _INDEX.search(other.name):
            yield f"{index.parent}: also holds '{other.name}'; give that file to read it"


def _content(index: Path) -> dict[str, Any]:
    """Return an index; a file that it names stands beside it and nowhere else."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = content["weight_map"]
        sound = bool(names) and all(map(_is_file_name, names.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise CheckpointError(
            f"{index}: no index of shards: expected 'weight_map' with a file beside it for each tensor"
        )
    return dict(content)


def _is_file_name(file: Any) -> bool:
    return (
        isinstance(file, str)
        and file == Path(file).name
        and file not in ("", "..")
        and not set(file) & set("\\\0:")
    )


def _companions(folder: Path) -> Iterator[Path]:
    for item in sorted(folder.iterdir()):
        known = item.suffix in _COMPANIONS and not _ANY_INDEX.search(item.name) and item.is_file()
        if known and item.stat().st_size <= _LARGEST_COMPANION:
            yield item


def _copier(source: Path) -> Callable[[Path], None]:
    def copy(partial: Path) -> None:
        shutil.copyfile(source, partial)

    return copy
