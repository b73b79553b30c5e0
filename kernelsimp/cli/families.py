"""`kernelsimp families`: the tables of families, templates and denoisers."""

from typing import Annotated

import typer

from kernelsimp.cli.console import out
from kernelsimp.errors import KernelsimpError


def families(
    size: Annotated[str, typer.Option(metavar="SIZE", help="kernel sides, such as 3, 5 or 3x5")] = "3",
) -> None:
    """List the families, templates and denoisers for a kernel size, each with a picture in characters."""
    from kernelsimp.cli.present import say_done
    from kernelsimp.report.terminal import (
        catalogue_words,
        denoiser_catalogue,
        family_catalogue,
        template_catalogue,
    )

    sides = size.lower().split("x")
    if not all(side.isdigit() and 0 < int(side) <= 31 for side in sides) or len(sides) > 2:
        raise KernelsimpError(f"--size is '{size}'; expected one or two sides from 1 to 31, such as 3 or 3x5")
    shape = (int(sides[0]), int(sides[-1]))
    for table in (family_catalogue(shape), template_catalogue(shape), denoiser_catalogue(shape)):
        out.print(table)
    say_done(catalogue_words(shape))
