"""Saving a plan and reading it back: one safetensors file, arrays by layer, the rest in its metadata."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_atomically
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
    metadata = {"schema": SCHEMA, "plan": json.dumps(head)}
    write_atomically(path, lambda partial: save_file(arrays, partial, metadata))


def read_plan(path: Path) -> Plan:
    """Read a plan; raises `KernelsimpError` where the file is no plan of this schema."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("schema") != SCHEMA:
                found = metadata.get("schema", "no schema")
                raise KernelsimpError(f"{path}: found {found}, expected {SCHEMA}; make the plan again")
            head = json.loads(metadata["plan"])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        layers = tuple(_layer(entry, arrays) for entry in head["layers"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise KernelsimpError(f"{path}: not a readable plan: {error}") from error
    return Plan(
        tuple(head["structures"]), layers, head["rule"], head["choice_bits"], head["coefficient_bits"]
    )


def _layer(entry: dict[str, Any], arrays: dict[str, Any]) -> LayerPlan:
    name = entry["name"]
    own = {array: arrays[f"{name}/{array}"] for array in ARRAYS}
    extra = {key.split("//")[1]: value for key, value in arrays.items() if key.startswith(f"{name}//")}
    return LayerPlan(name, entry["kind"], entry["groups"], tuple(entry["grid"]), **own, parameters=extra)
