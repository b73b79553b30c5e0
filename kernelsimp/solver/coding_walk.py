"""Code a network layer by layer, from input to output, each on its already changed inputs.

What a layer is to put out is what the original network has where it is seen, so that a layer answers for the
errors of those before it, and one before an addition for those of the shortcut. One price of a bit holds for
the whole network; a layer has one step. The network is given with its batch norms absorbed.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kernelsimp.float32 import full_float32
from kernelsimp.kernels.coded_tensor import CodedTensor
from kernelsimp.kernels.integer_coding import fade, new_memory
from kernelsimp.kernels.kernel_coding import CodedKernels
from kernelsimp.kernels.kernel_rounding import round_kernels
from kernelsimp.kernels.range_coder import Integers
from kernelsimp.kernels.rounding import Metric, Rate, round_matrix, round_vector, step_for
from kernelsimp.memory import USUAL, Room, give_back
from kernelsimp.models.stages import Stage, groups_of, layer_modules, matrix_of, put_matrix
from kernelsimp.models.stored_order import tensor_name
from kernelsimp.shelf import count_images
from kernelsimp.solver.coding_kernels import KernelMenu
from kernelsimp.solver.coding_moments import FitMoments, Seen, fit_moments, identity_moments, reading_of
from kernelsimp.solver.passes import Change, Passes, Stop
from kernelsimp.watch import SILENT, Watcher

Array = NDArray[np.float64]

OUTPUT_DAMPING = 0.1
"""Of the mean of G's diagonal."""

LARGEST = 1 << 20
"""The largest integer that a search aims at; the coder reaches eight times further."""


@dataclass(frozen=True, eq=False)
class Ground:
    """What coding stands on: a network with its norms absorbed, its layers, and what they are held against.

    `model` runs in float32; `biases` says where each layer's bias is, `dtypes` how tensors are stored;
    `metrics` is G by layer, `reused` the moments of layers that are called more than once, and `absorbed`
    names the tensors that absorbing the norms has changed. `menus` says of some layers what structures their
    kernels have, or may take. `room` is what may be held in memory.
    """

    model: nn.Module
    stages: tuple[Stage, ...]
    biases: Mapping[str, str]
    dtypes: Mapping[str, torch.dtype]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    reused: Mapping[str, FitMoments] = field(default_factory=dict)
    images: Sequence[Tensor] = ()
    seed: int = 0
    absorbed: frozenset[str] = frozenset()
    menus: Mapping[str, KernelMenu] = field(default_factory=dict)
    room: Room = USUAL


@dataclass(frozen=True, eq=False)
class Coding:
    """A coded network: `tensors` by name of weight or bias, in the order in which they were coded.

    Where weights alone are coded there is no `model`.
    """

    model: nn.Module | None
    tensors: Mapping[str, CodedTensor | CodedKernels]
    price: float

    @property
    def bits(self) -> float:
        """Bits of the weights' integers, as the search counted them."""
        return sum(item.bits for item in self.tensors.values())


@full_float32()
def code_network(ground: Ground, price: float, watcher: Watcher = SILENT) -> Coding:
    """Return the network coded at one price of a bit, in nats an image.

    Raises `KernelsimpError` where numba is not installed or passes of different batches do not meet.
    """
    work = _Work(ground, copy.deepcopy(ground.model), price)
    watcher.start("coding layer by layer", len(ground.stages))
    for stage in ground.stages:
        if stage.calls > 1:
            work.code(stage, ground.reused.get(stage.name))
            watcher.step()
    _walk(work, watcher)
    return Coding(work.model, work.tensors, price)


def code_tensors(
    tensors: Mapping[str, Tensor], price: float, menus: Mapping[str, KernelMenu] | None = None
) -> Coding:
    """Return the weights of a state dict coded without a network or images: an error counts by its size.

    The price is in relative squared error of a layer's filters. What has at least two axes is coded; `menus`
    are by name of weight.
    """
    memory, coded = new_memory(), dict[str, CodedTensor | CodedKernels]()
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            continue
        menu = (menus or {}).get(name)
        before = (
            (tensor if menu is None else menu.canonical(tensor)).detach().double().flatten(1).cpu().numpy()
        )
        size = float(np.square(before).sum(1).mean()) if before.size else 0.0
        if size:  # zeros are a word in the header
            rows, width = before.shape
            fit = LayerFit(
                before, identity_moments(1, width, rows), np.eye(rows)[None] / size, has_bias=False
            )
            coded[name] = fit.round_weight(price, memory, menu)
    return Coding(None, coded, price)


