"""What a factorised export came to, as plain data; the field names are the keys of its JSON.

Times are seconds a run, medians of interleaved runs between their quartiles; a ratio is the time of the
original over that of what takes its place, so above 1 is faster. MACs are multiplications of one image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernelsimp.records.measured import Accuracy, Epoch

SCHEMA = "kernelsimp.factorised/1"


@dataclass(frozen=True)
class Timing:
    """Seconds a run: the median over rounds, and the quartiles around it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """How many times as long the first way takes as another: median over rounds, and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        """Whether the other way is faster than the first, beyond the noise."""
        return self.low > 1

    @property
    def slower(self) -> bool:
        """Whether the other way is slower than the first, beyond the noise."""
        return self.high < 1

    @property
    def verdict(self) -> str:
        """What the interval says."""
        return "faster" if self.faster else "slower" if self.slower else "no difference beyond the noise"


@dataclass(frozen=True)
class FactorisedLayer:
    """One layer that has kernels larger than 1x1: what runs in its place, or why it stays whole.

    `rank` is that of its groups' matrices, 0 where it stays whole; `channels` counts those of a depthwise
    layer that run as two, 0 where all do. Figures are null where they were not measured.
    """

    name: str
    weight_shape: tuple[int, ...]
    groups: int
    input_shape: tuple[int, ...] | None
    rank: int
    full_rank: int
    channels: int
    exact: bool
    parameters_before: int
    parameters_after: int
    macs_before: int | None
    macs_after: int | None
    before: Timing | None
    after: Timing | None
    ratio: Ratio | None
    why: str = ""


@dataclass(frozen=True)
class Latency:
    """The whole network in one engine at one batch; where figures are null, `why` says why."""

    engine: str
    batch: int
    before: Timing | None
    after: Timing | None
    ratio: Ratio | None
    why: str = ""

    @property
    def faster(self) -> bool:
        """Whether the network was measured to be faster than before, beyond the noise."""
        return self.ratio is not None and self.ratio.faster


@dataclass(frozen=True)
class CheckedOutput:
    """One written form: how far its outputs are from those that they must be, relative, on which images."""

    file: str
    error: float
    against: str
    images: str


@dataclass(frozen=True)
class Factorised:
    """The whole export.

    `accuracy` has the stages `before` (the network that was exported), `factorised` and, where it was trained
    with that network as its teacher, `finetuned`; its images are those of the test split.
    """

    source: Mapping[str, Any]
    machine: str
    layout: str
    batch: int
    cost: str
    layers: tuple[FactorisedLayer, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    latency: tuple[Latency, ...] = ()
    outputs: tuple[CheckedOutput, ...] = ()
    accuracy: Accuracy | None = None
    training: tuple[Epoch, ...] = ()
    notes: tuple[str, ...] = ()
    schema: str = SCHEMA
