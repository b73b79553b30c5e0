"""`kernelsimp report`: render a run again."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.console import out


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a directory that simplify wrote")],
) -> None:
    """Render report.md and report.html again from RUN/report.json."""
    from kernelsimp import pipeline
    from kernelsimp.cli.tables import report_tables

    for table in report_tables(pipeline.render_again(run)):
        out.print(table)
