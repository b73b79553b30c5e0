"""Forward passes of many batches that stop together at every layer, so that it can be changed on the way.

Each batch's pass is a thread of its own; one runs at a time. It stops where a layer's output is seen (see
`models.stages`), and goes on with that output as it is with the layer's new weights: no layer is run twice
to reach the next one, and what is kept is what the network itself still needs; where that is more than there
is room for, it waits in files. A layer may be seen by the first batches alone: the others stay where they
are, or have not begun, until a later layer asks for them, and then go through all that is changed by then.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kernelsimp.errors import KernelsimpError
from kernelsimp.memory import USUAL, Room, share_one_heap
from kernelsimp.models.stages import Stage, is_addition, layer_modules
from kernelsimp.solver.paging import Pager

Change = Callable[[Tensor, Tensor], Tensor]
"""(the layer's input, what is seen) -> what is seen with the layer's new weights."""


@dataclass(frozen=True, eq=False)
class Stop:
    """Where one batch's pass has stopped: at which layer, its input, and what is seen of its output."""

    stage: Stage
    inputs: Tensor
    seen: Tensor


class _StopPass(BaseException):
    """Ends a pass from outside; not an Exception, so that no network eats it."""


class _Pass(threading.Thread):
    """One batch: `arrive` runs it to its next stop."""

    def __init__(self, passes: "Passes", place: int) -> None:
        super().__init__(daemon=True)
        self.passes, self.place = passes, place
        self.told: SimpleQueue[Any] = SimpleQueue()
        self.asked: SimpleQueue[Any] = SimpleQueue()
        self.stopped: str | None = None
        self.additions: _Additions | None = None

    def run(self) -> None:
        if self.asked.get() is _StopPass:
            return
        self.passes.here.now = self
        try:
            images = [self.passes.images[self.place].clone()]  # out here: what it is read from is no pass's
            self.passes.pager.note(self, images)
            with torch.no_grad(), _Additions(self) as self.additions:
                self.passes.model(images.pop())
            self.told.put(None)
        except _StopPass:
            pass
        except BaseException as error:  # the one that waits raises it
            self.told.put(error)

    def stop_at(self, stage: Stage, inputs: Tensor, seen: Tensor) -> Tensor:
        """Wait here until told how to go on, unless others have been; return what is seen from now on."""
        if stage.name not in self.passes.changes:
            self.stopped = stage.name
            self.told.put(Stop(stage, inputs, seen))
            if self.asked.get() is _StopPass:
                raise _StopPass
            self.stopped = None
        asked = self.passes.changes[stage.name]
        if asked is None:
            return seen
        self.passes.pager.recall((inputs, seen))  # where an addition is seen, nobody else looks
        changed: Tensor = asked(inputs, seen)
        self.passes.pager.note(self, changed)
        return changed

    def needs(self) -> set[str]:
        """Return the layers whose change this pass has seen the old output of, and not yet the new one."""
        waiting = self.additions.waiting if self.additions is not None else []
        return {stage.name for stage, _, _ in waiting} | ({self.stopped} if self.stopped else set())

    def arrive(self) -> Stop | None:
        """Let the pass go on to its next stop, or to its end (None)."""
        self.asked.put(None)
        told = self.told.get()
        if isinstance(told, BaseException):
            raise told
        return told  # type: ignore[no-any-return]


class _Additions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the additions after each layer that is seen at one; brings back what waits in files."""

    def __init__(self, owner: _Pass) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner
        self.waiting: list[tuple[Stage, Tensor, list[int]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        pager, owner = self.owner.passes.pager, self.owner
        pager.recall((args, kwargs))
        result = func(*args, **(kwargs or {}))
        pager.note(owner, result)
        if not is_addition(func, args, kwargs):
            return result
        for item in list(self.waiting):
            stage, inputs, left = item
            left[0] -= 1
            if left[0] < 0:
                changed = self.owner.stop_at(stage, inputs, result)
                if changed is not result:
                    result.copy_(changed)
                self.waiting = [other for other in self.waiting if other is not item]
        return result


class Passes:
    """The passes of all batches over one network, within `room`; a context, which ends them."""

    def __init__(
        self, model: nn.Module, stages: Sequence[Stage], images: Sequence[Tensor], room: Room = USUAL
    ) -> None:
        self.model, self.images, self.here = model, images, threading.local()
        self.pager = Pager(room, model)
        self.at: str | None = None
        self.done, self.changes = set[str](), dict[str, Change | None]()
        layers = layer_modules(model)
        self.handles = [
            module.register_forward_hook(self._hook(stage))
            for stage in stages
            if stage.calls == 1
            for module in layers[stage.name]
        ]
        self.all = [_Pass(self, place) for place in range(len(images))]

    def __enter__(self) -> "Passes":
        share_one_heap()
        for item in self.all:
            item.start()
        return self

    def __exit__(self, *_: object) -> None:
        for item in self.all:
            item.asked.put(_StopPass)
        for item in self.all:
            item.join()
            self.pager.forget(item)
        for handle in self.handles:
            handle.remove()

    def _hook(self, stage: Stage) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            now: _Pass | None = getattr(self.here, "now", None)
            if now is None or stage.name in self.done:
                return None
            if stage.addition is not None:
                assert now.additions is not None
                now.additions.waiting.append((stage, inputs[0], [stage.addition]))
                return None
            return now.stop_at(stage, inputs[0], output)

        return hook

    def stops(self, change: Change | None = None) -> Generator[Stop | None]:
        """Let one batch after another go on to the next stop, and yield it; None for one that is at its end.

        `change` is that of the layer of the last stops. What is yielded may be read until the next one is
        asked for; batches that are not asked for are left for a later stop. Raises `KernelsimpError` where
        the batches do not meet at one layer.
        """
        if self.at is not None:
            needed = set[str]().union(*(item.needs() for item in self.all))
            self.done.add(self.at)
            self.changes = {name: old for name, old in self.changes.items() if name in needed}
            self.changes[self.at] = change
        for place, item in enumerate(self.all):
            stop = item.arrive()
            name = stop.stage.name if stop else None
            self.at = self.at if place else name
            if name != self.at:
                raise KernelsimpError(
                    "the network goes another way for every batch, so images cannot code it; leave out --data"
                )
            try:
                yield stop
            finally:
                ended, stop = stop is None, None
                (self.pager.forget if ended else self.pager.park)(item)
