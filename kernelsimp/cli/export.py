"""`kernelsimp export`: a run's network, or any checkpoint, in another form."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.completion import completer
from kernelsimp.cli.console import out
from kernelsimp.cli.options import put, with_settings
from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.settings import Given, ModelSettings

FORMS = ("packed", "safetensors", "torch", "onnx")
SourceArgument = Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="a run, or a checkpoint file")]


@with_settings(model=ModelSettings)
def export(
    source: SourceArgument,
    given: Given,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="FORM", help="packed, safetensors, torch or onnx", autocompletion=completer(FORMS)
        ),
    ] = "packed",
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="where to write [beside it]")
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(metavar="N", help="onnx: side of an image in pixels")
    ] = None,
) -> None:
    """Write a RUN's network, or MODEL, in another form; packed is lossless, and every command reads it."""
    from kernelsimp.commands import outputs

    if to not in FORMS:
        raise KernelsimpError(f"--to is '{to}'{did_you_mean(to, FORMS)}")
    if source.is_dir():
        outputs.check_is_run(source)
    elif not source.exists():
        raise KernelsimpError(f"{source}: no such file; check the path")
    outputs.check_outputs([("--out", file)], (source,))

    from kernelsimp.commands import export as command  # after what can be refused without torch
    from kernelsimp.report import fmt

    written = command.export(source, to, file, put(given, "data", "input_size", input_size))
    share = written.size / max(written.source_size, 1)
    out.print(
        f"{written.form}: {written.path}, {fmt.size(written.size)}, {share:.1%} of "
        f"{fmt.size(written.source_size)}",
        markup=False,
    )
    for note in written.notes:
        out.print(note, markup=False)
