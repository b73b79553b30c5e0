"""Mutants through the doors: how many were refused in one line, read, or neither."""

import random
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.doors import DOORS
from fuzz.mutants import mutant
from kernelsimp.errors import KernelsimpError


@dataclass
class Tally:
    """What became of the mutants of one door; `faults` are those that were neither read nor refused."""

    refused: int = 0
    read: int = 0
    faults: list[str] = field(default_factory=list)


def fuzz(names: Sequence[str], count: int, seed: int) -> dict[str, Tally]:
    """Send `count` mutants through each door; the same seed makes the same mutants."""
    return {name: _through(name, count, seed) for name in names}


def _through(name: str, count: int, seed: int) -> Tally:
    door, tally = DOORS[name], Tally()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"sound.{door.ending}"
        door.write(path)
        sound = path.read_bytes()
        door.read(path)
        for number in range(count):
            dice = random.Random(f"{seed} {name} {number}")
            path.write_bytes(mutant(door.kind, sound, dice))
            try:
                door.read(path)
                tally.read += 1
            except KernelsimpError as error:
                if str(error).isprintable():
                    tally.refused += 1
                else:
                    tally.faults.append(f"{name} {number}: {error!s:.200}")
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = next(_ours(error), f"{Path(last.filename).name}:{last.lineno}")
                tally.faults.append(f"{name} {number}: {type(error).__name__} at {where}: {error!s:.100}")
    return tally


def _ours(error: BaseException) -> Iterator[str]:
    """Yield the places of our own code that an exception came through, the innermost first."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "kernelsimp" in Path(frame.filename).parts:
            yield f"{Path(frame.filename).name}:{frame.lineno}"


def by_place(tally: Tally) -> Counter[str]:
    """Count faults by their kind and place."""
    return Counter(" ".join(fault.split(": ")[1].split()[:3]) for fault in tally.faults)
