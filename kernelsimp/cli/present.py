"""What a run came to, written and printed: what simplify, prune and train end with."""

from collections.abc import Iterable
from pathlib import Path

import typer
from rich.markup import escape

from kernelsimp.cli.console import emit_json, out
from kernelsimp.error_text import one_line
from kernelsimp.records.report import Report
from kernelsimp.report import report_json
from kernelsimp.report.tables.headline import from_scratch, verdict_line
from kernelsimp.report.tables.verdict import fell, outcome_words
from kernelsimp.report.terminal import report_tables


def present_run(report: Report, folder: Path, json: str | None, *, quiet: bool, everything: bool) -> None:
    """Write and print what a run came to; raises `typer.Exit` 1 where its budget was not met."""
    if json:
        emit_json(report_json(report), json)
    if not quiet and json != "-":
        for table in report_tables(report, everything=everything):
            out.print(table)
        files = sorted(
            path.name for path in folder.iterdir() if path.is_file() and path.name != "report.html"
        )
        out.print(f"report: {folder}/report.html  {'  '.join(files)}", markup=False)
        say_written((json,))
        mark = "red" if not report.budget_met else "yellow" if fell(report) else "green"
        budget = f"[{mark}]{outcome_words(report)}[/]"
        told = "" if from_scratch(report) and report.budget_met else f"; {budget}"
        out.print(f"done: {escape(verdict_line(report))}{told}; see {escape(str(folder))}/report.html")
    if not report.budget_met:
        raise typer.Exit(1)


def say_done(words: str, written: Iterable[str | Path | None] = (), *, good: bool = True) -> None:
    """End a command in one line: what was done, what it came to, and where its files are."""
    places = [str(place) for place in written if place and str(place) != "-"]
    told = escape(one_line(words)) if good else f"[red]{escape(one_line(words))}[/]"
    out.print(f"done: {told}" + (f"; see {escape('  '.join(places))}" if places else ""))


def say_written(places: Iterable[str | Path | None]) -> None:
    """Name the files that a command has written; none where it wrote to stdout alone."""
    written = [str(place) for place in places if place and str(place) != "-"]
    if written:
        out.print(f"written: {'  '.join(written)}", markup=False)
