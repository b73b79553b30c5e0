"""What an unpickled file means once its unknown classes are stand-ins: plain data, with the rest named.

A stand-in of a module becomes the state dict that the module would give; one that holds tensors becomes a
plain dict of what it held; any other is left out.
"""

import argparse
import pathlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kernelsimp.errors import CheckpointError
from kernelsimp.models.stand_ins import Maker, StandIn, StandInKind

_LEFT_OUT = object()
_MOST_MODULES = 1_000_000
"""Modules shared and nested could be walked for ever; no network has as many."""


@dataclass
class PlainData:
    """A payload without stand-ins; which kinds were left out, and which became (place, kind) plain dicts."""

    payload: Any = None
    left_out: list[str] = field(default_factory=list)
    modules: list[tuple[str, str]] = field(default_factory=list)
    objects: list[tuple[str, str]] = field(default_factory=list)

    def remarks(self, where: str) -> tuple[str, ...]:
        """Return one sentence for each sort of thing that was not kept as it was."""
        told = [
            f"{where}: the module {kind}{f' under {place!r}' if place else ''} is read without its code, and "
            "written back only as a plain state dict"
            for place, kind in self.modules
        ]
        told += [
            f"{where}: the object {kind}{f' under {place!r}' if place else ''} is read and written as a dict"
            for place, kind in self.objects
        ]
        if self.left_out:
            count, kinds = len(self.left_out), list(Counter(self.left_out))
            more = f" and {len(kinds) - 3} more" if len(kinds) > 3 else ""
            what = "1 foreign entry" if count == 1 else f"{count} foreign entries"
            is_or_are = "is" if count == 1 else "are"
            told.append(f"{where}: {what} ({', '.join(kinds[:3])}{more}) {is_or_are} left out")
        return tuple(told)


def plain_data(payload: Any) -> PlainData:
    """Return what `load_with_stand_ins` gave as plain data.

    Raises `CheckpointError`, without a path, where the whole of it is a foreign object without a tensor.
    """
    plain = PlainData()
    plain.payload = _Converter(plain).convert(payload, "")
    if plain.payload is _LEFT_OUT:
        raise CheckpointError(
            f"holds a pickled {_kind_of(payload)} without a tensor; save model.state_dict()"
        )
    return plain


class _Converter:
    """Walks a payload once; what stands in several places goes on standing in them."""

    def __init__(self, plain: PlainData) -> None:
        self._plain = plain
        self._done: dict[int, Any] = {}

    def convert(self, value: Any, place: str) -> Any:
        """Return a value as plain data, `_LEFT_OUT` where nothing of it is kept."""
        if id(value) in self._done:
            return self._done[id(value)]
        if isinstance(value, StandIn):
            return self._stand_in(value, place)
        if isinstance(value, StandInKind | Maker):
            return self._leave_out(value)
        if type(value) in (dict, OrderedDict):
            return self._mapping(value, place)
        if type(value) in (list, tuple, set, frozenset):
            return self._sequence(value, place)
        return value

    def _mapping(self, value: Any, place: str) -> Any:
        fresh = self._done[id(value)] = type(value)()
        for key, item in value.items():
            kept = self.convert(item, f"{place}.{key}" if place else str(key))
            if kept is not _LEFT_OUT and not _is_foreign(key):
                fresh[key] = kept
        metadata = getattr(value, "_metadata", None)  # from which modules read their versions
        if isinstance(metadata, dict):
            fresh._metadata = metadata
        return fresh

    def _sequence(self, value: Any, place: str) -> Any:
        self._done[id(value)] = _LEFT_OUT  # a tuple that holds itself
        kept = [self.convert(item, f"{place}.{at}" if place else str(at)) for at, item in enumerate(value)]
        fresh = type(value)(item for item in kept if item is not _LEFT_OUT)
        self._done[id(value)] = fresh
        return fresh

    def _stand_in(self, item: StandIn, place: str) -> Any:
        self._done[id(item)] = _LEFT_OUT
        fresh: Any
        if is_module(item):
            fresh = OrderedDict(_state_of(item))
            if fresh:
                self._plain.modules.append((place, item.kind))
        elif item.kind in _REAL:
            fresh = self._real(item, place)
        elif _holds_tensor(item):
            self._plain.objects.append((place, item.kind))
            fresh = self.convert(_content(item), place)
        else:
            fresh = None
        if fresh is None or (is_module(item) and not fresh):
            return self._leave_out(item)
        self._done[id(item)] = fresh
        return fresh

    def _real(self, item: StandIn, place: str) -> Any:
        """Make again the values of the standard library that PyTorch's reader is allowed to keep."""
        if item.kind == "argparse.Namespace":
            state = self.convert(item.state or {}, place)
            return argparse.Namespace(**state) if isinstance(state, dict) else None
        parts = item.args if all(isinstance(part, str) for part in item.args) else ()
        return pathlib.PurePosixPath(*parts) if "Pure" in item.kind else pathlib.PosixPath(*parts)

    def _leave_out(self, value: Any) -> Any:
        self._done[id(value)] = _LEFT_OUT
        self._plain.left_out.append(_kind_of(value))
        return _LEFT_OUT


_REAL = ("argparse.Namespace", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath")


def is_module(value: Any) -> bool:
    """Say whether a stand-in is of a pickled `nn.Module`: it has its parameters and its children."""
    state = value.state if isinstance(value, StandIn) else None
    return isinstance(state, dict) and all(
        isinstance(state.get(key), Mapping) for key in ("_parameters", "_modules")
    )


def _state_of(module: StandIn) -> Iterator[tuple[str, Tensor]]:
    """Yield what the module's `state_dict()` would hold, in its order."""
    waiting: list[tuple[str, StandIn, tuple[int, ...]]] = [("", module, ())]
    for _ in range(_MOST_MODULES):
        if not waiting:
            return
        prefix, at, above = waiting.pop()
        state = at.state
        hidden = state.get("_non_persistent_buffers_set") or ()
        hidden = hidden if isinstance(hidden, set | frozenset | list) else ()
        for name, value in state["_parameters"].items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value.detach()
        for name, value in _entries(state.get("_buffers")):
            if isinstance(value, Tensor) and name not in hidden:
                yield f"{prefix}{name}", value.detach()
        inner = [(f"{prefix}{name}.", child, (*above, id(at))) for name, child in state["_modules"].items()]
        waiting += [item for item in reversed(inner) if is_module(item[1]) and id(item[1]) not in item[2]]
    raise CheckpointError("its modules hold one another without end; save model.state_dict()")


def _entries(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _content(item: StandIn) -> Any:
    """Return what a stand-in holds: its entries, its attributes, its items, or its arguments."""
    if item.entries or isinstance(item.state, dict):
        return {**(item.state if isinstance(item.state, dict) else {}), **item.entries}
    return item.items or item.state or list(item.args)


def _holds_tensor(item: StandIn) -> bool:
    waiting: list[Any] = [item]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            return True
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, StandIn):
            waiting += [value.entries, value.state, value.items, value.args]
        elif isinstance(value, dict):
            waiting += list(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += list(value)
    return False


def _is_foreign(value: Any) -> bool:
    return isinstance(value, StandIn | StandInKind | Maker)


def _kind_of(value: Any) -> str:
    return str(getattr(value, "kind", "")) or "function"
