"""The state from which an interrupted run goes on and ends with the same bits.

One file, written beside its name and renamed into place, after a whole optimiser step, with a digest behind
it; the one before stays beside it. It knows which run it belongs to: a run with other settings, seed, weights
or images is refused.
"""

import io
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from kernelsimp import stops
from kernelsimp.error_text import kind_and_words, short
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import read_sealed, write_sealed
from kernelsimp.models.digest import tensors_sha256
from kernelsimp.settings import FinetuneSettings
from kernelsimp.watch import SILENT, Watcher

FILE = "finetune.pt"
PREVIOUS = "finetune.previous.pt"

_FREE_TO_CHANGE = ("finetune", "resume", "save_every", "log", "workers")


def identity(
    model: nn.Module, settings: FinetuneSettings, seed: int, images: str, words: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what must agree before a run may go on; `images` names the images, `words` further settings."""
    chosen = {**asdict(settings), **words}
    chosen = {key: value for key, value in chosen.items() if key not in _FREE_TO_CHANGE}
    return {**chosen, "seed": seed, "images": images, "network": tensors_sha256(model.state_dict())}


class StateFile:
    """Where the state lies: `folder`/finetune.pt, for the run that `identity` describes.

    `previous` is the state before it, for when a disk has damaged the last one.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], minutes: float | None) -> None:
        self.path, self.previous = folder / FILE, folder / PREVIOUS
        self._identity, self._minutes = dict(identity), minutes
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the time between two states is over."""
        return self._minutes is not None and time.monotonic() - self._saved >= 60 * self._minutes

    def save(self, state: Mapping[str, Any]) -> None:
        """Write `state`, whole or not at all."""
        whole = {"identity": self._identity, **state}
        write_sealed(self.path, lambda partial: self._write(whole, partial))
        self._saved = time.monotonic()

    def _write(self, whole: Mapping[str, Any], partial: Path) -> None:
        torch.save(whole, partial)
        if self.path.exists():
            self.path.replace(self.previous)

    def load(self, watcher: Watcher = SILENT) -> dict[str, Any] | None:
        """Return the last state that is whole, or None where there is none yet; one passed over is said.

        Raises `KernelsimpError` where none can be read, or it belongs to another run.
        """
        fault: KernelsimpError | None = None
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                state = _read(path)
            except KernelsimpError as error:
                fault = fault or error
                continue
            if fault is not None:
                watcher.warn(f"{fault}; going on from the state before it")
            self._check(path, state)
            return state
        if fault is not None:
            raise KernelsimpError(f"{fault}; delete it to start again")
        return None

    def _check(self, path: Path, state: Mapping[str, Any]) -> None:
        """Raise `KernelsimpError` unless the state is of this run."""
        before = state.get("identity")
        if not isinstance(before, dict):
            raise KernelsimpError(f"{path}: no resume state; delete it to start again")
        for key, value in self._identity.items():
            if before.get(key) != value:
                raise KernelsimpError(f"{path}: {_difference(key, before.get(key), value)}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = io.BytesIO(read_sealed(path))
        state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
        return dict(state)
    except Exception as error:  # torch raises more than ten kinds for a damaged file
        words = short(str(error).removeprefix(f"{path}: ") or type(error).__name__)
        raise KernelsimpError(f"{path}: cannot read the resume state: {words}") from error


@contextmanager
def taken_up(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a state is put back into one line: its content is of something else."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise KernelsimpError(
            f"{path}: no resume state of this run ({kind_and_words(error, 200)}); delete it to start again"
        ) from error


def _difference(key: str, before: Any, now: Any) -> str:
    advice = "run without --resume to start again"
    if key == "images":
        return f"the resume state is of a run with other images; {advice}"
    if key == "network":
        return (
            f"the resume state is of a run with other weights (another checkpoint, or another plan); {advice}"
        )
    name = key.replace("_", "-")
    return f"the resume state is of a run with {name} = {before}, this one has {now}; {advice}"


def random_state() -> dict[str, Any]:
    """Return the state of torch's random generators, on the CPU and on every GPU."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on from what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


class Interrupts:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a request, met after the step; a second is not."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Listen while inside; outside the main thread there is nothing to listen to."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard = [kind for kind in stops.KINDS if signal.getsignal(kind) is not signal.SIG_IGN]
        before = {kind: signal.signal(kind, self._ask) for kind in heard}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        stops.note(number)


@dataclass
class TrainingProgress:
    """How far a run is: `batch` batches of `epoch` and `step` optimiser steps in all are done.

    `total` and `images` add up the epoch's loss, on the device, and its images.
    """

    total: Tensor
    epoch: int = 1
    batch: int = 0
    step: int = 0
    images: int = 0
    seconds: float = 0.0

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.images, self.seconds = self.epoch + 1, 0, 0, 0.0
        self.total = torch.zeros_like(self.total)
