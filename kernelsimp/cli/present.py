"""What a run came to, written and printed: what simplify, prune and train end with."""

from pathlib import Path

import typer

from kernelsimp.cli.console import emit_json, out
from kernelsimp.records.report import Report
from kernelsimp.report import report_json
from kernelsimp.report.terminal import report_tables


def present_run(report: Report, folder: Path, json: str | None, *, quiet: bool) -> None:
    """Write and print what a run came to; raises `typer.Exit` 1 where its budget was not met."""
    if json:
        emit_json(report_json(report), json)
    if not quiet and json != "-":
        for table in report_tables(report):
            out.print(table)
        out.print(f"report: {folder}/report.html  report.md  report.json", markup=False)
    if not report.budget_met:
        raise typer.Exit(1)
