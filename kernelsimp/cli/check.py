"""`kernelsimp check`: the gate on checkpoints; exit 1 when a limit is crossed."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.console import TerminalWatcher, emit_json, out
from kernelsimp.cli.options import ConfigOption, JsonOption, ModelArgument, QuietOption, with_settings
from kernelsimp.settings import DataSettings, Given, ModelSettings, RunSettings


@with_settings(model=ModelSettings, data=DataSettings, run=RunSettings)
def check(
    model: ModelArgument,
    given: Given,
    baseline: Annotated[Path, typer.Option("--baseline", help="a report.json that simplify wrote")],
    max_drop: Annotated[float, typer.Option("--max-drop", help="accuracy that may be lost, in pp")] = 0.5,
    against: Annotated[
        str, typer.Option("--against", help="the baseline's stage: last or original")
    ] = "last",
    config: ConfigOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Verify that held kernels did not move, that structures hold and, with --data, the accuracy."""
    from kernelsimp import pipeline
    from kernelsimp.cli.tables import verdict_tables
    from kernelsimp.report import verdict_json

    watcher = TerminalWatcher(quiet=quiet or json == "-")
    settings = pipeline.settle_for_check(given, config, baseline)
    try:
        verdict = pipeline.check(Path(model), baseline, settings, (max_drop, against), watcher)
    finally:
        watcher.stop()
    if json:
        emit_json(verdict_json(verdict), json)
    if not quiet and json != "-":
        for table in verdict_tables(verdict):
            out.print(table)
    raise typer.Exit(verdict.exit_code)
