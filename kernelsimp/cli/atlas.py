"""`kernelsimp atlas`: what many networks have in common."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.options import QuietOption


def atlas(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="what scan --dataset wrote")],
    out_file: Annotated[str, typer.Option("--out", metavar="PATH", help="the page to write")] = "atlas.html",
    quiet: QuietOption = False,
) -> None:
    """Write one page over the networks of a data set: structure against chance, intervals over networks."""
    from kernelsimp.cli.present import say_done
    from kernelsimp.commands import outputs
    from kernelsimp.commands.atlas import write_atlas
    from kernelsimp.report import fmt

    outputs.check_outputs([("--out", out_file)], (dataset,))
    count = write_atlas(Path(dataset), Path(out_file))
    if not quiet:
        say_done(f"{fmt.counted(count, 'network')} on one page", [out_file])
