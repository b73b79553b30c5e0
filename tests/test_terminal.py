"""What a terminal shows at several widths: whole words, fewer columns, few rows, and a last line."""

from dataclasses import replace

import numpy as np
import pytest
import reports

from kernelsimp.cli.main import run
from kernelsimp.records.report import Report
from kernelsimp.report.tables.headline import verdict_line
from kernelsimp.report.tables.run import control_table, family_table, layer_table, stage_table
from kernelsimp.report.tables.scan import scan_layer_table
from kernelsimp.report.tables.table import Table
from kernelsimp.report.terminal import as_text, draw, fitting_columns, report_tables, scan_tables


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
    assert done.endswith(f"budget met; see {out}/report.html")


def test_the_line_of_a_verdict_has_accuracy_and_its_split():
    line = verdict_line(reports.report())
    assert " of test images right (" in line
    assert " pp)" in line


def test_a_scan_says_how_more_kernels_are_found_than_match():
    scan = reports.scan()
    assert "do not match" not in as_text(scan_tables(scan), 200)
    layers = tuple(replace(layer, found=np.arange(12) < 7) for layer in scan.layers)
    text = as_text(scan_tables(replace(scan, layers=layers)), 200)
    assert "14 are found (nearer to a family than chance explains), 8 match" in text
    assert "6 are found and do not match" in text


def test_a_training_of_which_no_epoch_was_kept_is_not_called_fine_tuning():
    base = reports.report()
    stages = (*base.accuracy.stages[:1], replace(base.accuracy.stages[-1], stage="finetuned"))
    tuned = replace(base, accuracy=replace(base.accuracy, stages=stages), training=tuple(reports.epochs()))
    for kept in (True, False):
        epochs = tuple(replace(epoch, kept=kept) for epoch in tuned.training)
        text = as_text(report_tables(replace(tuned, training=epochs)), 200)
        assert ("finetuned" in text) == kept
        assert ("no epoch kept" in text) != kept
