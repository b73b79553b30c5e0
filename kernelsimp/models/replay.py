"""Go through a network layer by layer over the same images, without running anything twice.

A `Replay` feeds images up to a layer, hands out that layer's inputs and stops. A module that had finished
before the layer began is not run again on the way to a later one: its output is kept on a shelf, in memory
or in files, because nothing upstream of it has changed since. Layers must therefore be visited in the order
of the trace, and be changed only once visited. A layer may be asked of the first batches alone; the others
stay where they are until a later layer wants them, and are then brought up in one go.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from kernelsimp.memory import give_back
from kernelsimp.models.hooks import Call, Trace, Use, weight_of
from kernelsimp.models.stored_order import module_name
from kernelsimp.shelf import Shelf

KEPT_BYTES = 1 << 28
"""What a replay keeps in memory of the outputs of finished modules, unless told; the rest goes to files."""


TRIM_EVERY = 16
"""Batches after which freed memory is handed back: what is shelved between them leaves holes in the heap."""

UNWANTED = torch.empty(0)
"""Stands for an output that only modules whose own outputs are kept have used."""


class _Reached(BaseException):
    """Stops a forward pass once the layer has been called; not an Exception, so that no network eats it."""


class Replay:
    """Hand out the inputs of one convolution after another, over the same batches of images.

    `use` in `inputs_of` follows the order of the trace.
    """

    def __init__(
        self, model: nn.Module, traced: Trace, images: Sequence[Tensor], shelf: Shelf | None = None
    ) -> None:
        self.model, self.traced, self.images = model, traced, images
        self.modules = dict(model.named_modules())
        self.shelf = Shelf(KEPT_BYTES) if shelf is None else shelf
        self.kept: list[set[str]] = [set() for _ in range(len(images))]

    @torch.no_grad()
    def inputs_of(self, use: Use, batches: int | None = None) -> Iterator[list[Call]]:
        """Yield every call of the layer in one forward pass, for each batch or for the first `batches`."""
        keep = self.traced.finished_before(use.name)
        for place, images in enumerate(islice(self.images, batches)):
            found: list[Call] = []
            self._run(use, images, place, keep, found)
            yield found
            if place % TRIM_EVERY == TRIM_EVERY - 1:
                give_back()

    def _run(
        self, use: Use, images: Tensor, place: int, keep: Mapping[str, float], found: list[Call]
    ) -> None:
        """Run one batch until the layer's last call, and shelve the outputs that later layers need."""
        layer, known = weight_of(self.modules[module_name(use.name)]), self.kept[place]

        def on_call(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            last = len(found) + 1 == use.calls
            found.append((module, inputs[0] if last else inputs[0].clone()))  # what follows may work in place
            if last:
                raise _Reached

        twins = [module for module in self.modules.values() if weight_of(module) is layer]
        handles = [module.register_forward_pre_hook(on_call) for module in twins]
        try:
            with self._shortcuts(place, {name: size for name, size in keep.items() if name not in known}):
                self.model(images)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        for name in known - keep.keys():
            self.shelf.drop((place, name))
        self.kept[place] = {name for name in keep if (place, name) in self.shelf}
        for name in self.kept[place] & known:
            if not keep[name]:  # nobody wants it any more
                self.shelf.put((place, name), UNWANTED)

    @contextmanager
    def _shortcuts(self, place: int, wanted: Mapping[str, float]) -> Iterator[None]:
        """Let modules that are kept return what they returned before, and keep the outputs of `wanted`."""
        patched = [self.modules[name] for name in self.kept[place]]
        own = [module.__dict__.get("forward") for module in patched]
        for name in self.kept[place]:
            self.modules[name].forward = self._recall((place, name))
        handles = [
            self.modules[name].register_forward_hook(self._keep_output((place, name), needed=size > 0))
            for name, size in wanted.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module, forward in zip(patched, own, strict=True):
                del module.forward
                if forward is not None:
                    module.forward = forward

    def _recall(self, key: tuple[int, str]) -> Callable[..., Any]:
        return lambda *_, **__: self.shelf.get(key)

    def _keep_output(self, key: tuple[int, str], *, needed: bool) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            self.shelf.put(key, output if needed else UNWANTED)

        return keep
