"""Find the state dict inside what a training script saved, and know what else is there.

A state dict may stand bare or under a key (`state_dict`, `model`, `ema`...), and its names may carry
prefixes that wrappers of the module left (`module.`, `_orig_mod.`). The path of keys that leads to it is
kept, so that the same shape can be written again.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernelsimp.errors import CheckpointError

Keys = tuple[str, ...]

MODEL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "net_state_dict",
    "weights",
    "params",
    "module",
)
"""Keys under which training scripts put the trained network, likeliest first."""

_TRAINING_WORDS = {
    "optimizer",
    "optimizers",
    "optimiser",
    "optim",
    "opt",
    "scheduler",
    "schedulers",
    "scaler",
}
_TRAINING_KEYS = {"optimizer_states", "lr_schedulers", "lr_sched", "amp", "rng_state"}

_MOST_PLACES = 8

MOST_STATES = 100
"""More state dicts than so many stand in no file; dicts that hold one another can be seen as millions."""

PREFIXES = ("module.", "_orig_mod.")
_INFIX = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_fpw_module)\.")
"""What torch.compile, FSDP and activation checkpointing leave inside a name."""

_PARALLEL = re.compile(r"(?<![^.])module\.")
"""What DataParallel leaves inside a name where it wraps a part; networks have own parts of that name, too."""

_BESIDE_PREFIX = {"n_averaged"}
"""What AveragedModel keeps beside `module.*`; it is no tensor of the network."""


@dataclass(frozen=True)
class FoundState:
    """Where the chosen state dict stands: `keys` lead to it, `dropped` names what is not written again."""

    keys: Keys
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def find_state_dict(payload: Any, weights: str | None, path: Path) -> FoundState:
    """Choose the state dict in `payload`; `weights` is model, ema, a key, or None for the obvious one.

    Raises `CheckpointError` where there is none, where several stand side by side and none is obvious, or
    where `weights` asks for one that is not there.
    """
    found = dict(_state_dicts(payload, path))
    if not found:
        raise CheckpointError(f"{path}: holds {_describe(payload)}, no state dict; save model.state_dict()")
    averaged = [keys for keys in found if is_average(keys)]
    plain = [keys for keys in found if not is_average(keys)]
    keys = _choose(plain, averaged, weights, path)
    remarks: tuple[str, ...] = ()
    if weights is None and averaged and keys not in averaged:
        remarks = (
            f"{path}: also holds averaged weights under '{_spell(averaged[0])}'; --weights ema takes them",
        )
    other = {item for item in (plain if keys in averaged else averaged) if item != keys}
    return FoundState(keys, tuple(_entries_to_drop(payload, keys, other)), remarks)


def is_average(keys: Keys) -> bool:
    """Say whether a path of keys names an exponential moving average."""
    return any("ema" in re.split(r"[._\-]", key.lower()) for key in keys)


def common_prefix(names: list[str]) -> str:
    """Return the stacked `module.` and `_orig_mod.` that every name begins with."""
    prefix = ""
    names = [name for name in names if name not in _BESIDE_PREFIX]
    while names:
        step = next(
            (item for item in PREFIXES if all(name.startswith(prefix + item) for name in names)), None
        )
        if step is None:
            break
        prefix += step
    return prefix


def names_without_wrappers(names: list[str], prefix: str) -> dict[str, str]:
    """Return {name in the network, `prefix` before it: name in the file} with wrappers inside left out.

    Names come back as they are where two of them would become one.
    """
    plain = {
        prefix + _INFIX.sub("", name[len(prefix) :]) if name.startswith(prefix) else name: name
        for name in names
    }
    return plain if len(plain) == len(names) else {name: name for name in names}


def without_parallel(name: str) -> str:
    """Return a name without the `module.` of wrapped parts.

    >>> without_parallel("backbone.module.conv.weight")
    'backbone.conv.weight'
    """
    return _PARALLEL.sub("", name)


def is_array(value: Any) -> bool:
    """Say whether a value is a tensor, or a NumPy array of numbers in its place."""
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiub")


def as_tensor(value: Any) -> Tensor:
    """Return a tensor as it is and a NumPy array as a tensor of its own memory."""
    if isinstance(value, Tensor):
        return value
    native = value.astype(value.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.array(native, order="C"))


def in_the_form_of(stored: Any, value: Any) -> Any:
    """Return a tensor as the NumPy array of the file's dtype where the file has an array."""
    if isinstance(stored, np.ndarray) and isinstance(value, Tensor):
        return value.detach().numpy().astype(stored.dtype, copy=True)
    return value


def value_at(payload: Any, keys: Keys) -> Any:
    """Return what stands at the end of a path of keys; places in a tuple or list are spelled as digits."""
    for key in keys:
        payload = payload[int(key) if isinstance(payload, tuple | list) else key]
    return payload


def rebuild_payload(payload: Any, found: FoundState, state: Mapping[str, Any]) -> Any:
    """Return a copy of `payload` with all of `state` at its place and without what is dropped.

    Mappings are copied by type, so an OrderedDict keeps the `_metadata` that modules read versions from.
    """
    return _rebuild_payload(payload, found, state, ())


