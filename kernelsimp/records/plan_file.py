"""Saving a plan and reading it back: one safetensors file, arrays by layer, the rest in its metadata."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from kernelsimp.error_text import short
from kernelsimp.errors import DamagedError, KernelsimpError
from kernelsimp.files import read_tensor_file, write_atomically
from kernelsimp.records.plan import LayerPlan, Plan
from kernelsimp.records.serialise import restore

SCHEMA = "kernelsimp.plan/1"
ARRAYS = {"choice": "int16", "found": "bool", "dead": "bool", "residual": "float32", "dims": "int16"}
"""The arrays of a layer, and what they hold."""

DTYPES = ("BOOL", "I16", "F32")


def save_plan(plan: Plan, path: Path) -> None:
    """Write `plan` to `path`, whole or not at all."""
    arrays: dict[str, Any] = {}
    for layer in plan.layers:
        arrays |= {f"{layer.name}/{array}": np.ascontiguousarray(getattr(layer, array)) for array in ARRAYS}
        arrays |= {
            f"{layer.name}//{key}": np.ascontiguousarray(value) for key, value in layer.parameters.items()
        }
    head = {
        "structures": plan.structures,
        "rule": dict(plan.rule),
        "choice_bits": plan.choice_bits,
        "coefficient_bits": plan.coefficient_bits,
        "layers": [
            {"name": layer.name, "kind": layer.kind, "groups": layer.groups, "grid": layer.grid}
            | ({"shared": layer.shared} if layer.shared else {})
            for layer in plan.layers
        ],
    }
    text = json.dumps(head)
    metadata = {"schema": SCHEMA, "plan": text, "sha256": _digest(text, arrays)}
    write_atomically(path, lambda partial: save_file(arrays, partial, metadata))


def read_plan(path: Path) -> Plan:
    """Read a plan; raises `KernelsimpError` where there is none, or the file is no plan of this schema."""
    try:
        data, metadata = read_tensor_file(path)
        if metadata.get("schema") != SCHEMA:
            found = metadata.get("schema", "no schema")
            raise KernelsimpError(f"{path}: found {found}, expected {SCHEMA}; make the plan again")
        head = restore(_Head, json.loads(metadata["plan"]))
        _check_dtypes(data)
        arrays = load(data)
        if metadata.get("sha256") not in (None, _digest(metadata["plan"], arrays)):  # old plans have none
            raise DamagedError(f"{path}: damaged: its content is not what was written; make the plan again")
        layers = tuple(_layer(entry, arrays, len(head.structures)) for entry in head.layers)
    except FileNotFoundError as error:
        raise KernelsimpError(
            f"{path}: there is no plan; 'kernelsimp simplify --out RUN' writes RUN/plan.safetensors"
        ) from error
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise KernelsimpError(f"{path}: not a readable plan: {short(error)}; make the plan again") from error
    return Plan(head.structures, layers, head.rule, head.choice_bits, head.coefficient_bits)


def _digest(text: str, arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a plan holds."""
    whole = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        whole.update(f"{name} {array.dtype} {array.shape}".encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def _check_dtypes(data: bytes) -> None:
    """Raise ValueError for a dtype that NumPy has not, before anything makes arrays of the file."""
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    for name, entry in head.items():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if name != "__metadata__" and dtype not in DTYPES:
            raise ValueError(f"'{name}' is of dtype {dtype}; expected one of {', '.join(DTYPES)}")


def _layer(entry: "_LayerHead", arrays: dict[str, Any], structures: int) -> LayerPlan:
    """Return the plan of a layer; raises ValueError where its arrays do not fit each other."""
    name = entry.name
    own = {array: arrays[f"{name}/{array}"] for array in ARRAYS}
    extra = {key.split("//")[1]: value for key, value in arrays.items() if key.startswith(f"{name}//")}
    shape = own["choice"].shape
    for array, value in own.items():
        expected = (structures,) if array == "dims" else shape
        if value.dtype.name != ARRAYS[array] or value.shape != expected or len(shape) != 2:
            raise ValueError(
                f"{name}: {array} is {value.dtype.name} {value.shape}, expected {ARRAYS[array]} {expected}"
            )
    if any(value.dtype != np.float32 or value.shape[:2] != shape for value in extra.values()):
        raise ValueError(f"{name}: its parameters are not those of its kernels")
    if own["choice"].size and not 0 <= own["choice"].min() <= own["choice"].max() < structures:
        raise ValueError(f"{name}: a choice that is none of its {structures} structures")
    if entry.shared < 0:
        raise ValueError(f"{name}: {entry.shared} numbers that its kernels share")
    if entry.groups < 1 or not entry.grid or min(entry.grid) < 1:
        raise ValueError(f"{name}: kernels of {entry.grid} in {entry.groups} groups")
    return LayerPlan(name, entry.kind, entry.groups, entry.grid, **own, parameters=extra, shared=entry.shared)


@dataclass(frozen=True)
class _LayerHead:
    """What a plan's file says of a layer beside its arrays."""

    name: str
    kind: str
    groups: int
    grid: tuple[int, ...]
    shared: int = 0


@dataclass(frozen=True)
class _Head:
    """What a plan's file says in words."""

    structures: tuple[str, ...]
    rule: Mapping[str, Any]
    choice_bits: float
    coefficient_bits: float
    layers: tuple[_LayerHead, ...]
