"""What a training step asks of its card: how often it waits for it, what it copies, and how busy the card is.

The events are torch.profiler's, of the loop that `simplify --finetune` runs: its loader, hold, teacher,
precision and optimiser. A loss is read at one batch in fifty, between which the profiler listens.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from kernelsimp.data.sources import Data
from kernelsimp.settings import Settings
from kernelsimp.training.finetune import TrainBatches, finetune
from kernelsimp.training.job import job_of

MARK = "the steps that are looked at"

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""The calls of CUDA that return when the card is done."""

READ = "aten::_local_scalar_dense"
"""What `.item()`, `float(tensor)` and `if tensor` come to: a number that the host waits for."""


@dataclass(frozen=True)
class Event:
    """What the host or the card did from `start` to `end`, in microseconds; there a kernel or a copy."""

    name: str
    on_card: bool
    start: float
    end: float


@dataclass(frozen=True)
class StepFigures:
    """Means a step: calls that wait, numbers read, copies, unpinned ones; and the card's busy share."""

    milliseconds: float
    waits: float
    reads: float
    to_host: float
    to_card: float
    unpinned: float
    busy: float

    def __str__(self) -> str:
        copies = (
            f"{self.to_host:g} copies to the host, {self.to_card:g} to the card, {self.unpinned:g} unpinned"
        )
        waits = f"{self.waits:g} waits (goal 0), {self.reads:g} numbers read"
        return f"a step: {self.milliseconds:.1f} ms, card busy {self.busy:.0%}, {waits}, {copies}"


def figures_of(events: Sequence[Event], steps: int) -> StepFigures:
    """Return the figures of `steps` steps, which lie within the event of the host that is called `MARK`.

    >>> host, card = Event(MARK, False, 0, 2000), Event("gemm", True, 500, 1500)
    >>> str(figures_of([host, card], 2))[:29]
    'a step: 1.0 ms, card busy 50%'
    """
    whole = next(event for event in events if event.name == MARK and not event.on_card)
    seen = [event for event in events if whole.start <= event.start < whole.end]
    host = Counter(event.name for event in seen if not event.on_card)
    copies = [event.name for event in seen if event.on_card and event.name.startswith("Memcpy ")]
    kernels = [event for event in events if event.on_card and not event.name.startswith(("Memcpy", "Memset"))]
    clipped = ((max(event.start, whole.start), min(event.end, whole.end)) for event in kernels)
    return StepFigures(
        milliseconds=(whole.end - whole.start) / steps / 1000,
        waits=sum(host[name] for name in WAITS) / steps,
        reads=host[READ] / steps,
        to_host=sum("DtoH" in name for name in copies) / steps,
        to_card=sum("HtoD" in name for name in copies) / steps,
        unpinned=sum("Pageable" in name for name in copies) / steps,
        busy=length_of_union(clipped) / (whole.end - whole.start),
    )


def length_of_union(spans: Iterable[tuple[float, float]]) -> float:
    """Return how much of the line spans (start, end) cover together; one that ends before it starts is none.

    >>> length_of_union([(0, 2), (1, 3), (5, 6), (9, 8)])
    4.0
    """
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0, end - max(start, reached))
        reached = max(reached, end)
    return covered


@dataclass(frozen=True, eq=False)
class ListenedBatches:
    """Batches of an epoch; `listener` listens to the `steps` steps after the first `before`."""

    batches: TrainBatches
    listener: profile
    before: int
    steps: int

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        mark = record_function(MARK)
        for index, batch in enumerate(self.batches):
            if index == self.before:
                self.listener.start()
                mark.__enter__()
            if index == self.before + self.steps:
                mark.__exit__(None, None, None)
                self.listener.stop()
            yield batch


def profile_training(
    model: nn.Module, teacher: nn.Module, data: Data, settings: Settings, *, before: int = 10, steps: int = 20
) -> StepFigures:
    """Train `model` for an epoch, of more than `before + steps` batches, and return what a step is like."""
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + torch.cuda.is_available()]
    listener, job = profile(activities=kinds), job_of(data, settings, teacher)
    listened = replace(
        job, train=lambda epoch, shard: ListenedBatches(job.train(epoch, shard), listener, before, steps)
    )
    finetune(model, listened, replace(settings.finetune, epochs=1))
    return figures_of(list(events_of(listener)), steps)


def events_of(listener: profile) -> Iterator[Event]:
    """Yield what was listened to; names that programs give to spans are left out on the card."""
    for event in listener.events() or ():
        on_card = event.device_type == DeviceType.CUDA
        if not (on_card and event.is_user_annotation):
            yield Event(event.name, on_card, event.time_range.start, event.time_range.end)
