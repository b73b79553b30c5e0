"""What of a run is kept: the weights that stand for election at each epoch, and the best so far.

With an average (EMA) or a soft hold, those are not the weights being trained: they are averaged, put into
their structure, marked and kept, and training goes on from where it was.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kernelsimp.errors import HoldError
from kernelsimp.training.penalties import Pull
from kernelsimp.training.validation import EpochJudge, Mark
from kernelsimp.watch import Watcher

State = dict[str, Tensor]


def snapshot(model: nn.Module) -> State:
    """Return a copy of every parameter and persistent buffer."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class Average:
    """The exponential moving average of a network's numbers: s <- d s + (1 - d) w after each step.

    Early on d is at most (1 + t) / (10 + t) at step t, so the start does not linger.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.state = decay, snapshot(model)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)


class Keeper:
    """Holds elections: `best` is the state of `best_epoch`, with the least score so far."""

    def __init__(self, model: nn.Module, judge: EpochJudge, verify: Callable[[nn.Module], None]) -> None:
        self.model, self.judge, self._verify = model, judge, verify
        self.average: Average | None = None
        self.pull: Pull | None = None
        self.best_epoch, self.best_score = 0, math.inf
        self.best = snapshot(model)

    def enter_start(self) -> None:
        """Let the network as it came stand for election, unless it is the original itself."""
        if self.pull is not None:
            return  # not in its structure yet
        mark = self.judge.mark(self.model)
        if mark is not None and (mark.divergence is None or mark.divergence > 1e-6):
            self.best_score = self.judge.score(mark)

    def elect(self, epoch: int, watcher: Watcher) -> tuple[Mark | None, bool]:
        """Mark this epoch's candidate and keep it if it is the best; return its mark and whether it held."""
        with self._candidate():
            held, mark = self._holds(watcher), self.judge.mark(self.model)
            score = self.judge.score(mark) if mark is not None else -float(epoch)  # no split: the last one
            if held and score < self.best_score:
                self.best_epoch, self.best_score, self.best = epoch, score, snapshot(self.model)
        return mark, held

    def put_back(self) -> None:
        """Load the best state into the network, in its structure also where no epoch was finished."""
        self.model.load_state_dict(self.best)
        if self.pull is not None:
            self.pull.snap()

    def state(self) -> dict[str, Any]:
        """Return what a later process needs to go on."""
        average = self.average.state if self.average is not None else {}
        return {"epoch": self.best_epoch, "score": self.best_score, "best": self.best, "average": average}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.best_epoch, self.best_score = state["epoch"], state["score"]
        for name, value in state["best"].items():
            self.best[name].copy_(value)
        if self.average is not None:
            for name, value in state["average"].items():
                self.average.state[name].copy_(value)

    @contextmanager
    def _candidate(self) -> Iterator[None]:
        """Put the weights that would be kept in place for a while."""
        if self.average is None and self.pull is None:
            yield
            return
        training = snapshot(self.model)
        if self.average is not None:
            self.model.load_state_dict(self.average.state)
        if self.pull is not None:
            self.pull.snap()
        try:
            yield
        finally:
            self.model.load_state_dict(training)

    def _holds(self, watcher: Watcher) -> bool:
        try:
            self._verify(self.model)
        except HoldError as error:
            watcher.warn(str(error))
            return False
        return True
