"""`kernelsimp export`: a run's network, or any checkpoint, in another form."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.completion import completer
from kernelsimp.cli.console import out
from kernelsimp.cli.options import put, with_settings
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
    from kernelsimp.commands import export as command
    from kernelsimp.commands import outputs
    from kernelsimp.report import fmt

    outputs.check_outputs([("--out", file)], (source,))
    written = command.export(source, to, file, put(given, "data", "input_size", input_size))
    share = written.size / max(written.source_size, 1)
    out.print(
        f"{written.form}: {written.path}, {fmt.size(written.size)}, {share:.1%} of "
        f"{fmt.size(written.source_size)}",
        markup=False,
    )
    for note in written.notes:
        out.print(note, markup=False)
