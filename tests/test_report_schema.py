"""The shipped JSON Schemas accept what is written, refuse what is damaged, and follow the records."""

import json
from collections.abc import Callable
from dataclasses import replace

import jsonschema
import pytest
import reports
import schemas

from kernelsimp.records.audit import ActivationRank, Alternative, Audit, LayerAudit, Totals, WeightRank
from kernelsimp.records.comparison import Comparison, LayerSimilarity, Matrix, Predictions
from kernelsimp.records.evaluation import Evaluation
from kernelsimp.records.limits import baseline_of
from kernelsimp.records.verdict import Finding, RuleMeasure, Verdict
from kernelsimp.report.baselines import baseline_text
from kernelsimp.report.evaluation import evaluation_json
from kernelsimp.report.store import json_schema, report_json, scan_json, verdict_json
from kernelsimp.report.tables.audit import audit_json
from kernelsimp.report.tables.comparison import comparison_json
from kernelsimp.report.tables.factorised import factorised_json


def evaluated() -> Evaluation:
    accuracy = reports.report().accuracy
    assert accuracy is not None
    return Evaluation({"path": "a.pt"}, accuracy.stages[0], 99.0, {"models": {}})


def compared() -> Comparison:
    pair = LayerSimilarity("conv1", "conv1", 40, "positions", (4, 6), cka=0.5)
    matrix = Matrix(("conv1",), ("conv1",), {"cka": ((None,),)})
    return Comparison((pair,), Predictions(0.5, 0.1, 10), 40, "channels", "40 positions", matrix)


def audited() -> Audit:
    cheaper = Alternative("two 3x3", 18, None, 25 / 18, None)
    layer = LayerAudit(
        name="conv1",
        kind="dense",
        weight_shape=(1, 1, 5, 5),
        kernel=(5, 5),
        groups=1,
        parameters=25,
        parameter_share=1.0,
        macs=None,
        mac_share=None,
        size_in=None,
        size_out=None,
        patch=25,
        expansion=1 / 25,
        weight_rank=WeightRank(1.0, 1.0, 1),
        activations=ActivationRank(1.0, None, 1, 40),
        receptive_field=(5, 5),
        alternatives=(cheaper,),
    )
    return Audit({"path": "a.pt"}, (1, 8, 8), Totals(1, 25, None), (layer,))


def written(name: str) -> object:
    verdict = Verdict(
        (Finding("kernels.nan", "warn", "conv1", 1, None, "x"),),
        (RuleMeasure("a", None, 1.0, "max 1", "skip"),),
    )
    made: dict[str, Callable[[], object]] = {
        "kernelsimp.report/1": lambda: report_json(reports.report()),
        "kernelsimp.scan/1": lambda: scan_json(reports.scan()),
        "kernelsimp.verdict/1": lambda: verdict_json(verdict),
        "kernelsimp.baseline/1": lambda: json.loads(baseline_text(baseline_of(reports.report()))),
        "kernelsimp.evaluate/1": lambda: evaluation_json(evaluated()),
        "kernelsimp.compare/1": lambda: comparison_json(compared()),
        "kernelsimp.audit/1": lambda: audit_json(audited()),
        "kernelsimp.factorised/1": lambda: factorised_json(reports.factorised()),
    }
    return made[name]()


NAMES = [
    f"kernelsimp.{record}/1"
    for record in ("report", "scan", "verdict", "baseline", "evaluate", "compare", "audit", "factorised")
]


def test_every_shipped_schema_is_tried() -> None:
    shipped = {f"kernelsimp.{path.stem.replace('-', '/')}" for path in schemas.FOLDER.glob("*.json")}
    assert shipped == set(NAMES)


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
