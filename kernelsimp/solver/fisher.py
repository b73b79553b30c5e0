"""One pass over calibration images that says what a kernel's error costs, before anything is changed.

Per layer: H_jj, the second moment of the windows of input channel j, (in, cells, cells), and g_o, how much
the loss minds output channel o, (out,). Both are means over images; g is summed over positions. A depthwise
kernel is few numbers that alone decide its channel, so there the Fisher information of the weights is taken
as it is, from the gradient of each image: g_o H_jj forgets that an error is the same at all positions.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves

from kernelsimp.batch_limit import BatchLimit
from kernelsimp.errors import DamagedError
from kernelsimp.evaluation.outputs import class_scores
from kernelsimp.files import read_sealed, write_sealed
from kernelsimp.float32 import full_float32
from kernelsimp.memory import give_back, is_out_of_memory
from kernelsimp.models.hooks import Call, Trace, tap_convolutions
from kernelsimp.models.layers import TRANSPOSED, kind_of
from kernelsimp.shelf import count_images, spans_of
from kernelsimp.solver.moments import WindowSampling, rows_of, sampling_for, windows, windows_at_once
from kernelsimp.solver.process_group import ALONE, ProcessGroup
from kernelsimp.watch import SILENT, Watcher

FORMAT = 2
"""What a kept survey holds; one of an earlier version knew nothing of depthwise kernels, and is made anew."""


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """One layer: `blocks` (in, cells, cells) and `fisher` (out,), float64 on the CPU.

    `kernels` (kernels, cells, cells) is the Fisher information of each kernel of a depthwise layer, where
    the mean of its output has been made up for by a bias.
    """

    blocks: Tensor
    fisher: Tensor
    kernels: Tensor | None = None


@full_float32()
def survey(
    model: nn.Module,
    traced: Trace,
    images: Sequence[Tensor],
    seed: int,
    watcher: Watcher = SILENT,
    group: ProcessGroup = ALONE,
) -> Mapping[str, Sensitivity]:
    """Return the sensitivity of every convolution larger than 1x1 that the images reach.

    L is the cross-entropy against a label drawn from the model's own output (the Fisher information);
    a network whose output is not (n, classes) gets Gaussian noise on its output in place of that. What is
    drawn hangs on the seed and an image's place alone. Where memory does not do for a batch, it is halved.
    With a `group`, `images` are this process's part of them. Raises `KernelsimpError` where memory does not
    do for one image.
    """
    count = count_images(images)
    surveyor = _Surveyor(model, {use.name: sampling_for(use, 1, count, seed) for use in traced.uses}, seed)
    spans = list(spans_of(images))
    watcher.start("measuring what each layer sees", sum(size for _, size in spans))
    limit = BatchLimit(watcher)

    def look(images: Tensor, places: range) -> None:
        surveyor.look(images, places.start)
        watcher.step(len(images))

    with without_weight_gradients(model), torch.enable_grad():
        for batch, (first, _) in zip(images, spans, strict=True):
            limit.in_parts(look, batch, range(first, first + len(batch)))
            give_back()
    surveyor.share(group)
    if not surveyor.heard:
        watcher.warn("this network gives no gradients: every output channel counts alike")
    return surveyor.result(count)


@contextmanager
def without_weight_gradients(model: nn.Module) -> Iterator[None]:
    """Have backward passes leave out what nobody asks for within the block: a third of their work."""
    wanted = [item for item in model.parameters() if item.requires_grad]
    for item in wanted:
        item.requires_grad_(False)
    try:
        yield
    finally:
        for item in wanted:
            item.requires_grad_()


def cached_survey(
    path: Path | None,
    make: Callable[[], Mapping[str, Sensitivity]],
    watcher: Watcher = SILENT,
    group: ProcessGroup = ALONE,
) -> Mapping[str, Sensitivity]:
    """Return the survey kept in the file `path`, or make it and keep it there; say which was done.

    The file's name must tell network, images and seed apart. A file that cannot be read is made again. Of a
    `group` the first process reads and writes.
    """
    if path is None:
        return make()
    kept = group.from_first(lambda: _kept_survey(path, watcher))
    if kept is not None:
        return kept
    found = make()
    if group.first:
        _keep_survey(found, path)
    return found


def _kept_survey(path: Path, watcher: Watcher) -> Mapping[str, Sensitivity] | None:
    """Return the survey in the file `path`; None where there is none that can be used."""
    try:
        kept = load(read_sealed(path))
        read = {name: _read(kept, name) for name in _names(kept)}
    except (OSError, DamagedError, SafetensorError, KeyError) as error:
        if path.exists():
            watcher.warn(f"{path}: cannot be used ({type(error).__name__}); measured again")
        return None
    watcher.note(f"what each layer sees was measured before: read from {path}")
    return read


def _keep_survey(found: Mapping[str, Sensitivity], path: Path) -> None:
    arrays = {
        f"{name}/{part.name}": value.contiguous()
        for name, item in found.items()
        for part in fields(item)
        if (value := getattr(item, part.name)) is not None
    }
    write_sealed(path, lambda partial: save_file(arrays, partial))


def _names(kept: Mapping[str, Tensor]) -> list[str]:
    return [key.removesuffix("/blocks") for key in kept if key.endswith("/blocks")]


def _read(kept: Mapping[str, Tensor], name: str) -> Sensitivity:
    return Sensitivity(kept[f"{name}/blocks"], kept[f"{name}/fisher"], kept.get(f"{name}/kernels"))


def _backward(loss: Tensor) -> bool:
    """Run the backward pass; say whether there was one (a network may detach, round or work in place)."""
    try:
        torch.autograd.backward(loss)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return False
    return True


def _loss(output: object, seed: int, first: int) -> Tensor:
    """Return a scalar whose gradient's second moment is the Fisher information of the output.

    What is drawn for an image hangs on the seed and its place, `first` that of the first one.
    """
    tensors, scores = output_tensors(output), class_scores(output)
    if scores is not None:
        logits = scores.float()
        chances = logits.detach().double().softmax(1).cumsum(1).cpu()
        draws = _draws(seed, first, torch.empty(len(logits), 1, dtype=torch.float64), "uniform_")
        labels = torch.searchsorted(chances, draws)[:, 0].clamp_max(logits.shape[1] - 1)
        return cross_entropy(logits, labels.to(logits.device), reduction="sum")
    noise = [_draws(seed, first, torch.empty(item.shape), "normal_").to(item.device) for item in tensors]
    return torch.stack([(item.float() * eps).sum() for item, eps in zip(tensors, noise, strict=True)]).sum()


def _draws(seed: int, first: int, empty: Tensor, fill: str) -> Tensor:
    """Return `empty` (n, ...) filled image by image, each from its own place's seed."""
    generator = torch.Generator()
    for number, row in enumerate(empty):
        generator.manual_seed(seed * 1_000_003 + first + number)
        getattr(row, fill)(generator=generator)
    return empty


