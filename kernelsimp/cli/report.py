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

    from kernelsimp.cli.present import say_done
    from kernelsimp.commands import report as command
    from kernelsimp.report import fmt
    from kernelsimp.report.tables.runs import MET
    from kernelsimp.report.tables.verdict import title_words
    from kernelsimp.report.terminal import draw, report_tables

    if folder is None:
        again = command.render_again(runs[0])
        for table in report_tables(again, everything=everything):
            out.print(table)
        where = runs[0].parent if runs[0].is_file() else runs[0]
        words = f"rendered again, {title_words(again)}"
        say_done(words, [where / "report.html", where / "report.md"], good=again.budget_met)
        return
    if len(runs) == 2:
        for side_by_side in command.render_pair((runs[0], runs[1]), folder):
            out.print(draw(side_by_side))
    table_of_all, warnings = command.render_runs(runs, folder)
    if len(runs) != 2:
        out.print(draw(table_of_all))
    for warning in warnings:
        err.print(f"[yellow]warning:[/] {warning}")
    pages = [*(["pair.html", "pair.md"] if len(runs) == 2 else []), "runs.html", "runs.md"]
    met = sum(row[-1] == MET for row in table_of_all.rows)
    say_done(f"{fmt.counted(len(runs), 'run')}, {met} within budget", [folder / page for page in pages])