def _walk(work: "_Work", watcher: Watcher) -> None:
    ground, change = work.ground, None
    count = count_images(ground.images)
    room = replace(ground.room, bytes=ground.room.bytes / 2)  # two networks share it
    with (
        Passes(ground.model, ground.stages, ground.images, room) as before,
        Passes(work.model, ground.stages, ground.images, room) as now,
    ):
        while True:
            with closing(now.stops(change)) as changed, closing(before.stops()) as original:
                arriving = zip(changed, original, strict=True)
                stop, was = next(arriving)
                if stop is None:
                    return
                stage, module = stop.stage, work.layers[stop.stage.name][0]
                reading = reading_of(module, stop.inputs, count)
                batches = math.ceil(reading.images / len(stop.inputs))
                seen = _missing(islice(chain([(stop, was)], arriving), batches))
                del stop, was
                moments = fit_moments(module, seen, reading.share, ground.seed)
            change = work.code(stage, moments)
            give_back()
            watcher.step()


def _missing(arriving: Iterable[tuple[Stop | None, Stop | None]]) -> Iterator[Seen]:
    """Yield a layer's input in each batch, and what is missing of what the original network has there."""
    for now, before in arriving:
        assert now is not None
        assert before is not None
        yield now.inputs, before.seen - now.seen


