"""`kernelsimp train`: train a network from scratch, its kernels constrained or penalised."""

from typing import Annotated

import typer

from kernelsimp.cli.console import watch_command
from kernelsimp.cli.options import (
    AllOption,
    ConfigOption,
    JsonOption,
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
    RunSettings,
    TrainSettings,
)
from kernelsimp.settings_file import settle

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
    overwrite: OverwriteOption = False,
    constrain: ConstrainOption = None,
    penalty: PenaltyOption = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
    everything: AllOption = False,
) -> None:
    """Train a network from scratch, with its kernels constrained or penalised, and report what came of it."""
    from kernelsimp.commands import outputs

    if out_dir is None:
        raise KernelsimpError("train needs a place to write: pass --out RUN")
    for option, said in given.get("finetune", {}).items():
        if (option == "finetune" and said is False) or (option == "distill" and said):
            name = "--no-finetune" if option == "finetune" else "--distill"
            raise KernelsimpError(f"{name}: train trains from scratch, without a teacher; leave it out")
    given = put(put(given, "train", "constrain", constrain), "train", "penalty", penalty)
    outputs.check_can_train(settle(given, config))  # before torch is imported, which takes seconds
    from kernelsimp.cli.present import present_run
    from kernelsimp.commands import inputs
    from kernelsimp.commands import train as command
    from kernelsimp.training.ranks import first_process

    settings = inputs.settle_for_model(given, config)
    outputs.check_not_written(out_dir, resumed=settings.finetune.resume, overwrite=overwrite)
    outputs.check_run(out_dir, None, settings, config, json)
    if not first_process():
        command.train_along(settings, out_dir)  # the first process writes and talks for all
        return
    with watch_command(quiet=quiet, json=json, run=out_dir) as watcher:
        result = command.train(settings, out_dir, watcher)
    present_run(result, out_dir, json, quiet=quiet, everything=everything)
