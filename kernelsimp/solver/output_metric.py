"""How much the loss minds each combination of a layer's outputs: the second moment of its gradient there.

G = E[sum over positions of g g'], g = dL/dy, an image: (groups, rows, rows) in float64. The Fisher
information of the answers: a random direction in place of a label, v = sqrt(p) * s - p sum(sqrt(p) * s) with
signs s, has the covariance of a label drawn from the model, diag(p) - p p', at less noise. Answers are
softened first: on images that the network knows by heart a label says almost nothing.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from kernelsimp.evaluation.outputs import class_scores
from kernelsimp.float32 import full_float32
from kernelsimp.memory import is_out_of_memory
from kernelsimp.models.stages import groups_of, layer_modules
from kernelsimp.shelf import count_images
from kernelsimp.solver.fisher import output_tensors
from kernelsimp.watch import SILENT, Watcher

SOFTENED = 2.0
"""The temperature of the answers."""

DIRECTIONS = 2
"""Random directions an image."""

PIXELS = 1 << 17
"""Pixels in one backward pass, whose whole memory it is."""

PIXELS_ENOUGH, IMAGES_AT_LEAST = 1 << 21, 128
"""G is measured on so many pixels, or on so many images where these have more."""


@full_float32()
def output_metrics(
    model: nn.Module, images: Sequence[Tensor], seed: int, watcher: Watcher = SILENT
) -> Mapping[str, Tensor]:
    """Return G of every layer that the images reach; empty where the network gives no gradients."""
    sums = _Sums(model)
    generator = torch.Generator().manual_seed(seed)
    count = _images_enough(images)
    watcher.start("measuring what the answers mind", count)
    with torch.enable_grad():
        for inputs in _pieces(images, count):
            try:
                sums.pass_over(inputs, generator)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                watcher.warn("this network gives no gradients: every output counts alike")
                return {}
            watcher.step(len(inputs))
    model.zero_grad(set_to_none=True)
    return {name: value.detach().cpu() / (DIRECTIONS * count) for name, value in sums.sums.items()}


def _images_enough(images: Sequence[Tensor]) -> int:
    pixels = images[0][0, 0].numel()
    return min(count_images(images), max(IMAGES_AT_LEAST, PIXELS_ENOUGH // max(1, pixels)))


def _pieces(images: Sequence[Tensor], count: int) -> Iterator[Tensor]:
    """Yield the first `count` images, as many at once as a backward pass may take."""
    for batch in images:
        some = batch[:count]
        count -= len(some)
        yield from torch.split(some, max(1, PIXELS // some[0, 0].numel()))
        if not count:
            return


class _Sums:
    """Sums of g g' by layer, from hooks that are there during one pass."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.sums = model, dict[str, Tensor]()
        self.layers = {item: name for name, items in layer_modules(model).items() for item in items}

    def pass_over(self, inputs: Tensor, generator: torch.Generator) -> None:
        outputs: list[tuple[nn.Module, Tensor]] = []

        def keep(module: nn.Module, _: object, output: Tensor) -> Tensor:
            outputs.append((module, output))
            return output.clone()  # what follows may work in place

        handles = [module.register_forward_hook(keep) for module in self.layers]
        try:
            answer = self.model(inputs.clone().requires_grad_())
        finally:
            for handle in handles:
                handle.remove()
        tensors = [output for _, output in outputs]
        for turn in range(DIRECTIONS):
            loss = _directed(answer, generator)
            again = turn + 1 < DIRECTIONS
            slopes = torch.autograd.grad(loss, tensors, retain_graph=again, allow_unused=True)
            for (module, _), slope in zip(outputs, slopes, strict=True):
                if slope is not None:
                    self._add(module, slope)

    def _add(self, module: nn.Module, slope: Tensor) -> None:
        rows = slope.flatten(0, -2) if isinstance(module, nn.Linear) else slope.movedim(1, -1).flatten(0, -2)
        split = rows.float().reshape(len(rows), groups_of(module), -1).transpose(0, 1)
        product, name = (split.mT @ split).double(), self.layers[module]
        self.sums[name] = self.sums[name] + product if name in self.sums else product


def _directed(answer: object, generator: torch.Generator) -> Tensor:
    """Return a scalar whose gradient's second moment is the Fisher information of the answer."""
    scores = class_scores(answer)
    if scores is None:
        parts = output_tensors(answer)
        noise = [torch.randn(part.shape, generator=generator).to(part.device) for part in parts]
        return torch.stack(
            [(part.float() * other).sum() for part, other in zip(parts, noise, strict=True)]
        ).sum()
    root = (scores.detach().float() / SOFTENED).softmax(1).sqrt()
    signs = torch.randint(0, 2, root.shape, generator=generator).to(root) * 2 - 1
    drawn = root * signs
    return (scores.float() * (drawn - root.square() * drawn.sum(1, keepdim=True))).sum()