class _Work:
    """The network as it is being coded."""

    def __init__(self, ground: Ground, model: nn.Module, price: float) -> None:
        self.ground, self.model, self.price = ground, model, price
        self.layers, self.memory = layer_modules(model), new_memory()
        self.tensors: dict[str, CodedTensor | CodedKernels] = {}
        self.parameters: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))

    def code(self, stage: Stage, moments: FitMoments | None) -> Change:
        """Code one layer; return how its output changes."""
        module, place = self.layers[stage.name][0], self.ground.biases.get(stage.name)
        before, groups = matrix_of(module).double().cpu().numpy(), groups_of(module)
        if moments is None:
            moments = identity_moments(groups, before.shape[1], len(before) // groups)
        fit = LayerFit(before, moments, self._outputs(stage, before), has_bias=place is not None)
        weight = fit.round_weight(self.price, self.memory, self.ground.menus.get(stage.name))
        name = tensor_name(stage.name)
        written = self._stored(name, weight)
        old = copy.deepcopy(module)
        put_matrix(module, torch.from_numpy(written))
        self.tensors[name] = weight
        shift = None
        if place is not None:
            bias = self.parameters[place]
            level = bias.detach().double().cpu().numpy()
            rounded = fit.round_bias(level, written, self.price)
            self.tensors[place] = rounded
            stored = self._stored(place, rounded)
            shift = torch.from_numpy(stored - level).float().to(bias.device)
            with torch.no_grad():
                bias.copy_(torch.from_numpy(stored))
        return _change(stage, (old, module), shift)

    def _stored(self, name: str, coded: CodedTensor | CodedKernels) -> Array:
        """Return the numbers as the file's dtype holds them."""
        stored = torch.from_numpy(coded.numbers()).to(self.ground.dtypes.get(name, torch.float32))
        return stored.double().numpy()

    def _outputs(self, stage: Stage, weight: Array) -> Array:
        """Return G of a layer, damped; where it is unknown, errors count relative to the layer's size."""
        groups = groups_of(self.layers[stage.name][0])
        rows = len(weight) // groups
        known = self.ground.metrics.get(stage.name)
        if known is None:
            size = float(np.square(weight).sum(1).mean()) or 1.0
            return np.broadcast_to(np.eye(rows) / size, (groups, rows, rows)).copy()
        found = known.double().numpy()
        size = np.trace(found, axis1=1, axis2=2) / rows
        least = OUTPUT_DAMPING * np.maximum(size, 1e-6 * (float(size.mean()) or 1e-24))
        damped: Array = found + np.eye(rows) * least[:, None, None]
        return damped


NOTHING = 1e-20
"""Weights below this are the rounding of a layer that is dead."""


class LayerFit:
    """One layer: its weights (outputs, D) before, and in what metric they may move."""

    def __init__(self, before: Array, moments: FitMoments, outputs: Array, *, has_bias: bool) -> None:
        self.before, self.moments = before, moments
        centred = moments.centred() if has_bias else moments
        self.aim = before + centred.change().reshape(before.shape)
        self.metric = Metric(centred.metric(), outputs)
        self.factors = self.metric.factors()

    def round_weight(
        self, price: float, memory: Integers, menu: KernelMenu | None = None
    ) -> CodedTensor | CodedKernels:
        """Return integers and step of the weights, of the kernels of a `menu` by their structures."""
        if float(np.abs(self.aim).max()) < NOTHING:
            return CodedTensor(np.zeros(self.aim.shape, dtype=np.int64), np.float32(1.0), 0.0)
        if menu is None:
            return self._round_cells(price, memory)
        if not menu.optional:
            return self._round_kernels(price, memory, menu)
        start = memory.copy()
        cells, after = self._round_cells(price, memory), memory.copy()
        memory[:] = start
        parts = self._round_kernels(price, memory, menu)
        if self._cost(parts, price) + price * menu.toll < self._cost(cells, price):
            return parts
        memory[:] = after
        return cells

    def _cost(self, item: CodedTensor | CodedKernels, price: float) -> float:
        return self.metric.loss(self.aim - item.numbers().astype(np.float64)) + price * item.bits

    def _round_cells(self, price: float, memory: Integers) -> CodedTensor:
        step = _within_reach(step_for(price, self.factors.pivot), self.aim)
        values, bits = round_matrix(self.aim, self.factors, Rate(price, float(step)), memory)
        fade(memory)
        return CodedTensor(values, step, bits)

    def _round_kernels(self, price: float, memory: Integers, menu: KernelMenu) -> CodedKernels:
        aim = menu.aim(self.aim, self.metric.inputs)
        step = _within_reach(step_for(price, self.factors.pivot), aim)
        offers, beside = menu.offers(aim)
        rounded = round_kernels(aim, self.factors, offers, Rate(price, float(step)), memory)
        fade(memory)
        return menu.coded(rounded, beside, step)

    def round_bias(self, level: Array, written: Array, price: float) -> CodedTensor:
        """Return integers and step of the bias that goes best with the weights as they are written.

        It takes up what the means miss: b + mean R - (W' - W) mean T.
        """
        groups, _ = self.moments.mean.shape
        moved = (
            (written - self.before).reshape(groups, -1, written.shape[1]) @ self.moments.mean[:, :, None]
        )[..., 0]
        aim = level + (self.moments.missing - moved).reshape(-1)
        step = _within_reach(step_for(price, float(self.factors.row_pivots.mean()), coarse=1.0), aim)
        return CodedTensor(round_vector(aim, self.factors, float(step)), step)


def _within_reach(step: float, aim: Array) -> np.float32:
    """Return a step that leaves neither all integers zero many times over, nor any beyond the coder."""
    largest = max(float(np.abs(aim).max()), 1e-30)
    return np.float32(min(max(step, largest / LARGEST), 4 * largest))


def _change(stage: Stage, modules: tuple[nn.Module, nn.Module], shift: Tensor | None) -> Change:
    """Return what is seen from now on: the layer's new output, or the sum with its change added."""
    old, new = modules
    if stage.addition is None:
        return lambda inputs, _: new.forward(inputs)
    moved: Any = old
    moved.weight = nn.Parameter(new.weight.detach() - moved.weight.detach())  # type: ignore[operator]
    moved.bias = None if shift is None else nn.Parameter(shift)
    return lambda inputs, seen: seen + moved.forward(inputs)
