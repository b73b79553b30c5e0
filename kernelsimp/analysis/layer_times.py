"""A table of times: layers whole against two thinner ones, at one shape, layout and batch, on this machine.

What was measured is kept in a file, so that no layer of a shape is timed twice; another machine, version of
torch or number of threads is another table row.
"""

import copy
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernelsimp.analysis.timing import USUAL, Clock, Effort, Run, interleaved
from kernelsimp.files import write_text
from kernelsimp.models.factorised import factorised_layer
from kernelsimp.models.thin import Thin
from kernelsimp.records.factorised import Ratio, Timing
from kernelsimp.watch import SILENT, Watcher

SCHEMA = "kernelsimp.times/1"

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


@dataclass(frozen=True)
class Place:
    """Where a layer is timed: the shape of its input (n, channels, height, width), and how it lies."""

    shape: tuple[int, ...]
    layout: str


@dataclass(frozen=True)
class LayerTime:
    """One layer whole and as two thinner ones, in one interleaved run."""

    whole: Timing
    thin: Timing
    ratio: Ratio


def machine() -> str:
    """Return what a time hangs on beside the layer: processor, number of threads, version of torch."""
    words = (_processor(), f"{os.cpu_count()} CPUs", f"{torch.get_num_threads()} threads")
    return ", ".join((*words, f"torch {torch.__version__}"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class LayerTimes:
    """Times of layers, measured where the table at `path` does not have them; it is written as they come."""

    def __init__(
        self,
        path: Path | None = None,
        *,
        effort: Effort = USUAL,
        clock: Clock = time.perf_counter,
        watcher: Watcher = SILENT,
    ) -> None:
        self.path, self.effort, self.clock = path, effort, clock
        self.machine = machine()
        self.known = _read(path, watcher)

    def measure(self, layer: nn.Conv2d, ways: Sequence[Thin], place: Place) -> Mapping[Thin, LayerTime]:
        """Return the time of every way of running `layer`, which stays as it is."""
        keys = {way: self._key(layer, way, place) for way in ways}
        missing = [way for way in ways if keys[way] not in self.known]
        if missing:
            for way, found in self._timed(layer, missing, place).items():
                self.known[keys[way]] = found
            if self.path is not None:
                times = {key: asdict(item) for key, item in self.known.items()}
                write_text(self.path, json.dumps({"schema": SCHEMA, "times": times}, indent=1))
        return {way: self.known[keys[way]] for way in ways}

    def _timed(self, layer: nn.Conv2d, ways: Sequence[Thin], place: Place) -> dict[Thin, LayerTime]:
        modules = [copy.deepcopy(layer), *(factorised_layer(layer, way) for way in ways)]
        images = torch.randn(place.shape, generator=torch.Generator().manual_seed(0))
        runs = [timed_run(module, images, place.layout) for module in modules]
        with torch.inference_mode():
            measured = interleaved(runs, self.effort, self.clock)
        whole = measured.timing(0)
        return {
            way: LayerTime(whole, measured.timing(number), measured.ratio(number))
            for number, way in enumerate(ways, 1)
        }

    def _key(self, layer: nn.Conv2d, way: Thin, place: Place) -> str:
        bias = layer.bias is not None
        how = f"rank {way.rank}" + (f" of {len(way.channels)} channels" if way.channels else "")
        shape = "x".join(map(str, place.shape))
        return f"{layer!s}, bias {bias}; {how}; {shape} {place.layout}; {layer.weight.device}; {self.machine}"


def timed_run(module: nn.Module, images: Tensor, layout: str) -> Run:
    """Return the run of a module on images in a layout, on the device of its weights."""
    device = next(module.parameters()).device
    moved: Any = module
    form = LAYOUTS[layout]
    own = moved.to(memory_format=form) if layout != "contiguous" else moved
    inputs = images.to(device).contiguous(memory_format=form)
    if device.type != "cuda":
        return lambda: own(inputs)

    def run() -> None:
        own(inputs)
        torch.cuda.synchronize(device)

    return run


def _read(path: Path | None, watcher: Watcher) -> dict[str, LayerTime]:
    if path is None or not path.exists():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        if read["schema"] != SCHEMA:
            raise ValueError(f"its schema is {read['schema']!r}")
        return {key: _time(item) for key, item in read["times"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        watcher.warn(f"{path}: no table of times ({type(error).__name__}: {error}); measured again")
        return {}


def _time(item: Mapping[str, Any]) -> LayerTime:
    return LayerTime(Timing(**item["whole"]), Timing(**item["thin"]), Ratio(**item["ratio"]))
