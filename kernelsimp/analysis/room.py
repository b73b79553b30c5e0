"""How much memory a scan will take, from the shapes of its kernels alone.

Layers are scanned one after another, so the largest counts; what is kept of every kernel goes to files. The
figures bound what was measured: the peak of the resident memory of scans of one layer, of 65,536 and 262,144
kernels of 3 x 3 and of 65,536 of 5 x 5 and of 7 x 7.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch

from kernelsimp.analysis.nonlinear import FEWEST_LINES
from kernelsimp.analysis.select import MOST_CELLS, match_names
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.families import FAMILIES, MOST_LINES, line_pairs
from kernelsimp.memory import GB, free_bytes, resident_bytes
from kernelsimp.models.stored_order import layer_name
from kernelsimp.settings import ScanSettings

Shape = tuple[int, ...]

BASE = 200_000_000
"""Bytes that bases, tables and chunks take beside what grows with the kernels."""

A_FAMILY, A_CELL, A_LINE = 12, 8, 300
"""Bytes a kernel: for each family, each cell, and each line where groups of equal ones are looked for."""

MOST_SAID = 3


@dataclass(frozen=True)
class Needs:
    """What a scan will meet: layers, kernels of each grid, and the bytes that it takes at its most."""

    layers: int
    grids: Mapping[Shape, int]
    working: int

    @property
    def kernels(self) -> int:
        """How many kernels, 1x1 ones not counted."""
        return sum(self.grids.values())

    def words(self) -> str:
        """Say how many kernels of which shapes there are.

        >>> needs_of({"a.weight": (8, 4, 3, 3)}, ScanSettings()).words()
        '1 layers, 32 kernels of 3 x 3'
        """
        common = Counter(self.grids).most_common()
        shapes = ", ".join(" x ".join(map(str, grid)) for grid, _ in common[:MOST_SAID])
        more = f" and {len(common) - MOST_SAID:,} more shapes" if len(common) > MOST_SAID else ""
        return f"{self.layers:,} layers, {self.kernels:,} kernels of {shapes}{more}"


def needs_of(shapes: Mapping[str, Shape], settings: ScanSettings) -> Needs:
    """Return what scanning convolutions takes, from their shapes as stored, (out, in / groups, *grid).

    1x1 kernels, and those that are too large to be looked at, take nothing.
    """
    grids: Counter[Shape] = Counter()
    working = layers = 0
    for first, second, *grid in _chosen(shapes, settings).values():
        if not 1 < prod(grid) <= MOST_CELLS:
            continue
        grid = grid if len(grid) > 1 else [1, *grid]
        count = first * second
        grids[tuple(grid)] += count
        layers += 1
        working = max(working, count * _bytes_of_one(tuple(grid)))
    return Needs(layers, grids, working + BASE if layers else 0)


def check_room(needs: Needs, held: int, memory: float | None, where: str) -> int:
    """Return the bytes that a scan will take, what the process holds and `held` bytes of reading included.

    `memory` is in gigabytes; None is all that is free. Raises `KernelsimpError` where it takes more.
    """
    if memory is not None and not memory > 0:
        raise KernelsimpError(f"--memory is {memory:g}; expected gigabytes, such as 4")
    own = resident_bytes()
    whole = own + held + needs.working
    room = memory * GB if memory is not None else own + free_bytes(torch.device("cpu"))
    if whole > room:
        found = f"{needs.words()}: a scan" if needs.layers else "a scan"
        limit = f"--memory is {room / GB:.1f}" if memory is not None else f"{room / GB:.1f} GB are free"
        raise KernelsimpError(
            f"{where}: {found} takes about {whole / GB:.1f} GB of memory, and {limit}; "
            f"pass --memory {whole / GB + 0.05:.1f}, or choose layers with --layers GLOB"
        )
    return whole


def _chosen(shapes: Mapping[str, Shape], settings: ScanSettings) -> dict[str, Shape]:
    """Return the shapes that --layers and --skip-layers leave; the scan refuses globs that match nothing."""
    names = {layer_name(name): name for name in shapes}
    try:
        wanted = match_names(list(names), settings.layers, "--layers") if settings.layers else set(names)
        if settings.skip_layers:
            wanted -= match_names(list(names), settings.skip_layers, "--skip-layers")
    except KernelsimpError:
        wanted = set(names)
    return {names[name]: shapes[names[name]] for name in names if name in wanted}


def _bytes_of_one(grid: Shape) -> int:
    families = len(FAMILIES) + sum(1 for _ in line_pairs(grid)) if len(grid) == 2 else len(FAMILIES)
    lines = sum(grid) if FEWEST_LINES <= max(grid) <= MOST_LINES else 0
    return A_FAMILY * families + A_CELL * prod(grid) + A_LINE * lines
