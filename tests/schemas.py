"""Writes the JSON Schemas that the package ships from the records: `python tests/schemas.py`.

A test compares the shipped files with what this makes, so a changed record cannot leave its schema behind.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kernelsimp.records.audit import Audit
from kernelsimp.records.comparison import Comparison
from kernelsimp.records.evaluation import Evaluation
from kernelsimp.records.factorised import Factorised
from kernelsimp.records.limits import Baseline
from kernelsimp.records.report import Report
from kernelsimp.records.verdict import Verdict

FOLDER = Path(__file__).resolve().parents[1] / "kernelsimp" / "report" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
RECORDS = {"report-1.json": Report, "baseline-1.json": Baseline, "verdict-1.json": Verdict}
RECORDS |= {"evaluate-1.json": Evaluation, "audit-1.json": Audit}
RECORDS |= {"compare-1.json": Comparison, "factorised-1.json": Factorised}
SCALARS = {int: "integer", str: "string", bool: "boolean"}


def schema_of(record: type[Any]) -> dict[str, Any]:
    """Return the schema of a record: every field without a default is required, more keys are allowed."""
    hints = get_type_hints(record)
    items = fields(record)
    needed = [i.name for i in items if i.default is MISSING and i.default_factory is MISSING]
    return {
        "type": "object",
        "description": " ".join((record.__doc__ or "").split()),
        "properties": {item.name: of_hint(hints[item.name]) for item in items},
        "required": needed,
    }


def of_hint(hint: Any) -> dict[str, Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return {"anyOf": [of_hint(item) for item in inner if item is not type(None)] + [{"type": "null"}]}
    if is_dataclass(hint) and isinstance(hint, type):
        return schema_of(hint)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return {"type": "array", "items": of_hint(inner[0])}
        return {"type": "array", "items": of_hint(inner[0]), "minItems": len(inner), "maxItems": len(inner)}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": of_hint(inner[1])}
    if hint is float:
        return {"type": ["number", "null"]}
    return {} if hint is Any else {"type": SCALARS[hint]}


def whole(name: str) -> dict[str, Any]:
    """Return one schema file; the schema key is fixed and required."""
    record = RECORDS[name]
    made = schema_of(record)
    made["properties"]["schema"] = {"const": record.schema}
    made["required"] = ["schema", *made["required"]]
    return {"$schema": DIALECT, "title": record.schema, **made}


def text(name: str) -> str:
    return json.dumps(whole(name), indent=1) + "\n"


if __name__ == "__main__":
    for name in RECORDS:
        (FOLDER / name).write_text(text(name), encoding="utf-8")
