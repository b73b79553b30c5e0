"""Forward passes of many batches that stop together at every layer, so that it can be changed on the way.

Each batch's pass is a thread of its own; one runs at a time. It stops where a layer's output is seen (see
`models.stages`), and goes on with that output as it is with the layer's new weights: no layer is run twice
to reach the next one, and what is kept is what the network itself still needs.
"""

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kernelsimp.errors import KernelsimpError
from kernelsimp.models.stages import Stage, is_addition, layer_modules

Change = Callable[[Tensor, Tensor], Tensor]
"""(the layer's input, what is seen) -> what is seen with the layer's new weights."""


class _StopPass(BaseException):
    """Ends a pass from outside; not an Exception, so that no network eats it."""


class _Pass(threading.Thread):
    """One batch: `arrive` runs it to its next stop."""

    def __init__(self, passes: "Passes", images: Tensor) -> None:
        super().__init__(daemon=True)
        self.passes, self.images = passes, images
        self.told: SimpleQueue[Any] = SimpleQueue()
        self.asked: SimpleQueue[Any] = SimpleQueue()

    def run(self) -> None:
        if self.asked.get() is _StopPass:
            return
        self.passes.here.now = self
        try:
            with torch.no_grad(), _Additions(self) as self.additions:
                self.passes.model(self.images)
            self.told.put(None)
        except _StopPass:
            pass
        except BaseException as error:  # the one that waits raises it
            self.told.put(error)

    def stop_at(self, stage: Stage, inputs: Tensor, seen: Tensor) -> Tensor:
        """Wait here until told how to go on; return what is seen from now on."""
        self.told.put((stage, inputs, seen))
        asked = self.asked.get()
        if asked is _StopPass:
            raise _StopPass
        return seen if asked is None else asked(inputs, seen)

    def arrive(self, change: Change | None) -> tuple[Stage, Tensor, Tensor] | None:
        """Let the pass go on to its next stop, or to its end (None)."""
        self.asked.put(change)
        told = self.told.get()
        if isinstance(told, BaseException):
            raise told
        return told  # type: ignore[no-any-return]


class _Additions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the additions after each layer that is seen at one."""

    def __init__(self, owner: _Pass) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner
        self.waiting: list[tuple[Stage, Tensor, list[int]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not is_addition(func, args, kwargs):
            return result
        due = [item for item in self.waiting if item[2][0] == 0]
        self.waiting = [item for item in self.waiting if item[2][0] > 0]
        for _, _, left in self.waiting:
            left[0] -= 1
        for stage, inputs, _ in due:
            changed = self.owner.stop_at(stage, inputs, result)
            if changed is not result:
                result.copy_(changed)
        return result


class Passes:
    """The passes of all batches over one network; a context, which ends them."""

    def __init__(self, model: nn.Module, stages: Sequence[Stage], images: Sequence[Tensor]) -> None:
        self.model, self.here = model, threading.local()
        layers = layer_modules(model)
        self.handles = [
            module.register_forward_hook(self._hook(stage))
            for stage in stages
            if stage.calls == 1
            for module in layers[stage.name]
        ]
        self.all = [_Pass(self, batch) for batch in images]

    def __enter__(self) -> "Passes":
        for item in self.all:
            item.start()
        return self

    def __exit__(self, *_: object) -> None:
        for item in self.all:
            item.asked.put(_StopPass)
        for item in self.all:
            item.join()
        for handle in self.handles:
            handle.remove()

    def _hook(self, stage: Stage) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            now: _Pass | None = getattr(self.here, "now", None)
            if now is None:
                return None
            if stage.addition is not None:
                now.additions.waiting.append((stage, inputs[0], [stage.addition]))
                return None
            return now.stop_at(stage, inputs[0], output)

        return hook

    def arrive(self, change: Change | None = None) -> tuple[Stage, list[tuple[Tensor, Tensor]]] | None:
        """Let all go on to the next stage; return it, and (input, what is seen) of each batch.

        Raises `KernelsimpError` where the batches do not meet at one layer.
        """
        stops = [item.arrive(change) for item in self.all]
        names = {stop[0].name if stop else None for stop in stops}
        if len(names) > 1:
            raise KernelsimpError(
                "the network goes another way for every batch, so images cannot code it; leave out --data"
            )
        if stops[0] is None:
            return None
        return stops[0][0], [(stop[1], stop[2]) for stop in stops if stop is not None]
