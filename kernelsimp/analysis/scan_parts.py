"""A scan in parts: which layers each has, and the one scan that they make together.

Layers are judged one by one, so a network cut between layers gives, joined again, what it gives whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kernelsimp.files import spill
from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.records.scan import LayerScan, Scan

MOST_NAMED = 3


@dataclass(frozen=True)
class Part:
    """Part `number`, from 0, of the `count` that the layers of a network are cut into; usually all of it."""

    number: int = 0
    count: int = 1

    def of(self, layers: Sequence[LayerKernels]) -> range:
        """Return the places of its layers: all parts together have each once, and about as many kernels.

        >>> Part().of([])
        range(0, 0)
        """
        ends = np.cumsum([layer.count for layer in layers], dtype=np.int64)
        whole = int(ends[-1]) if len(ends) else 0
        bounds = [whole * number // self.count for number in (self.number, self.number + 1)]
        first, last = np.searchsorted(ends, bounds, side="left").tolist() if whole else (0, 0)
        return range(first, len(layers) if self.number + 1 == self.count else last)


WHOLE = Part()


@dataclass(frozen=True, eq=False)
class ScannedPart:
    """The scan of some layers, its warnings without the remarks on nulls: `notes` are layers by remark."""

    scan: Scan
    notes: Mapping[str, Sequence[str]]


def join_parts(parts: Sequence[ScannedPart]) -> Scan:
    """Return the scan of a whole network from those of its parts, in their order."""
    names: dict[str, int] = {}
    notes: dict[str, list[str]] = {}
    layers: list[LayerScan] = []
    for part in parts:
        for name in part.scan.families:
            names.setdefault(name, len(names))
        for note, found in part.notes.items():
            notes.setdefault(note, []).extend(found)
        places = np.array([*(names[name] for name in part.scan.families), -1], dtype=np.int16)
        layers += (_placed(layer, places) for layer in part.scan.layers)
    first = parts[0].scan
    told = (*first.warnings, *(f"{_name_first(found)}: {note}" for note, found in notes.items()))
    return replace(first, families=tuple(names), layers=tuple(layers), warnings=told)


def _placed(layer: LayerScan, places: NDArray[np.int16]) -> LayerScan:
    """Return a layer whose `best` indexes the families of all parts; numbers of every kernel go to files."""
    if np.array_equal(places[:-1], np.arange(len(places) - 1)):
        return layer
    return replace(layer, best=spill(places[layer.best]))


def _name_first(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more layers" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
