"""What a data source is asked for, and what it answers with."""

from dataclasses import dataclass

from kernelsimp.data.images import Geometry
from kernelsimp.data.splits import Split


@dataclass(frozen=True)
class Request:
    """`where` is the text behind the source's word, `split` the text of --split."""

    where: str
    geometry: Geometry
    split: str
    seed: int


@dataclass(frozen=True)
class Found:
    """The splits a source has; None where it has none. `class_count` is None where only labels tell."""

    test: Split
    train: Split | None = None
    val: Split | None = None
    class_count: int | None = None
    warnings: tuple[str, ...] = ()