def output_tensors(output: object) -> list[Tensor]:
    """Return the real tensors of whatever a network returns, in order."""
    return [item for item in tree_leaves(output) if isinstance(item, Tensor) and item.is_floating_point()]


class _Surveyor:
    """Running sums of every layer; a batch counts once its backward pass is through."""

    def __init__(self, model: nn.Module, samplings: Mapping[str, WindowSampling], seed: int) -> None:
        self.model, self.samplings, self.seed = model, samplings, seed
        self.sums: dict[str, _Sum] = {}
        self.heard = True

    def look(self, images: Tensor, first: int) -> None:
        """Add a batch whose first image has the place `first` of all."""
        batch: dict[str, _Sum] = {}

        def see(name: str, call: Call) -> None:
            here = batch.setdefault(name, _Sum())
            here.see(call, self.samplings[name], first)

        with tap_convolutions(self.model, see, lambda name, gradient: batch[name].hear(gradient)):
            inputs = images.clone().requires_grad_()
            self.heard &= _backward(_loss(self.model(inputs.clone()), self.seed, first))
        for name, item in batch.items():
            self.sums.setdefault(name, _Sum()).add(item)

    def share(self, group: ProcessGroup) -> None:
        """Add up the sums of all processes."""
        if group.size == 1:
            return
        named = {(name, part): value for name, item in self.sums.items() for part, value in item.tensors()}
        for (name, part), value in group.sums(named).items():
            setattr(self.sums.setdefault(name, _Sum()), part, value)
        self.heard = all(group.gather(self.heard))

    def result(self, images: int) -> dict[str, Sensitivity]:
        """Return the means over all images, in the order of the layers."""
        found = (name for name in self.samplings if name in self.sums)
        return {name: self.sums[name].result(images if self.heard else None) for name in found}


