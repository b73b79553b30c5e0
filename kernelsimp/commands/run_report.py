"""An export in the report of the run that it is of; everything else there stays as it is."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kernelsimp.commands.report import drawing
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_text
from kernelsimp.records.report import Report
from kernelsimp.records.serialise import json_text, to_plain
from kernelsimp.report import load_gallery, read_report, report_html, report_markdown
from kernelsimp.report.store import read_json
from kernelsimp.run_lock import take_lock

Change = Callable[[Report], Mapping[str, Any]]
"""From a run's report to the fields of it that an export changes."""


def add_export(run: Path, change: Change) -> str:
    """Put an export into report.json, .md and .html of a RUN, and say so.

    The export is written by then: what hinders it is said, not raised, and then the report is as it was.
    """
    try:
        _add(run, change)
    except KernelsimpError as error:
        return f"the run's report is as it was, without this export: {error}"
    return f"{run / 'report.html'} has this export too"


def _add(run: Path, change: Change) -> None:
    """Write the three files, once all of them could be made."""
    with drawing(run):
        report = read_report(run)
    changed = change(report)
    with drawing(run):
        shown, gallery = replace(report, **changed), load_gallery(run / "pictures.npz")
        pages = {"report.md": report_markdown(shown), "report.html": report_html(shown, gallery)}
    # the file's own values, not the record's: nothing that another version wrote there is lost
    plain = {name: to_plain(value) for name, value in changed.items()}
    data = {**read_json(run / "report.json", "report"), **plain}
    take_lock(run, report)
    write_text(run / "report.json", json_text(data))
    for name, text in pages.items():
        write_text(run / name, text)
