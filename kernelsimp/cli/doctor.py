"""`kernelsimp doctor`: what this installation can do, and how to get what is missing."""

import typer

from kernelsimp.cli.console import out
from kernelsimp.cli.help import draw_rows


def doctor() -> None:
    """Say which versions, devices, memory and extras are here, what is missing and how to get it.

    Exit code 2 where something that is needed is missing.
    """
    from kernelsimp.commands.doctor import examine_installation

    found = examine_installation()
    for finding in found:
        mark = (
            ("green", "ok") if finding.ok else ("red", "MISSING") if finding.needed else ("yellow", "without")
        )
        text = f"{finding.found}; {finding.advice}" if finding.advice else finding.found
        draw_rows([(finding.what, text, mark)])
    missing = [finding.what for finding in found if finding.needed and not finding.ok]
    without = sum(not finding.ok and not finding.needed for finding in found)
    if missing:
        out.print(f"doctor: [red]cannot work[/] without {', '.join(missing)}")
        raise typer.Exit(2)
    out.print(f"doctor: [green]all that is needed is here[/]; {without} that could be added")
