"""`kernelsimp prune`: iterative magnitude pruning with learning-rate rewinding, the baseline."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.console import watch_command
from kernelsimp.cli.options import (
    AllOption,
    ConfigOption,
    JsonOption,
    ModelArgument,
    OutOption,
    OverwriteOption,
    QuietOption,
    with_settings,
)
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

FinetuneOption = Annotated[
    bool | None,
    typer.Option(
        "--finetune/--no-finetune",
        help="train what is left [on where there are images]",
        show_default=False,
        rich_help_panel="Hold and train",
    ),
]


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
    overwrite: OverwriteOption = False,
    finetune: FinetuneOption = None,  # noqa: ARG001 (it stands in `given`)
    config: ConfigOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
    everything: AllOption = False,
) -> None:
    """Set the smallest weights, kernels or filters to zero, train the rest, and report the cost."""
    from kernelsimp.commands import outputs

    outputs.check_is_there(model)  # before torch is imported, which takes seconds
    from kernelsimp.cli.present import present_run
    from kernelsimp.commands import prune as command

    if out_dir is None:
        raise KernelsimpError("prune needs a place to write: pass --out RUN")
    settings = command.settle_for_pruning(given, config)
    outputs.check_not_written(out_dir, resumed=settings.finetune.resume, overwrite=overwrite)
    outputs.check_run(out_dir, Path(model), settings, config, json)
    with watch_command(quiet=quiet, json=json, run=out_dir) as watcher:
        result = command.prune(Path(model), settings, out_dir, watcher)
    present_run(result, out_dir, json, quiet=quiet, everything=everything)