def _rebuild_payload(payload: Any, found: FoundState, state: Mapping[str, Any], at: Keys) -> Any:
    if at == found.keys:
        fresh = copy.copy(payload)
        fresh.clear()
        fresh.update(state)
        return fresh
    if isinstance(payload, tuple | list):
        place = int(found.keys[len(at)])
        inner = _rebuild_payload(payload[place], found, state, (*at, str(place)))
        return type(payload)([*payload[:place], inner, *payload[place + 1 :]])
    fresh = copy.copy(payload)
    for key in list(fresh):
        if _spell((*at, str(key))) in found.dropped:
            del fresh[key]
        elif (*at, key) == found.keys[: len(at) + 1]:
            fresh[key] = _rebuild_payload(payload[key], found, state, (*at, key))
    return fresh


def _state_dicts(payload: Any, path: Path) -> list[tuple[Keys, Mapping[str, Any]]]:
    """Return each mapping that holds tensors by name, outermost first, at most three keys deep.

    A dict that stands in many places is looked at once. Raises `CheckpointError` where they are too many.
    """
    known: dict[tuple[int, int], list[tuple[Keys, Mapping[str, Any]]]] = {}

    def below(value: Any, depth: int) -> list[tuple[Keys, Mapping[str, Any]]]:
        if (id(value), depth) not in known:
            known[id(value), depth] = found = _found_below(value, depth, below)
            if len(found) > MOST_STATES:
                raise CheckpointError(f"{path}: holds more than {MOST_STATES:,} state dicts; save one")
        return known[id(value), depth]

    return below(payload, 0)


def _found_below(
    payload: Any, depth: int, below: Callable[[Any, int], list[tuple[Keys, Mapping[str, Any]]]]
) -> list[tuple[Keys, Mapping[str, Any]]]:
    found: list[tuple[Keys, Mapping[str, Any]]] = []
    if type(payload) in (tuple, list) and depth < 2:  # (state_dict, epoch)
        for place, value in enumerate(payload[:_MOST_PLACES]):
            found += [((str(place), *keys), state) for keys, state in below(value, depth + 1)]
    if not isinstance(payload, Mapping) or depth > 3:
        return found
    for key, value in payload.items():
        if isinstance(key, str) and isinstance(value, Mapping) and not is_training_state(key, value):
            found += [((key, *keys), state) for keys, state in below(value, depth + 1)]
            if len(found) > MOST_STATES:
                break
    known = any(keys[0] in MODEL_KEYS for keys, _ in found)
    # a step counter or a random state kept beside 'state_dict' does not make the wrapper a state dict
    least = 2 if found else 0
    if not known and any(is_array(value) and value.ndim >= least for value in payload.values()):
        return [((), payload)]
    return found


def is_training_state(key: str, value: Any) -> bool:
    """Say whether an entry is the state of an optimiser, a schedule or a gradient scaler."""
    words = set(re.split(r"[._\-]", key.lower()))
    if key in _TRAINING_KEYS or words & _TRAINING_WORDS:
        return True
    return isinstance(value, Mapping) and {"state", "param_groups"} <= set(value)


def _choose(plain: list[Keys], averaged: list[Keys], weights: str | None, path: Path) -> Keys:
    everything = [*plain, *averaged]
    named = [keys for keys in everything if weights in (_spell(keys), keys[-1] if keys else None)]
    if weights is not None and named:
        return named[0]
    if weights not in (None, "model", "ema"):
        listed = ", ".join(f"'{_spell(keys)}'" for keys in everything)
        raise CheckpointError(
            f"{path}: no weights under '{weights}'; the file holds {listed or 'a bare state dict'}"
        )
    if weights == "ema" and not averaged:
        listed = ", ".join(f"'{_spell(keys)}'" for keys in plain)
        raise CheckpointError(
            f"{path}: no averaged (EMA) weights here; the file holds {listed}; drop --weights ema"
        )
    pool = averaged if weights == "ema" or not plain else plain
    ranked = sorted(pool, key=_rank)
    if len(ranked) > 1 and _rank(ranked[0]) == _rank(ranked[1]):
        listed = ", ".join(f"'{_spell(keys)}'" for keys in pool)
        raise CheckpointError(f"{path}: holds several state dicts: {listed}; choose one with --weights KEY")
    return ranked[0]


def _rank(keys: Keys) -> int:
    """Rank a path by its first key among the known ones; averages and unknown keys come last, as equals."""
    return MODEL_KEYS.index(keys[0]) if keys and keys[0] in MODEL_KEYS else len(MODEL_KEYS) if keys else -1


def _entries_to_drop(payload: Any, keys: Keys, other: set[Keys]) -> Iterator[str]:
    """Yield the entries along the path that hold training state or the weights that were not chosen."""
    for depth in range(len(keys)):
        at = keys[:depth]
        beside = value_at(payload, at)
        for key, value in beside.items() if isinstance(beside, Mapping) else ():
            here = (*at, str(key))
            if here == keys[: depth + 1]:
                continue
            if is_training_state(str(key), value) or any(item[: depth + 1] == here for item in other):
                yield _spell(here)


def _spell(keys: Keys) -> str:
    return ".".join(keys)


def _describe(payload: Any) -> str:
    if isinstance(payload, Tensor):
        return f"a single tensor {tuple(payload.shape)}"
    if isinstance(payload, Mapping):
        listed = ", ".join(f"'{key}'" for key in list(payload)[:5])
        return f"a dict with {len(payload)} entries ({listed})" if payload else "an empty dict"
    return f"a {type(payload).__name__}"