@dataclass
class _Sum:
    """Sums of one layer: `blocks` (in, cells, cells) over `rows` windows, `fisher` (out,), `calls` seen.

    Of a depthwise layer also `kernels` (kernels, cells + 1, cells + 1), the second moments of the gradients
    of its weights and bias, and the `means` (in, cells) of its windows; `waiting` are calls whose gradient
    is to come, `slopes` (n, kernels, cells + 1) the gradients of the batch.
    """

    blocks: Tensor | float = 0.0
    fisher: Tensor | float = 0.0
    means: Tensor | float = 0.0
    kernels: Tensor | None = None
    rows: Tensor | int = 0
    calls: int = 0
    waiting: list[Call] = field(default_factory=list)
    slopes: Tensor | None = None

    @torch.no_grad()
    def see(self, call: Call, sampling: WindowSampling, first: int) -> None:
        """Add the input of a call."""
        view = windows(call)
        module: Any = call[0]
        positions = math.prod(view.shape[2 : 2 + len(module.kernel_size)])
        image, place = sampling.places(view.shape[0], positions, first, self.calls)
        cells = math.prod(module.kernel_size)
        size = windows_at_once(view.device, view.shape[1] * cells)
        for images, places in zip(torch.split(image, size), torch.split(place, size), strict=True):
            rows = rows_of(call, images, places)  # (groups, rows, D)
            split = rows.reshape(len(rows), len(images), -1, cells).transpose(1, 2).flatten(0, 1)
            self.blocks = self.blocks + (split.mT @ split).double().cpu()
            self.means = self.means + split.sum(1).double().cpu()
        self.fisher = self.fisher + torch.zeros(module.out_channels, dtype=torch.float64)
        self.rows += len(image)
        self.calls += 1
        if (
            kind_of(module.in_channels, module.groups, transposed=isinstance(module, TRANSPOSED))
            == "depthwise"
        ):
            self.waiting.append(call)

    @torch.no_grad()
    def hear(self, gradient: Tensor) -> None:
        """Add the gradient of a call's output, (n, out, ...)."""
        self.fisher = self.fisher + gradient.double().square().transpose(0, 1).flatten(1).sum(1).cpu()
        if self.waiting:
            slopes = weight_slopes(self.waiting.pop(), gradient)
            self.slopes = slopes if self.slopes is None else self.slopes + slopes

    def add(self, other: "_Sum") -> None:
        """Add the sums of a batch that is through."""
        self.blocks = self.blocks + other.blocks
        self.fisher = self.fisher + other.fisher
        self.means = self.means + other.means
        self.rows += other.rows
        if other.slopes is not None:
            each = other.slopes.transpose(0, 1)
            square = (each.mT @ each).double().cpu()
            self.kernels = square if self.kernels is None else self.kernels + square

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield everything that adds up over images, by name."""
        for name in ("blocks", "fisher", "means", "kernels", "rows"):
            value = getattr(self, name)
            if value is not None:
                yield name, torch.as_tensor(value)

    def result(self, images: int | None) -> Sensitivity:
        """Return the means over windows and over images; without gradients every channel counts alike."""
        blocks, fisher = torch.as_tensor(self.blocks), torch.as_tensor(self.fisher)
        if images is None:
            return Sensitivity(blocks / self.rows, torch.ones_like(fisher))
        kernels = None if self.kernels is None else self._without_mean(self.kernels / images)
        return Sensitivity(blocks / self.rows, fisher / images, kernels)

    def _without_mean(self, moments: Tensor) -> Tensor:
        """Return the information (kernels, cells, cells) of weights whose bias makes up for the mean.

        An error e then shifts the bias by -e'm, m the mean window: the gradient is s - b m, b the bias's.
        """
        means = torch.as_tensor(self.means) / self.rows
        means = means.repeat_interleave(len(moments) // len(means), 0)
        same = torch.eye(means.shape[1], dtype=torch.float64).expand(len(means), -1, -1)
        fold = torch.cat([same, -means[:, :, None]], 2)  # (kernels, cells, cells + 1)
        return fold @ moments @ fold.mT


def weight_slopes(call: Call, gradient: Tensor) -> Tensor:
    """Return each image's gradient of a depthwise layer's weights and bias, (n, kernels, cells + 1).

    `gradient` is that of the call's output, (n, out, *positions).
    """
    module: Any = call[0]
    view = windows(call)
    images, channels, *positions = view.shape[: 2 + len(module.kernel_size)]
    slope = gradient.reshape(images, channels, -1, *positions)
    places: Any = itertools.product(*(range(side) for side in module.kernel_size))
    cells = [(view[(..., *place)][:, :, None] * slope).flatten(3).sum(-1) for place in places]
    return torch.stack([*cells, slope.flatten(3).sum(-1)], -1).flatten(1, 2)
