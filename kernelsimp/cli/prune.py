"""`kernelsimp prune`: iterative magnitude pruning with learning-rate rewinding, the baseline."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.console import TerminalWatcher, emit_json, out
from kernelsimp.cli.options import ConfigOption, JsonOption, ModelArgument, QuietOption, with_settings
from kernelsimp.errors import KernelsimpError
from kernelsimp.settings import (
    DataSettings,
    FinetuneSettings,
    Given,
    ModelSettings,
    PruneSettings,
    RobustnessSettings,
    RunSettings,
)

OutOption = Annotated[Path | None, typer.Option("--out", metavar="RUN", help="directory for everything")]


@with_settings(
    model=ModelSettings,
    data=DataSettings,
    prune=PruneSettings,
    finetune=FinetuneSettings,
    robustness=RobustnessSettings,
    run=RunSettings,
)
def prune(
    model: ModelArgument,
    given: Given,
    out_dir: OutOption = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Set the smallest weights, kernels or filters to zero, train the rest, and report the cost."""
    from kernelsimp import pipeline
    from kernelsimp.cli.tables import report_tables
    from kernelsimp.report import report_json

    if out_dir is None:
        raise KernelsimpError("prune needs a place to write: pass --out RUN")
    watcher = TerminalWatcher(quiet=quiet or json == "-")
    try:
        result = pipeline.prune(Path(model), pipeline.settle_for_pruning(given, config), out_dir, watcher)
    finally:
        watcher.stop()
    if json:
        emit_json(report_json(result), json)
    if not quiet and json != "-":
        for table in report_tables(result):
            out.print(table)
        out.print(f"report: {out_dir}/report.html  report.md  report.json", markup=False)
    if not result.budget_met:
        raise typer.Exit(1)
