"""The baseline file of a check: small, sorted, the same bytes for the same content.

A run's report.json serves as well: what a check needs is taken from it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_text
from kernelsimp.records.limits import SCHEMA, Baseline, baseline_of
from kernelsimp.records.report import SCHEMA as REPORT_SCHEMA
from kernelsimp.records.serialise import MisfitError, restore, to_plain
from kernelsimp.records.verdict import printable
from kernelsimp.report.store import check_schema, is_folder, read_json, read_report

MAKE = "kernelsimp check MODEL --baseline {path} --update-baseline"
"""The line that makes a baseline, where no better one is known."""


def baseline_text(baseline: Baseline) -> str:
    """Return the file's text: keys sorted, one a line, layers by name, ASCII, one line end."""
    data = to_plain(baseline)
    data["layers"] = sorted(data["layers"], key=lambda layer: str(layer["name"]))
    return json.dumps(_round_floats(data), indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Write a baseline file, whole or not at all."""
    write_text(path, baseline_text(baseline))


def read_baseline(path: Path, make: str = "") -> Baseline:
    """Read a baseline file, a report.json, or the report of a run directory.

    Raises `KernelsimpError` where there is none (with `make`, the line that makes one), or it cannot be used.
    """
    if is_folder(path):
        return baseline_of(read_report(path))
    data = read_json(path, f"baseline; make one: {make or MAKE.format(path=printable(str(path)))}")
    if _of_a_report(data):
        return baseline_of(read_report(path))
    check_schema(path, data, SCHEMA)
    try:
        return restore(Baseline, data)
    except MisfitError as error:
        remedy = "the file is damaged, make it again with --update-baseline"
        raise KernelsimpError(f"{path}: {printable(str(error))}; {remedy}") from error


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
