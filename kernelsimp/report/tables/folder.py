"""A folder of checkpoints that was scanned, as tables of text."""

from collections.abc import Sequence

from kernelsimp.error_text import printable
from kernelsimp.records.scan import ScanLine
from kernelsimp.report import fmt
from kernelsimp.report.tables.table import Table


def folder_table(lines: Sequence[ScanLine]) -> Table:
    """Return one row a checkpoint of a folder that could be scanned."""
    heads = ("checkpoint", "layers", "kernels", "matching", "found")
    rows = tuple(
        (
            printable(line.name),
            *(fmt.count(n) for n in (line.layers, line.kernels, line.matching, line.found)),
        )
        for line in lines
        if not line.error
    )
    return Table("Checkpoints", heads, rows)


def folder_words(lines: Sequence[ScanLine]) -> str:
    """Say in one line what scanning many checkpoints came to."""
    failed = sum(bool(line.error) for line in lines)
    kernels, found = sum(line.kernels for line in lines), sum(line.found for line in lines)
    return (
        f"{fmt.count(len(lines) - failed)} of {fmt.count(len(lines))} networks scanned, {fmt.count(found)} "
        f"of {fmt.count(kernels)} kernels found (nearer to a family than chance explains)"
    )


def failure_table(lines: Sequence[ScanLine]) -> Table:
    """Return the checkpoints of a folder that could not be scanned, and why."""
    rows = tuple((printable(line.name), printable(line.error)) for line in lines if line.error)
    return Table("Failed", ("checkpoint", "why"), rows, frozenset({0, 1}))
