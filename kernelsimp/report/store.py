"""report.json, from a report and back, and the JSON of a scan.

The keys are those of the records in `kernelsimp.records`; a reader refuses a file that is not there, is
cut off, is foreign, or is of another schema with one line each.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from kernelsimp.error_text import printable
from kernelsimp.errors import KernelsimpError
from kernelsimp.records.report import SCHEMA, Report
from kernelsimp.records.scan import LayerScan, NullCount, Scan
from kernelsimp.records.serialise import MisfitError, restore, to_plain
from kernelsimp.records.verdict import Verdict

LAYER_EXTRAS = ("bits_per_kernel", "filters", "orbits", "prototypes")
SCAN_SETTINGS = ("null", "tolerance", "fdr", "seed")


def report_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values, the schema first; NaN and infinity are null."""
    return {"schema": report.schema, **to_plain(report)}


def json_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema that the package ships under a schema name such as `kernelsimp.report/1`."""
    file = name.removeprefix("kernelsimp.").replace("/", "-") + ".json"
    return dict(json.loads((files("kernelsimp.report") / "schemas" / file).read_text(encoding="utf-8")))


def read_report(path: Path) -> Report:
    """Read a report.json, or the one in the run directory `path`.

    Raises `KernelsimpError` where there is none, it is cut off, foreign, or of another schema.
    """
    place = path / "report.json" if is_folder(path) else path
    data = read_json(place, "report; 'kernelsimp simplify --out RUN' writes RUN/report.json")
    check_schema(place, data, SCHEMA)
    try:
        return restore(Report, data)
    except MisfitError as error:
        raise KernelsimpError(
            f"{place}: {printable(str(error))}; the file is damaged, render it again from its run"
        ) from error


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; `what` completes the sentence "there is no ..." of its absence."""
    try:
        if path.is_char_device() or path.is_block_device():  # /dev/zero has no end
            raise KernelsimpError(f"{path}: is a device, no file; expected a {what.partition(';')[0]}")
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise KernelsimpError(f"{path}: there is no {what}") from error
    except OSError as error:
        raise KernelsimpError(f"{path}: cannot read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise KernelsimpError(
            f"{path}: not whole JSON ({error.msg} at {place}); the file is cut off or no JSON, write it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise KernelsimpError(
            f"{path}: not JSON ({printable(str(error))[:80]}); expected a report"
        ) from error
    if not isinstance(data, dict):
        raise KernelsimpError(f"{path}: JSON of another kind, {type(data).__name__}; expected an object")
    return data


def check_schema(path: Path, data: dict[str, Any], expected: str, besides: str = "") -> None:
    """Raise `KernelsimpError` unless `data` says that it is of the `expected` schema.

    `besides` says in the message what else would do.
    """
    found = data.get("schema")
    if found == expected:
        return
    if not isinstance(found, str):
        raise KernelsimpError(f"{path}: foreign JSON without a schema; expected '{expected}'{besides}")
    name, _, number = found.partition("/")
    family, _, known = expected.partition("/")
    if name != family or not number.isdigit():
        raise KernelsimpError(f"{path}: schema is '{printable(found)[:60]}'; expected '{expected}'{besides}")
    if int(number) > int(known):
        raise KernelsimpError(
            f"{path}: schema '{found}' is newer than '{expected}', the newest this version reads; "
            "update kernelsimp"
        )
    raise KernelsimpError(f"{path}: schema '{found}' is no longer read, '{expected}' is; run simplify again")


def scan_json(scan: Scan) -> dict[str, Any]:
    """Return the scan as JSON values under the keys of schema `kernelsimp.scan/1`."""
    return {
        "schema": scan.schema,
        "source": to_plain(scan.source),
        "totals": {
            "layers": len(scan.layers),
            "kernels": sum(layer.kernels for layer in scan.layers),
            "dead": sum(layer.dead for layer in scan.layers),
            "weights": int(scan.weights),
            "pointwise": int(scan.pointwise),
            "families": family_totals(scan),
        },
        "settings": {**dict.fromkeys(SCAN_SETTINGS), **to_plain(scan.settings)},
        "layers": [_layer_json(layer) for layer in scan.layers],
        "skipped": [{"name": name, "reason": reason} for name, reason in scan.skipped],
        "warnings": list(scan.warnings),
    }


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as JSON values under the keys of schema `kernelsimp.verdict/1`."""
    return {"schema": verdict.schema, "exit_code": verdict.exit_code, **to_plain(verdict)}


def family_totals(scan: Scan) -> dict[str, dict[str, Any]]:
    """Return for each family its matches in all layers, and what each null expects of them."""
    return {
        name: _sum_families([layer.families[name] for layer in scan.layers if name in layer.families])
        for name in scan.families
    }


def _sum_families(parts: list[Any]) -> dict[str, Any]:
    observed = sum(part.observed for part in parts)
    nulls = dict.fromkeys(null for part in parts for null in part.null)
    counts = {null: [part.null[null] for part in parts if null in part.null] for null in nulls}
    summed = {null: _summed_null(items, observed) for null, items in counts.items()}
    return {"observed": observed, "layers": len(parts), "null": summed}


def _summed_null(counts: list[NullCount], observed: int) -> dict[str, Any]:
    expected = sum(count.expected for count in counts)
    found = [count.found for count in counts if count.found is not None]
    enrichment = observed / expected if expected > 0 else None
    total: dict[str, Any] = to_plain(NullCount(expected, enrichment, sum(found) if found else None))
    return total


def _layer_json(layer: LayerScan) -> dict[str, Any]:
    keys = ("name", "kind", "kind_source", "weight_shape", "kernels", "dead", "families", "histogram")
    facts = {key: to_plain(getattr(layer, key)) for key in keys}
    return {**facts, "sentence": layer.sentence, **dict.fromkeys(LAYER_EXTRAS), **to_plain(layer.extra)}


def is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name too long, a folder that may not be entered: reading says why
        return False


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")
