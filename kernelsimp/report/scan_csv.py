"""A scan as CSV, one row a kernel, written as it is made: a large network has millions of kernels.

`residual` goes with `family` where there is one, else it is that of the nearest family; truth is 1 or 0.
A name that a spreadsheet would take for a formula begins with an apostrophe.
"""

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from kernelsimp.error_text import csv_cell
from kernelsimp.files import write_atomically
from kernelsimp.records.scan import LayerScan, Scan

HEADS = ("layer", "out", "in", "family", "residual", "p", "found", "beyond", "dead", "name")


def scan_csv(scan: Scan, path: Path) -> None:
    """Write one row for each kernel to `path`, whole or not at all."""
    write_atomically(path, lambda partial: _write(scan, partial))


def _write(scan: Scan, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(HEADS)
        for row in chain.from_iterable(kernel_rows(layer, scan.families) for layer in scan.layers):
            rows.writerow([_cell(cell) for cell in row])


def _cell(value: object) -> object:
    if isinstance(value, str):
        return csv_cell(value)
    return f"{value:.6g}" if isinstance(value, float) else value


def kernel_rows(layer: LayerScan, families: tuple[str, ...]) -> Iterator[tuple[object, ...]]:
    """Yield the rows of one layer, columns as in `HEADS`."""
    named = (*families, "")
    columns = (layer.best, layer.residual, layer.p, layer.found, layer.beyond, layer.is_dead, layer.word)
    for place, row in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        best, residual, p, found, beyond, dead, word = row
        out, into = divmod(place, layer.slices)
        verdicts = (int(found), int(beyond), int(dead))
        yield layer.name, out, into, named[best], residual, p, *verdicts, layer.words[word]
