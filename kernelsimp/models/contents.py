"""Every tensor of a checkpoint file, wherever it stands: what a gate must have seen before it says yes.

A payload is whatever the file held: mappings, sequences and namespaces of tensors and arrays, in any depth.
"""

import argparse
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernelsimp.models.checkpoint import Checkpoint
from kernelsimp.models.digest import describe_tensors, tensors_sha256
from kernelsimp.models.stored_order import layer_name, tensor_name
from kernelsimp.models.wrappers import is_training_state
from kernelsimp.records.plan import LayerPlan, Plan


@dataclass(frozen=True, eq=False)
class Beside:
    """A tensor outside the network that was read; `training` where it is an optimiser's or a schedule's."""

    tensor: Tensor
    training: bool

    @property
    def words(self) -> str:
        """Shape, dtype and a digest of the content: what tells whether it is still the same."""
        return f"{describe_tensors({'': self.tensor})['']} {_digest(self.tensor)}"


def narrow_checkpoint(checkpoint: Checkpoint, names: list[str]) -> Checkpoint:
    """Return the part of a file that holds the tensors `names`, where it stands under a prefix.

    A file without them, or with several such parts, comes back with what fits first; the rest is `beside`.
    """
    if not names or all(name in checkpoint.tensors for name in names):
        return checkpoint
    plain = checkpoint.without_parallel()
    fitting = _under_prefix(checkpoint, names) or (plain and _under_prefix(plain, names))
    return fitting or checkpoint


def _under_prefix(checkpoint: Checkpoint, names: list[str]) -> Checkpoint | None:
    """Return the part under the shortest prefix where all `names` stand, which may be none."""
    if all(name in checkpoint.tensors for name in names):
        return checkpoint
    if any(name in checkpoint.tensors for name in names):
        return None
    prefixes = {name.removesuffix(names[0]) for name in checkpoint.tensors if name.endswith("." + names[0])}
    for prefix in sorted(prefixes, key=len):
        if all(prefix + name in checkpoint.tensors for name in names):
            return checkpoint.under(prefix)
    return None


def plan_in_file(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """Return the plan with its layers under the names that the file has for them, wrappers included."""
    own = narrow_checkpoint(checkpoint, [tensor_name(layer.name) for layer in plan.layers])

    def spell(layer: LayerPlan) -> LayerPlan:
        name = own.prefix + tensor_name(layer.name)
        return replace(layer, name=layer_name(own.spelled.get(name, name)))

    return replace(plan, layers=tuple(map(spell, plan.layers)))


def tensors_beside(checkpoint: Checkpoint) -> dict[str, Beside]:
    """Return every tensor of the file that is not among `checkpoint.tensors`, by its dotted place."""
    if checkpoint.raw is None:
        return {}
    keys = checkpoint.found.keys
    own = {(*keys, name) for name in checkpoint.own_names}
    return {
        ".".join(place): Beside(tensor, training)
        for place, tensor, training in _tensors_in(checkpoint.raw.payload)
        if place not in own
    }


def _tensors_in(payload: Any) -> Iterator[tuple[tuple[str, ...], Tensor, bool]]:
    """Yield (place, tensor, whether training left it); what stands in several places comes once."""
    waiting: list[tuple[tuple[str, ...], Any, bool]] = [((), payload, False)]
    seen: set[int] = set()
    while waiting:
        place, value, training = waiting.pop()
        if isinstance(value, Tensor):
            yield place, value, training
        elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
            yield place, torch.as_tensor(np.ascontiguousarray(value)), training
        elif id(value) not in seen:
            seen.add(id(value))
            waiting += [
                ((*place, str(key)), item, training or is_training_state(str(key), item))
                for key, item in _entries(value)
            ]


def _entries(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, argparse.Namespace):
        return list(vars(value).items())
    return list(enumerate(value)) if isinstance(value, list | tuple | set | frozenset) else []


def _digest(tensor: Tensor) -> str:
    plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
    return (
        tensors_sha256({"": tensor.resolve_conj().resolve_neg()})[:16]
        if plain
        else hashlib.sha256(repr(tensor).encode()).hexdigest()[:16]
    )
