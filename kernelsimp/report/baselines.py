"""The baseline file of a check: small, sorted, the same bytes for the same content.

A run's report.json serves as well: what a check needs is taken from it. A baseline carries the SHA-256 of its
own content, so that one that was edited says so; whoever may write it may write that too, so it is no
signature.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernelsimp.error_text import printable
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_text
from kernelsimp.records.limits import SCHEMA, Baseline, baseline_of
from kernelsimp.records.report import SCHEMA as REPORT_SCHEMA
from kernelsimp.records.serialise import MisfitError, restore, to_plain
from kernelsimp.report.store import check_schema, is_folder, read_json, read_report

DIGEST = "sha256"
"""The key of a baseline's own digest, which is over all others."""

MAKE = "kernelsimp check MODEL --baseline {path} --update-baseline"
"""The line that makes a baseline, where no better one is known."""


def baseline_text(baseline: Baseline) -> str:
    """Return the file's text: keys sorted, one a line, layers by name, ASCII, one line end."""
    data = to_plain(baseline)
    data["layers"] = sorted(data["layers"], key=lambda layer: str(layer["name"]))
    data = _round_floats(data)
    return json.dumps({**data, DIGEST: _digest(data)}, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Write a baseline file, whole or not at all."""
    write_text(path, baseline_text(baseline))


def read_baseline(path: Path, make: str = "", *, accept_edited: bool = False) -> Baseline:
    """Read a baseline file, a report.json, or the report of a run directory.

    Raises `KernelsimpError` where there is none (with `make`, the line that makes one), it cannot be used, or
    it was edited and `accept_edited` is false.
    """
    return _checked(_read(path, make, accept_edited=accept_edited), path)


def _read(path: Path, make: str, *, accept_edited: bool) -> Baseline:
    if is_folder(path):
        return baseline_of(read_report(path))
    data = read_json(path, f"baseline; make one: {make or MAKE.format(path=printable(str(path)))}")
    if _of_a_report(data):
        return baseline_of(read_report(path))
    check_schema(path, data, SCHEMA, " or a run's report")
    try:
        baseline = restore(Baseline, data)
    except MisfitError as error:
        remedy = "the file is damaged, make it again with --update-baseline"
        raise KernelsimpError(f"{path}: {printable(str(error))}; {remedy}") from error
    digest = data.pop(DIGEST, None)
    if not accept_edited and digest != _digest(data):
        found = "has no digest of its content" if digest is None else "its content is not what was written"
        raise KernelsimpError(
            f"{path}: edited, or of an older version: {found}; make it again with --update-baseline, or pass "
            "--accept-edited"
        )
    return baseline


def _checked(baseline: Baseline, path: Path) -> Baseline:
    """Raise `KernelsimpError` for a layer whose shape and groups no convolution has, and for odd figures."""
    for layer in baseline.layers:
        shape, groups = layer.weight_shape, layer.groups
        if not 3 <= len(shape) <= 5 or min(shape) < 1 or groups < 1 or shape[0] % groups:
            raise KernelsimpError(
                f"{path}: layer '{layer.name}' of shape {shape} in {groups} groups is no convolution; "
                "make the baseline again"
            )
    if not baseline.structures or not all(map(math.isfinite, baseline.measured.values())):
        raise KernelsimpError(f"{path}: no structures, or figures that are no numbers; make it again")
    return baseline


def _digest(data: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a baseline's content, whatever its spaces and the order of its keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def is_report(path: Path) -> bool:
    """Say whether a file is a report.json, of whatever version."""
    return path.is_file() and _of_a_report(read_json(path, "baseline"))


def _of_a_report(data: Mapping[str, Any]) -> bool:
    return str(data.get("schema", "")).startswith(REPORT_SCHEMA.partition("/")[0])


def _round_floats(value: Any) -> Any:
    """Round to nine digits, so that another machine's last bit does not change the file."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: _round_floats(item) for key, item in value.items()}
    return [_round_floats(item) for item in value] if isinstance(value, list) else value
