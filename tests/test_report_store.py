"""report.json and the JSON of a scan: what is written is read back, and what is not ours is refused."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import reports
from saying import file_refusal

from kernelsimp.error_text import printable
from kernelsimp.errors import KernelsimpError
from kernelsimp.records.report import Report, Stage
from kernelsimp.records.serialise import json_text, to_plain
from kernelsimp.report.store import read_report, report_json, scan_json


def written(path: Path, report: Report) -> Path:
    path.write_text(json_text(report_json(report)), encoding="utf-8")
    return path


@pytest.mark.parametrize("hold", ["freeze", "tie", "none"])
def test_a_report_is_read_back_as_it_was(tmp_path: Path, hold: str) -> None:
    report = reports.report(hold=hold)
    assert read_report(written(tmp_path / "report.json", report)) == report


def test_a_report_is_found_in_its_run(tmp_path: Path) -> None:
    written(tmp_path / "report.json", reports.report())
    assert read_report(tmp_path) == reports.report()


def test_a_report_without_data_is_read_back(tmp_path: Path) -> None:
    bare = replace(reports.report(), accuracy=None, training=(), controls=())
    assert read_report(written(tmp_path / "r.json", bare)) == bare


def test_the_keys_are_the_published_ones() -> None:
    data = report_json(reports.report())
    assert next(iter(data)) == "schema"
    assert data["schema"] == "kernelsimp.report/1"
    stage = set(data["accuracy"]["stages"][0])
    assert stage >= {"stage", "top1", "correct", "total", "loss", "ci95", "correct_bits"}
    assert set(data["kernels"]) >= {"total", "simplified", "found", "imposed", "zeroed", "dead", "frozen"}
    assert set(data["dof"]) == {"before", "after", "fraction", "equivalent_fraction", "planned_fraction"}
    assert set(data["size"]) >= {"file", "zip", "packed"}
    assert set(data["controls"][0]) >= {"name", "dof", "top1", "correct", "change_pp", "mcnemar_p"}
    layer = {"name", "kind", "kernels", "simplified", "found", "families", "dof", "weight_error"}
    assert set(data["layers"][0]) >= layer | {"output_error", "hold"}
    assert set(data["layers"][0]["hold"]) >= {"assignment", "frozen_crc32", "sha256"}
    top = {"accuracy", "kernels", "dof", "bits", "size", "controls", "robustness", "similarity", "layers"}
    assert set(data) >= top | {"settings", "provenance"}
    assert set(data) == {item.name for item in fields(Report)}


def test_no_nan_reaches_json_and_a_null_number_comes_back_as_nan(tmp_path: Path) -> None:
    report = reports.report()
    assert report.accuracy is not None
    last = replace(report.accuracy.stages[-1], loss=math.nan)
    report = replace(report, accuracy=replace(report.accuracy, stages=(*report.accuracy.stages[:-1], last)))
    path = written(tmp_path / "report.json", report)
    assert "NaN" not in path.read_text()
    back = read_report(path)
    assert back.accuracy is not None
    assert math.isnan(back.accuracy.stages[-1].loss)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.array([[1.0, math.inf]]), [[1.0, None]]),
        ((1, "a", None, True), [1, "a", None, True]),
        ({3: {"x": -math.inf}}, {"3": {"x": None}}),
        (Path("a/b"), "a/b"),
    ],
)
def test_anything_becomes_json(value: object, expected: object) -> None:
    assert to_plain(value) == expected
    json.dumps(to_plain(value), allow_nan=False)


def test_keys_of_a_later_minor_addition_are_passed_over(tmp_path: Path) -> None:
    data = report_json(reports.report()) | {"surprise": [1]}
    (tmp_path / "report.json").write_text(json.dumps(data))
    assert read_report(tmp_path) == reports.report()


def test_a_report_that_is_not_there(tmp_path: Path) -> None:
    expected = "there is no report; 'kernelsimp simplify --out RUN' writes RUN/report.json"
    assert file_refusal(tmp_path / "report.json", read_report) == f"FILE: {expected}"


def test_a_run_without_a_report_names_the_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(KernelsimpError, match=r"report\.json: there is no report; "):
        read_report(tmp_path)


def test_a_report_that_is_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path / "report.json", reports.report())
    path.write_text(path.read_text()[:300])
    message = file_refusal(path, read_report)
    assert message.startswith("FILE: not whole JSON (")
    assert message.endswith("); the file is cut off or no JSON, write it again")


FOREIGN = [
    ("[1, 2]", "JSON of another kind, list; expected an object"),
    ('{"a": 1}', "foreign JSON without a schema; expected 'kernelsimp.report/1'"),
    ('{"schema": 7}', "foreign JSON without a schema; expected 'kernelsimp.report/1'"),
    ('{"schema": "kernelsimp.scan/1"}', "schema is 'kernelsimp.scan/1'; expected 'kernelsimp.report/1'"),
    (
        '{"schema": "kernelsimp.report/2"}',
        "schema 'kernelsimp.report/2' is newer than 'kernelsimp.report/1', the newest this version reads; "
        "update kernelsimp",
    ),
    (
        '{"schema": "kernelsimp.report/0"}',
        "schema 'kernelsimp.report/0' is no longer read, 'kernelsimp.report/1' is; run simplify again",
    ),
    ('{"schema": "a\\u001b[31m\\nb"}', r"schema is 'a\x1b[31m\nb'; expected 'kernelsimp.report/1'"),
    ('{"dof": NaN}', "not JSON (NaN is no JSON number); expected a report"),
]


@pytest.mark.parametrize(("text", "expected"), FOREIGN)
def test_foreign_json_is_refused_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    assert file_refusal(path, read_report) == f"FILE: {expected}"


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"[" * 200_000, b"9" * 5000, b"", b"\x00" * 40])
def test_rubbish_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(data)
    assert file_refusal(path, read_report)


DAMAGE = [
    ("kernels", None, "key 'kernels' is null; expected an object"),
    ("layers", {}, "key 'layers' is {}; expected a list"),
    ("hold", 3, "key 'hold' is 3; expected text"),
    ("bits", [1], "key 'bits' is [1]; expected an object"),
    ("notes", [1], "key 'notes[0]' is 1; expected text"),
    ("dof", {"before": 1.5}, "key 'dof.before' is 1.5; expected a whole number"),
    ("size", {"file": 1}, "key 'size.zip' is missing"),
]


@pytest.mark.parametrize(("key", "value", "expected"), DAMAGE)
def test_a_damaged_report_names_the_key(tmp_path: Path, key: str, value: object, expected: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report_json(reports.report()) | {key: value}))
    assert (
        file_refusal(path, read_report)
        == f"FILE: {expected}; the file is damaged, render it again from its run"
    )


def test_an_interval_must_have_two_ends(tmp_path: Path) -> None:
    data = report_json(reports.report())
    data["accuracy"]["stages"][0]["ci95"] = [1.0]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    assert file_refusal(path, read_report).startswith(
        "FILE: key 'accuracy.stages[0].ci95' has 1 items; expected 2;"
    )


def test_a_name_too_long_for_the_disk_is_one_line(tmp_path: Path) -> None:
    assert file_refusal(tmp_path / ("x" * 5000), read_report).startswith("FILE: cannot read: ")


def test_scan_json_has_the_published_keys() -> None:
    data = scan_json(reports.scan())
    assert data["schema"] == "kernelsimp.scan/1"
    assert set(data["source"]) >= {"path", "sha256", "format"}
    assert data["settings"] == {"null": "white", "tolerance": 0.1, "fdr": None, "seed": None}
    assert data["skipped"] == [{"name": "fc.weight", "reason": "2-D weight"}]
    layer = data["layers"][0]
    expected = {"name", "kind", "weight_shape", "kernels", "dead", "families", "bits_per_kernel", "filters"}
    assert set(layer) >= expected | {"orbits", "prototypes"}
    assert layer["bits_per_kernel"] == {"structure": 18.5, "uniform": 20.25}
    assert data["layers"][1]["bits_per_kernel"] is None
    family = layer["families"]["mirror-h"]
    assert set(family) == {"dim", "observed", "null", "median_residual", "median_residual_mean_removed"}
    assert set(family["null"]["white"]) == {"expected", "enrichment", "found", "lfdr"}


def test_scan_totals_add_up() -> None:
    scan = reports.scan()
    totals = scan_json(scan)["totals"]
    assert totals["layers"] == 2
    assert totals["kernels"] == sum(layer.kernels for layer in scan.layers)
    assert (totals["dead"], totals["weights"], totals["pointwise"]) == (2, 1234, 64)
    mirror = totals["families"]["mirror-h"]
    assert (mirror["observed"], mirror["layers"]) == (18, 2)
    assert mirror["null"]["white"]["expected"] == 9.0
    assert mirror["null"]["white"]["enrichment"] == 2.0
    assert totals["families"]["equal-rows"]["null"]["white"]["enrichment"] is None


def test_a_scan_writes_no_nan() -> None:
    text = json_text(scan_json(reports.scan()))
    assert json.loads(text)["layers"][0]["families"]["mirror-h"]["median_residual_mean_removed"] is None


HOSTILE = [
    ("plain", "plain"),
    ("größe \N{GREEK SMALL LETTER ALPHA}", "größe α"),
    ("a\x1b[31mb", r"a\x1b[31mb"),
    ("a\nb\r\tc", r"a\nb\r\tc"),
    ("a\u202eb", r"a\u202eb"),
    ("a\ud800b", r"a\ud800b"),
    ("a\x00b", r"a\x00b"),
]


@pytest.mark.parametrize(("name", "expected"), HOSTILE)
def test_names_are_shown_on_one_line_and_without_effect(name: str, expected: str) -> None:
    assert printable(name) == expected
    printable(name).encode("utf-8")


def test_a_stage_keeps_its_split(tmp_path: Path) -> None:
    stage = Stage("x", 1.0, 1, 2, 0.1, (0.0, 1.0), "gA==", split="val")
    report = reports.report()
    assert report.accuracy is not None
    report = replace(report, accuracy=replace(report.accuracy, stages=(stage,)))
    back = read_report(written(tmp_path / "report.json", report))
    assert back.accuracy is not None
    assert back.accuracy.stages == (stage,)
