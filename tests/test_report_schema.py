"""The shipped JSON Schemas accept what is written, refuse what is damaged, and follow the records."""

import json
from collections.abc import Callable
from dataclasses import replace

import jsonschema
import pytest
import reports
import schemas

from kernelsimp.records.limits import baseline_of
from kernelsimp.records.verdict import Finding, Measure, Verdict
from kernelsimp.report.baselines import baseline_text
from kernelsimp.report.store import json_schema, report_json, scan_json, verdict_json


def written(name: str) -> object:
    verdict = Verdict(
        (Finding("kernels.nan", "warn", "conv1", 1, None, "x"),), (Measure("a", None, 1.0, "max 1", "skip"),)
    )
    made: dict[str, Callable[[], object]] = {
        "kernelsimp.report/1": lambda: report_json(reports.report()),
        "kernelsimp.scan/1": lambda: scan_json(reports.scan()),
        "kernelsimp.verdict/1": lambda: verdict_json(verdict),
        "kernelsimp.baseline/1": lambda: json.loads(baseline_text(baseline_of(reports.report()))),
    }
    return made[name]()


NAMES = ["kernelsimp.report/1", "kernelsimp.scan/1", "kernelsimp.verdict/1", "kernelsimp.baseline/1"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_valid(name: str) -> None:
    schema = json_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(written(name))))


@pytest.mark.parametrize("name", NAMES)
def test_every_required_key_is_required(name: str) -> None:
    schema = json_schema(name)
    for key in schema["required"]:
        data = dict(written(name))  # type: ignore[call-overload]
        del data[key]
        assert not jsonschema.Draft202012Validator(schema).is_valid(data), key


@pytest.mark.parametrize("name", NAMES)
def test_another_schema_number_is_invalid(name: str) -> None:
    data = {**written(name), "schema": name.replace("/1", "/2")}  # type: ignore[dict-item]
    assert not jsonschema.Draft202012Validator(json_schema(name)).is_valid(data)


def test_a_report_without_data_is_valid() -> None:
    bare = replace(reports.report(), accuracy=None, training=(), controls=())
    jsonschema.Draft202012Validator(json_schema("kernelsimp.report/1")).validate(report_json(bare))


def test_a_wrong_type_deep_down_is_invalid() -> None:
    data = report_json(reports.report())
    data["layers"][1]["hold"]["frozen_crc32"] = ["1"]
    assert not jsonschema.Draft202012Validator(json_schema("kernelsimp.report/1")).is_valid(data)


@pytest.mark.parametrize("name", sorted(schemas.RECORDS))
def test_the_shipped_schema_follows_the_records(name: str) -> None:
    shipped = (schemas.FOLDER / name).read_text(encoding="utf-8")
    assert shipped == schemas.text(name), "the records changed: run python tests/schemas.py"
