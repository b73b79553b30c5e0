"""`kernelsimp export`: a run's network, or any checkpoint, in another form."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kernelsimp.cli.completion import completer
from kernelsimp.cli.console import out, watch_command
from kernelsimp.cli.options import ConfigOption, QuietOption, put, with_settings
from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.settings import (
    CodingSettings,
    DataSettings,
    FactorisingSettings,
    FinetuneSettings,
    Given,
    ModelSettings,
    RunSettings,
)

if TYPE_CHECKING:
    from kernelsimp.commands.export import Written

FORMS = ("packed", "coded", "safetensors", "torch", "onnx", "factorised")
SourceArgument = Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="a run, or a checkpoint file")]


@with_settings(
    model=ModelSettings,
    data=DataSettings,
    coding=CodingSettings,
    factorising=FactorisingSettings,
    finetune=FinetuneSettings,
    run=RunSettings,
)
def export(
    source: SourceArgument,
    given: Given,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORM",
            help="packed, coded, safetensors, torch, onnx or factorised",
            autocompletion=completer(FORMS),
        ),
    ] = "packed",
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="where to write [beside it]")
    ] = None,
    holdout: Annotated[
        str | None,
        typer.Option(
            metavar="SPLIT", help="coded, factorised: judge --max-drop by this split or --data form"
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="coded, factorised: file.py:callable that judges --max-drop"),
    ] = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write a RUN's network, or MODEL, in another form; every command reads packed and coded ones.

    packed is lossless; coded takes far fewer bytes, within a budget (--max-drop, --kl or --size); factorised
    runs faster where that was measured, within one (--max-drop, --speedup or --macs) or at no cost at all;
    --finetune trains it then, the network it came from as its teacher.
    """
    from kernelsimp.commands import outputs

    if to not in FORMS:
        raise KernelsimpError(f"--to is '{to}'{did_you_mean(to, FORMS)}")
    if not source.exists():
        raise KernelsimpError(f"{source}: no such file; check the path")
    times = given.get("factorising", {}).get("times")
    outputs.check_outputs([("--out", file), ("--times", times)], (source,), config=config)

    from kernelsimp.commands import export as command  # after what can be refused without torch

    for key, value in (("holdout", holdout), ("metric", metric)):
        given = put(given, "plan", key, value)
    kept = command.training_kept_in(source, to, file, given)
    with watch_command(quiet=quiet, json=None, run=kept) as watcher:
        written = command.export(source, to, file, (given, config), watcher)
    _say(written, tables=not quiet)
    if not written.met:
        raise typer.Exit(1)


def _say(written: "Written", *, tables: bool) -> None:
    """Say what was written, how large it is, and whether the budget is met."""
    from kernelsimp.cli.present import say_done
    from kernelsimp.report import fmt
    from kernelsimp.report.terminal import draw

    for table in written.tables if tables else ():
        out.print(draw(table))
    share = written.size / max(written.source_size, 1)
    of = f", {fmt.share(share)} of {fmt.size(written.source_size)}" if len(written.files) == 1 else ""
    places = "  ".join(map(str, written.files))
    told = f"{places}, {fmt.size(written.size)}{of}" if written.files else "nothing written"
    out.print(f"{written.form}: {told}", markup=False)
    for note in written.notes:
        out.print(note, markup=False)
    nearest = "; what was written is the nearest to it" if written.files else ""
    missed = "" if written.met else f"; the budget is not met{nearest}"
    what = f"{written.form}, {fmt.size(written.size)}{of}" if written.files else "nothing written"
    say_done(f"{what}{missed}", written.files, good=written.met)
