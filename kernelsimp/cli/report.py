"""`kernelsimp report`: render a run again, put two side by side, or any number in one table."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.console import err, out
from kernelsimp.cli.options import AllOption
from kernelsimp.errors import KernelsimpError

RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUN...", help="what simplify wrote")]
FolderOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="where the page of several runs goes")
]


def report(runs: RunsArgument, folder: FolderOption = None, everything: AllOption = False) -> None:
    """Render the pages of a RUN again; of two, write one that puts them side by side; of more, one table."""
    from kernelsimp.commands import outputs

    outputs.check_outputs([("--out", folder)], runs)
    for run in runs:
        outputs.check_is_run(run)  # before torch is imported, which takes seconds
    if len(runs) > 1 and folder is None:
        raise KernelsimpError("several runs on one page need a place to write: pass --out DIR")

    from kernelsimp.commands import report as command
    from kernelsimp.report.terminal import draw, report_tables

    if folder is None:
        for table in report_tables(command.render_again(runs[0]), everything=everything):
            out.print(table)
        out.print(f"rendered again: {runs[0]}/report.html  report.md", markup=False)
        return
    if len(runs) == 2:
        for side_by_side in command.render_pair((runs[0], runs[1]), folder):
            out.print(draw(side_by_side))
    table_of_all, warnings = command.render_runs(runs, folder)
    if len(runs) != 2:
        out.print(draw(table_of_all))
    for warning in warnings:
        err.print(f"[yellow]warning:[/] {warning}")
    pair = "pair.html  pair.md  " if len(runs) == 2 else ""
    out.print(f"{len(runs)} runs: {folder}/{pair}runs.html  runs.md", markup=False)
