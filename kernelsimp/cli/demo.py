"""`kernelsimp demo`: the whole story on a small network, in about a minute of CPU."""

import os
from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.console import out, watch_command
from kernelsimp.cli.options import QuietOption


def demo(
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="where to write")] = Path(
        "kernelsimp-demo"
    ),
    quiet: QuietOption = False,
) -> None:
    """Train a small network on digits, then scan, simplify, freeze, fine-tune, report and check it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads of a tiny network only wait

    from kernelsimp.commands import demo as command
    from kernelsimp.report.terminal import report_tables, scan_tables, verdict_tables

    with watch_command(quiet=quiet, json=None) as watcher:
        story = command.demo(folder, watcher)
    if not quiet:
        for table in (*scan_tables(story.scan), *report_tables(story.report), *verdict_tables(story.verdict)):
            out.print(table)
    out.print(f"report: {story.run / 'report.html'}")
    raise typer.Exit(story.verdict.exit_code)
