"""`kernelsimp demo`: the whole story on a small network, in less than a minute of CPU."""

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
    """Scan a small network that reads digits, then simplify, freeze, fine-tune, report and check it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads of a tiny network only wait

    from kernelsimp.cli.present import say_done
    from kernelsimp.commands import demo as command
    from kernelsimp.report.tables.story import story_words
    from kernelsimp.report.terminal import report_tables, scan_tables, verdict_tables

    with watch_command(quiet=quiet, json=None) as watcher:
        story = command.demo(folder, watcher)
    if not quiet:
        for table in (*scan_tables(story.scan), *report_tables(story.report), *verdict_tables(story.verdict)):
            out.print(table)
    say_done(
        story_words(story.scan, story.report), [story.run / "report.html"], good=not story.verdict.errors
    )
    raise typer.Exit(story.verdict.exit_code)
