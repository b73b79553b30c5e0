"""Read the weights and convolutions of a `torch.export` archive from its JSON, without building a program.

`torch.export.load` evaluates expressions that stand in the file as text; the graph's nodes and the table
of weights say all that a scan needs. The archive of today is read, and the two older layouts,
whose weights are a pickled state dict.
"""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernelsimp.error_text import short
from kernelsimp.errors import CheckpointError
from kernelsimp.files import quiet
from kernelsimp.models.archive import Archive, flat, strided_view
from kernelsimp.models.exported import Convolution, Exported

_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""The numbers that the format gives to types."""

_CONVOLUTION = re.compile(r"torch\.ops\.aten\.(conv(?:_transpose)?[123]d|_?convolution)\.\w+$")


def read_pt2(path: Path) -> Exported:
    """Return the parameters of an exported program and the convolutions of its graph.

    Raises `CheckpointError` where the archive is damaged or holds no graph.
    """
    try:
        with zipfile.ZipFile(path) as file, quiet():
            archive = Archive(file)
            graphs = archive.records("models/", ".json") + archive.records(
                "serialized_exported_program.json", ""
            )
            if not graphs:
                raise CheckpointError("no exported graph in it; export again with torch.export.save")
            module = json.loads(archive.read(graphs[0]))["graph_module"]
            tensors = dict(_weights(archive, Path(graphs[0]).stem))
            return Exported(tensors, dict(_convolutions(module, tensors)))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a valid .pt2 archive ({short(error)}); export it again"
        ) from error


def _weights(archive: Archive, model: str) -> Iterator[tuple[str, Tensor]]:
    for older in (f"data/weights/{model}.pt", "serialized_state_dict.pt"):
        if older in archive:
            state = archive.unpickle(older)
            yield from ((str(name), item) for name, item in state.items() if isinstance(item, Tensor))
            return
    table = json.loads(archive.read(f"data/weights/{model}_weights_config.json"))["config"]
    storages: dict[str, Tensor] = {}  # tied weights name one record
    for name, entry in table.items():
        record = f"data/weights/{entry['path_name']}"
        if entry.get("use_pickle"):
            yield name, archive.unpickle(record)
            continue
        meta = entry["tensor_meta"]
        if record not in storages:
            storages[record] = flat(archive.read(record), _DTYPES[meta["dtype"]])
        sizes, strides = _integers(meta["sizes"]), _integers(meta["strides"])
        yield name, strided_view(storages[record], sizes, strides, int(meta["storage_offset"]["as_int"]))


def _integers(symbols: list[dict[str, int]]) -> list[int]:
    return [int(symbol["as_int"]) for symbol in symbols]


def _convolutions(
    module: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Convolution]]:
    names = dict(_inputs(module["signature"]["input_specs"]))
    for node in module["graph"]["nodes"]:
        target = _CONVOLUTION.match(node["target"])
        if target is None:
            continue
        given = {item["name"]: item["arg"] for item in node["inputs"]}
        weight = names.get(given["weight"].get("as_tensor", {}).get("name", ""), "")
        if weight in tensors:
            groups = int(given.get("groups", {}).get("as_int", 1))
            transposed = "transpose" in target[1] or bool(given.get("transposed", {}).get("as_bool"))
            strides = given.get("stride", {"as_ints": [1]}).get("as_ints")
            yield weight, Convolution(groups, transposed, max(map(int, strides)) if strides else None)


def _inputs(specs: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield (name in the graph, name in the state dict) of every parameter and buffer."""
    for spec in specs:
        for sort in ("parameter", "buffer"):
            if sort in spec:
                yield spec[sort]["arg"]["name"], spec[sort][f"{sort}_name"]
