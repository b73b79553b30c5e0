"""`kernelsimp simplify`: choose, snap, hold, fine-tune, measure, report."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.console import TerminalWatcher, emit_json, out
from kernelsimp.cli.options import ConfigOption, JsonOption, ModelArgument, QuietOption, put, with_settings
from kernelsimp.errors import KernelsimpError
from kernelsimp.settings import (
    DataSettings,
    FinetuneSettings,
    Given,
    ModelSettings,
    PlanSettings,
    RobustnessSettings,
    RunSettings,
)

OutOption = Annotated[Path | None, typer.Option("--out", metavar="RUN", help="directory for everything")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="print the plan and change nothing")]


@with_settings(
    model=ModelSettings,
    data=DataSettings,
    plan=PlanSettings,
    finetune=FinetuneSettings,
    robustness=RobustnessSettings,
    run=RunSettings,
)
def simplify(
    model: ModelArgument,
    given: Given,
    out_dir: OutOption = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="the same as --hold freeze")] = False,
    tie: Annotated[bool, typer.Option("--tie", help="the same as --hold tie")] = False,
    no_freeze: Annotated[bool, typer.Option("--no-freeze", help="the same as --hold none")] = False,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Replace near-structured kernels by the exact thing, hold them, train the rest, and report the cost."""
    from kernelsimp import pipeline
    from kernelsimp.cli.tables import draw, report_tables
    from kernelsimp.report import report_json
    from kernelsimp.report.plan_tables import plan_tables
    from kernelsimp.training.ranks import first_process

    given = put(given, "finetune", "hold", _hold(freeze=freeze, tie=tie, none=no_freeze))
    if out_dir is None and not dry_run:
        raise KernelsimpError("simplify needs a place to write: pass --out RUN, or --dry-run to see the plan")
    watcher = TerminalWatcher(quiet=quiet or json == "-")
    settings = pipeline.settle_for_model(given, config)
    if out_dir is not None and not dry_run and not first_process():
        pipeline.follow(Path(model), settings, out_dir)  # the first process writes and talks for all
        return
    try:
        if dry_run:
            plan = pipeline.plan_only(Path(model), settings, watcher)
            tables = [draw(table) for table in plan_tables(plan)]
        else:
            assert out_dir is not None
            result = pipeline.simplify(Path(model), settings, out_dir, watcher)
            tables = list(report_tables(result))
    except KeyboardInterrupt:
        if out_dir is not None and (out_dir / "resume" / "finetune.pt").exists():
            watcher.note("stopped; the same command with --resume goes on from here")
        raise
    finally:
        watcher.stop()
    if json and not dry_run:
        emit_json(report_json(result), json)
    if not quiet and json != "-":
        for table in tables:
            out.print(table)
    if not quiet and not dry_run and json != "-":
        out.print(f"report: {out_dir}/report.html  report.md  report.json")
    if not dry_run and not result.budget_met:
        raise typer.Exit(1)


def _hold(*, freeze: bool, tie: bool, none: bool) -> str | None:
    chosen = [name for name, flag in (("freeze", freeze), ("tie", tie), ("none", none)) if flag]
    if len(chosen) > 1:
        raise KernelsimpError("choose one of --freeze, --tie and --no-freeze")
    return chosen[0] if chosen else None
