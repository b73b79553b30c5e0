"""How long a whole network takes before and after, in torch, in torch.compile and in ONNX Runtime.

The two are run by turns on the same images. An engine that is not there, or cannot run the network, gives a
reason in place of figures.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kernelsimp.analysis.timing import Clock, Effort, Run, interleaved
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import quiet
from kernelsimp.models.program import operation_of, run_onnx
from kernelsimp.records.factorised import Latency
from kernelsimp.watch import SILENT, Watcher

EFFORT = Effort(within=20.0)
BATCHES = (1, 32)


@dataclass(frozen=True)
class Pair:
    """A network before and after, and where their ONNX files are; None where there are none."""

    before: nn.Module
    after: nn.Module
    files: tuple[Path, Path] | None = None


def network_latency(
    pair: Pair,
    images: Tensor,
    engines: Sequence[str],
    watcher: Watcher = SILENT,
    *,
    batches: Sequence[int] = BATCHES,
    clock: Clock = time.perf_counter,
) -> tuple[Latency, ...]:
    """Return the latency of both networks in each engine at each of `batches`.

    `images` are repeated to fill a batch.
    """
    watcher.start("timing the whole network", len(engines) * len(batches))
    found = []
    for engine in engines:
        for batch in batches:
            found.append(_one(pair, filled(images, batch), engine, clock))
            watcher.step()
    return tuple(found)


def filled(images: Tensor, count: int) -> Tensor:
    """Return `count` images: the first ones, repeated where there are fewer."""
    return images[torch.arange(count, device=images.device) % len(images)].contiguous()


def _one(pair: Pair, images: Tensor, engine: str, clock: Clock) -> Latency:
    try:
        with quiet(), torch.inference_mode():
            runs = RUNNERS[engine](pair, images)
            measured = interleaved(runs, EFFORT, clock)
    except KernelsimpError as error:
        return Latency(engine, len(images), None, None, None, str(error))
    except Exception as error:  # a compiler that is missing, an operation that an engine does not know
        return Latency(engine, len(images), None, None, None, operation_of(error))
    return Latency(engine, len(images), measured.timing(0), measured.timing(1), measured.ratio(1))


def _eager(pair: Pair, images: Tensor) -> list[Run]:
    return [lambda model=model: _synced(model, images) for model in (pair.before, pair.after)]  # type: ignore[misc]


def _compiled(pair: Pair, images: Tensor) -> list[Run]:
    torch._dynamo.reset()
    made = [torch.compile(model, dynamic=False) for model in (pair.before, pair.after)]
    return [lambda model=model: _synced(model, images) for model in made]  # type: ignore[misc]


def _onnx(pair: Pair, images: Tensor) -> list[Run]:
    if pair.files is None:
        raise KernelsimpError("there is no ONNX file")
    runs = [run_onnx(file, torch.get_num_threads()) for file in pair.files]
    here = images.cpu()
    return [lambda run=run: run(here) for run in runs]  # type: ignore[misc]


def _synced(model: Callable[[Tensor], object], images: Tensor) -> object:
    output = model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return output


RUNNERS: Mapping[str, Callable[[Pair, Tensor], list[Run]]] = {
    "eager": _eager,
    "compile": _compiled,
    "onnx": _onnx,
}
