"""`kernelsimp report`: render a run again, or put two side by side."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.console import out
from kernelsimp.errors import KernelsimpError

RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUN [RUN]", help="what simplify wrote")]


def report(
    runs: RunsArgument,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="where two runs go side by side")
    ] = None,
) -> None:
    """Render report.md and report.html of a RUN again; of two runs, one page that puts them side by side."""
    from kernelsimp.commands import outputs
    from kernelsimp.commands import report as command
    from kernelsimp.report.terminal import draw, report_tables

    if len(runs) > 2:
        raise KernelsimpError(f"report takes one run or two; {len(runs)} were given")
    if len(runs) == 1:
        for table in report_tables(command.render_again(runs[0])):
            out.print(table)
        return
    if folder is None:
        raise KernelsimpError("two runs side by side need a place to write: pass --out DIR")
    outputs.check_outputs([("--out", folder)], runs)
    for side_by_side in command.render_pair((runs[0], runs[1]), folder):
        out.print(draw(side_by_side))
    out.print(f"report: {folder / 'pair.html'}", markup=False)
