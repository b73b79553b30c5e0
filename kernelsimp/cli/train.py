"""`kernelsimp train`: train a network from scratch, its kernels constrained or penalised."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.console import TerminalWatcher, emit_json, out
from kernelsimp.cli.options import ConfigOption, JsonOption, QuietOption, put, with_settings
from kernelsimp.errors import KernelsimpError
from kernelsimp.settings import (
    DataSettings,
    FinetuneSettings,
    Given,
    ModelSettings,
    RunSettings,
    TrainSettings,
)

OutOption = Annotated[Path | None, typer.Option("--out", metavar="RUN", help="directory for everything")]
ConstrainOption = Annotated[
    list[str] | None,
    typer.Option(
        "--constrain",
        metavar="RULE",
        help="NAME, GLOB=NAME or GLOB=NAME:SHARE+NAME:SHARE: kernels in a family from the start; repeats",
    ),
]
PenaltyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--penalty",
        metavar="NAME:WEIGHT",
        help="asymmetry, rate, entropy, smoothness or distinct, added to the loss; repeats",
    ),
]


@with_settings(
    model=ModelSettings, data=DataSettings, train=TrainSettings, finetune=FinetuneSettings, run=RunSettings
)
def train(
    given: Given,
    out_dir: OutOption = None,
    constrain: ConstrainOption = None,
    penalty: PenaltyOption = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a network from scratch, with its kernels constrained or penalised, and report what came of it."""
    from kernelsimp import pipeline
    from kernelsimp.cli.tables import report_tables
    from kernelsimp.report import report_json

    given = put(put(given, "train", "constrain", constrain), "train", "penalty", penalty)
    if out_dir is None:
        raise KernelsimpError("train needs a place to write: pass --out RUN")
    watcher = TerminalWatcher(quiet=quiet or json == "-")
    settings = pipeline.settle_for_model(given, config)
    try:
        result = pipeline.train(settings, out_dir, watcher)
    except KeyboardInterrupt:
        if (out_dir / "resume" / "finetune.pt").exists():
            watcher.note("stopped; the same command with --resume goes on from here")
        raise
    finally:
        watcher.stop()
    if json:
        emit_json(report_json(result), json)
    if not quiet and json != "-":
        for table in report_tables(result):
            out.print(table)
        out.print(f"report: {out_dir}/report.html  report.md  report.json")
    if not result.budget_met:
        raise typer.Exit(1)
