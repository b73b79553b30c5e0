"""`kernelsimp families`: the table of families."""

from typing import Annotated

import typer

from kernelsimp.cli.console import out
from kernelsimp.errors import KernelsimpError


def families(
    size: Annotated[str, typer.Option(help="kernel sides, such as 3, 5 or 3x5")] = "3",
) -> None:
    """List the families offered at a kernel size, each with its dimension and a picture of its cells."""
    from kernelsimp.cli.tables import family_table

    sides = size.lower().split("x")
    if not all(side.isdigit() and 0 < int(side) <= 31 for side in sides) or len(sides) > 2:
        raise KernelsimpError(f"--size is '{size}'; expected one or two sides from 1 to 31, such as 3 or 3x5")
    rows, columns = int(sides[0]), int(sides[-1])
    out.print(family_table((rows, columns)))
