"""`kernelsimp simplify`: choose, snap, hold, fine-tune, measure, report."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.console import out, watch_command
from kernelsimp.cli.options import (
    AllOption,
    ConfigOption,
    JsonOption,
    ModelArgument,
    OutOption,
    OverwriteOption,
    QuietOption,
    put,
    with_settings,
)
from kernelsimp.errors import KernelsimpError
from kernelsimp.settings import (
    DataSettings,
    FinetuneSettings,
    Given,
    ModelSettings,
    PlanSettings,
    RobustnessSettings,
    RunSettings,
    Settings,
)

FreezeOption = Annotated[
    bool, typer.Option("--freeze", help="the same as --hold freeze", rich_help_panel="Hold and train")
]
TieOption = Annotated[
    bool, typer.Option("--tie", help="the same as --hold tie", rich_help_panel="Hold and train")
]
NoFreezeOption = Annotated[
    bool, typer.Option("--no-freeze", help="the same as --hold none", rich_help_panel="Hold and train")
]
TRAINING = (
    *("epochs", "lr", "optimizer", "weight_decay", "distill", "schedule", "warmup", "clip", "accumulate"),
    *("label_smoothing", "mixup", "cutmix", "patience", "ema"),
)
"""Settings that change nothing where nothing is trained."""

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
    overwrite: OverwriteOption = False,
    freeze: FreezeOption = False,
    tie: TieOption = False,
    no_freeze: NoFreezeOption = False,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
    everything: AllOption = False,
) -> None:
    """Replace near-structured kernels by the exact thing, hold them, train the rest, and report the cost."""
    from kernelsimp.commands import outputs

    outputs.check_is_there(model)  # before torch is imported, which takes seconds
    from kernelsimp.cli.present import present_run, say_done
    from kernelsimp.commands import inputs
    from kernelsimp.commands import simplify as command
    from kernelsimp.report.tables.plan import plan_tables, plan_words
    from kernelsimp.report.terminal import draw
    from kernelsimp.training.ranks import first_process

    said = given.get("finetune", {}).get("hold")
    given = put(given, "finetune", "hold", _hold(said, freeze=freeze, tie=tie, none=no_freeze))
    if out_dir is None and not dry_run:
        raise KernelsimpError("simplify needs a place to write: pass --out RUN, or --dry-run to see the plan")
    if dry_run and json:
        raise KernelsimpError("--json writes the report of a run, and --dry-run makes none; leave one out")
    settings = inputs.settle_for_model(given, config)
    written = None if dry_run else out_dir
    if written is not None:
        outputs.check_not_written(written, resumed=settings.finetune.resume, overwrite=overwrite)
        outputs.check_run(written, Path(model), settings, config, json)
    if not first_process():  # the first process writes and talks for all, and plans alone for a dry run
        if written is not None:
            command.follow_first_process(Path(model), settings, written)
        return
    with watch_command(quiet=quiet, json=json, run=out_dir) as watcher:
        if (unused := _unused(given, settings)) is not None:
            watcher.note(unused)
        if written is not None:
            result = command.simplify(Path(model), settings, written, watcher)
        else:
            plan = command.plan_only(Path(model), settings, watcher)
    if written is not None:
        present_run(result, written, json, quiet=quiet, everything=everything)
    elif not quiet:
        for table in plan_tables(plan):
            out.print(draw(table))
        say_done(plan_words(plan))


def _unused(given: Given, settings: Settings) -> str | None:
    """Say which options of training were passed where nothing is trained."""
    said = given.get("finetune", {})
    names = [f"--{name.replace('_', '-')}" for name in TRAINING if said.get(name) is not None]
    if not names or settings.finetune.finetune or settings.plan.rounds > 1:
        return None
    return f"{' and '.join(names)}: nothing is trained without --finetune"


def _hold(said: str | None, *, freeze: bool, tie: bool, none: bool) -> str | None:
    chosen = [name for name, flag in (("freeze", freeze), ("tie", tie), ("none", none)) if flag]
    if len(chosen) > 1:
        raise KernelsimpError("choose one of --freeze, --tie and --no-freeze")
    if chosen and said not in (None, *chosen):
        flag = "--no-freeze" if none else f"--{chosen[0]}"
        raise KernelsimpError(f"{flag} is the same as --hold {chosen[0]}, and --hold is {said}; choose one")
    return chosen[0] if chosen else None
