"""What a terminal shows at several widths: whole words, fewer columns, few rows, and a last line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import reports

from kernelsimp.cli.main import run
from kernelsimp.records.report import Report
from kernelsimp.records.verdict import Finding, RuleMeasure, Verdict
from kernelsimp.report import report_html, report_markdown
from kernelsimp.report.tables.headline import verdict_line
from kernelsimp.report.tables.pair import pair_tables
from kernelsimp.report.tables.run import control_table, family_table, layer_table, stage_table
from kernelsimp.report.tables.scan import found_by_family, scan_family_table, scan_layer_table, scan_words
from kernelsimp.report.tables.table import Table
from kernelsimp.report.tables.verdict import budget_words, title_words
from kernelsimp.report.terminal import (
    as_text,
    column_widths,
    draw,
    fitting_columns,
    report_tables,
    verdict_tables,
)


def tables() -> list[Table]:
    report = replace(reports.report(), controls=reports.controls())
    makers = (control_table, family_table, layer_table, stage_table)
    return [*(make(report) for make in makers), scan_layer_table(reports.scan())]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("table", tables(), ids=lambda table: table.title)
def test_no_word_of_a_table_is_broken_and_none_is_wider_than_the_screen(table, width):
    text = as_text([draw(table)], width)
    assert max(map(len, text.splitlines())) <= width
    shown = set(text.split())
    kept = fitting_columns(table, width)
    assert kept[0] == 0
    assert len(kept) >= 3
    for place in kept:
        assert set(table.heads[place].split()) <= shown
        assert {word for row in table.rows for word in row[place].split() if len(word) <= 24} <= shown


def test_the_least_columns_go_first():
    wide = control_table(replace(reports.report(), controls=reports.controls()))
    assert fitting_columns(wide, 200) == list(range(7))
    assert 3 not in fitting_columns(wide, 60)
    assert 6 in fitting_columns(wide, 60)


def checked() -> Verdict:
    message = "layer layer1.0.conv1: 3 of 16 frozen kernels changed, the first is [0,1]"
    measures = tuple(
        RuleMeasure("kernels.structure_broken", value, 0, "max_delta 0", outcome)
        for value, outcome in ((3, "error"), (0, "pass"))
    )
    broken = Finding("kernels.structure_broken", "error", "layer1.0.conv1", 3.0, 0.0, message)
    return Verdict((broken,), measures)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_check_says_what_passed_and_what_failed_where_at_any_width(width):
    text = as_text(verdict_tables(checked()), width)
    assert " pass" in text
    assert text.count("FAIL") == 2
    assert "layer1.0.conv1:" in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [60, 80, 120])
def test_neither_of_two_runs_goes_and_both_are_as_wide(width):
    other = replace(reports.report(), settings={"plan": {"dof": 0.25}, "data": {"source": "npz:" + "x" * 40}})
    for table in pair_tables((reports.report(), other), ("first", "second")):
        if table.title != "Layers":
            widths = column_widths(table, width)
            assert list(widths) == [0, 1, 2]
            assert sum(widths.values()) + 3 * 3 - 1 <= width
    headline = column_widths(pair_tables((reports.report(), other), ("first", "second"))[0], width)
    assert abs(headline[1] - headline[2]) <= 1 or width == 120


def many() -> Report:
    base = reports.report()
    layer = replace(base.layers[0], families={f"rows-{n}-{n + 1}": n + 1 for n in range(12)})
    return replace(base, layers=(layer,))


def test_eight_structures_are_shown_and_the_rest_counted():
    brief = as_text(report_tables(many()), 120)
    assert "and 4 more (--all)" in brief
    assert brief.count("rows-") == 8
    whole = as_text(report_tables(many(), everything=True), 120)
    assert "more (--all)" not in whole
    assert whole.count("rows-") == 12


def test_a_run_ends_with_what_was_done_what_it_cost_and_where_it_is(model, tmp_path, capsys):
    out, data = tmp_path / "run", tmp_path / "run.json"
    assert run(["simplify", str(model), "--tolerance", "0.9", "--out", str(out), "--json", str(data)]) == 0
    *_, files, written, done = capsys.readouterr().out.splitlines()
    assert all(path.name in files for path in out.iterdir() if path.is_file())
    assert written == f"written: {data}"
    assert "kernels simplified, accuracy not measured" in done
    assert done.endswith(f"within budget; see {out}/report.html")


def test_the_line_of_a_verdict_has_accuracy_and_its_split():
    line = verdict_line(reports.report())
    assert " of test images right (" in line
    assert " pp)" in line


def test_a_scan_counts_what_is_found_once_in_every_table():
    scan = reports.scan()
    layers = tuple(replace(layer, found=np.arange(12) < 7) for layer in scan.layers)
    scan = replace(scan, layers=layers)
    said = (
        "14 found (nearer to a family than chance explains), 8 matching (within 0.1 of any structure), 8 both"
    )
    assert scan_words(scan) == f"24 kernels in 2 layers: {said}"
    by_family = [int(row[-1]) for row in scan_family_table(scan).rows]
    assert sum(by_family) == sum(found_by_family(scan).values()) == 8
    assert sum(int(row[6]) for row in scan_layer_table(scan).rows) == 14


def test_a_budget_of_something_else_says_that_accuracy_fell():
    report = replace(reports.report(), settings={"plan": {"dof": 0.3, "max_drop": None}})
    lost = replace(report, accuracy=replace(report.accuracy, change_pp=-9.3, change_ci95=(-12.0, -6.6)))
    assert title_words(report).endswith("within budget")
    assert title_words(lost).endswith("-9.30 pp, budget met, but accuracy fell")
    assert "which fell by more than chance: -9.30 pp, 95 % interval -12.00 to -6.60 pp" in budget_words(lost)
    judged = replace(lost, settings={"plan": {"dof": None, "max_drop": 10.0}})
    assert title_words(judged).endswith("within budget")


LAST = [
    (["families", "--size", "3"], "done: ", " denoisers for --denoise"),
    (["audit", "MODEL"], "done: 3 layers, ", ""),
    (["scan", "MODEL"], "done: 16 kernels in 2 layers: ", " both"),
    (["simplify", "MODEL", "--tolerance", "0.9", "--dry-run"], "done: dry run, nothing written: ", " left"),
]


@pytest.mark.parametrize(("words", "begins", "ends"), LAST, ids=lambda part: str(part)[:12])
def test_a_command_ends_in_one_line_of_what_it_came_to(model, capsys, words, begins, ends):
    assert run([str(model) if word == "MODEL" else word for word in words]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith(begins)
    assert last.endswith(ends)


def test_a_closing_line_names_the_files_and_json_on_stdout_stays_json(model, tmp_path, capsys):
    page = tmp_path / "p.html"
    assert run(["scan", str(model), "--html", str(page)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"; see {page}")
    for words in (["scan", str(model)], ["audit", str(model)]):
        assert run([*words, "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["schema"].startswith("kernelsimp.")


def test_a_training_of_which_no_epoch_was_kept_is_not_called_fine_tuning():
    base = reports.report()
    stages = (*base.accuracy.stages[:1], replace(base.accuracy.stages[-1], stage="finetuned"))
    tuned = replace(base, accuracy=replace(base.accuracy, stages=stages), training=tuple(reports.epochs()))
    for kept in (True, False):
        epochs = tuple(replace(epoch, kept=kept) for epoch in tuned.training)
        text = as_text(report_tables(replace(tuned, training=epochs)), 200)
        assert ("finetuned" in text) == kept
        assert ("no epoch kept" in text) != kept


def test_no_face_calls_a_network_finetuned_where_no_epoch_was_kept():
    base = reports.report()
    stages = (*base.accuracy.stages[:1], replace(base.accuracy.stages[-1], stage="finetuned"))
    epochs = tuple(replace(epoch, kept=False) for epoch in reports.epochs())
    similarity = {"stages": {"finetuned": {"layers": 3}}}
    tuned = replace(
        base, accuracy=replace(base.accuracy, stages=stages), training=epochs, similarity=similarity
    )
    said = [report_markdown(tuned), report_html(tuned), str(pair_tables((tuned, tuned), ("a", "b")))]
    assert not any("finetuned" in text for text in said)
    assert all("no epoch kept" in text for text in said)
