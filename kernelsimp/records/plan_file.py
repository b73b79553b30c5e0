"""Saving a plan and reading it back: one safetensors file, arrays by layer, the rest in its metadata."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from kernelsimp.errors import DamagedError, KernelsimpError
from kernelsimp.files import read_tensor_file, write_atomically
from kernelsimp.records.plan import LayerPlan, Plan

SCHEMA = "kernelsimp.plan/1"
ARRAYS = ("choice", "found", "dead", "residual", "dims")


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
            for layer in plan.layers
        ],
    }
    text = json.dumps(head)
    metadata = {"schema": SCHEMA, "plan": text, "sha256": _digest(text, arrays)}
    write_atomically(path, lambda partial: save_file(arrays, partial, metadata))


def read_plan(path: Path) -> Plan:
    """Read a plan; raises `KernelsimpError` where the file is no plan of this schema."""
    try:
        data, metadata = read_tensor_file(path)
        if metadata.get("schema") != SCHEMA:
            found = metadata.get("schema", "no schema")
            raise KernelsimpError(f"{path}: found {found}, expected {SCHEMA}; make the plan again")
        head, arrays = json.loads(metadata["plan"]), load(data)
        if metadata.get("sha256") not in (None, _digest(metadata["plan"], arrays)):  # old plans have none
            raise DamagedError(f"{path}: damaged: its content is not what was written; make the plan again")
        layers = tuple(_layer(entry, arrays) for entry in head["layers"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise KernelsimpError(f"{path}: not a readable plan: {error}") from error
    return Plan(
        tuple(head["structures"]), layers, head["rule"], head["choice_bits"], head["coefficient_bits"]
    )


def _digest(text: str, arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a plan holds."""
    whole = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        whole.update(f"{name} {array.dtype} {array.shape}".encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def _layer(entry: dict[str, Any], arrays: dict[str, Any]) -> LayerPlan:
    name = entry["name"]
    own = {array: arrays[f"{name}/{array}"] for array in ARRAYS}
    extra = {key.split("//")[1]: value for key, value in arrays.items() if key.startswith(f"{name}//")}
    return LayerPlan(name, entry["kind"], entry["groups"], tuple(entry["grid"]), **own, parameters=extra)
