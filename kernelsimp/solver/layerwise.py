"""Carry out decisions on a network, layer by layer from input to output, each on its already changed inputs.

Every layer's weights are fitted so that its outputs stay nearest to the original network's; each kernel is
then written exactly into its structure, in the dtype of the checkpoint, and the layers after it see that.
Where the layer has a bias, or feeds one batch norm, the shift of its mean goes there in closed form.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kernelsimp.batch_limit import BatchLimit
from kernelsimp.float32 import full_float32
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.memory import USUAL, Room, give_back
from kernelsimp.models.hooks import Trace, Use
from kernelsimp.models.layers import conv_modules, stored_order, tensor_name
from kernelsimp.models.replay import Replay
from kernelsimp.shelf import ImageBatches, Shelf, batch_size, count_images, spans_of
from kernelsimp.solver.alternating import settle
from kernelsimp.solver.moments import Moments, images_wanted, pair_moments, sampling_for
from kernelsimp.solver.process_group import ALONE, ProcessGroup
from kernelsimp.solver.projected_cg import FilterConstraint, UnsolvableError, resolve
from kernelsimp.solver.targets import Target
from kernelsimp.watch import SILENT, Watcher


@dataclass(frozen=True, eq=False)
class CalibratedNetwork:
    """What a reconstruction stands on: the original network with its kernels, and images to look at it with.

    `model` runs in float32, in evaluation mode; `images` are batches of its input, in a random order,
    `held_back` batches that judge and are never fitted to. `room` says what may be held in memory at once.
    With a `group`, both are this process's part of the batches. `limit` knows where memory did not do for
    a batch.
    """

    model: nn.Module
    bank: KernelBank
    traced: Trace
    images: Sequence[Tensor]
    held_back: Sequence[Tensor] = ()
    seed: int = 0
    room: Room = USUAL
    group: ProcessGroup = ALONE
    limit: BatchLimit = field(default_factory=BatchLimit)

    @property
    def count(self) -> int:
        """How many images there are to fit to, in all processes."""
        return count_images(self.images)

    def alone(self) -> "CalibratedNetwork":
        """Return the same with whole batches, for what one process of a group does by itself."""
        images, held_back = (
            part.whole if isinstance(part, ImageBatches) else part for part in (self.images, self.held_back)
        )
        return replace(self, images=images, held_back=held_back, group=ALONE)

    def images_for(self, use: Use, width: int) -> tuple[int, int]:
        """Return how many of the batches a layer of D = `width` is read at, and how many images these are."""
        size = batch_size(self.images)
        batches = math.ceil(min(self.count, images_wanted(use, width)) / size)
        return batches, min(self.count, batches * size)


def bytes_of_files(calibrated: CalibratedNetwork) -> int:
    """Return what a reconstruction writes to disk at most: outputs of finished modules, of both networks."""
    widths = {layer.name: layer.kernels[0].numel() for layer in calibrated.bank.layers}
    sizes = (
        sum(calibrated.traced.finished_before(use.name).values())
        * calibrated.images_for(use, widths[use.name])[1]
        for use in calibrated.traced.uses
    )
    most = max(sizes, default=0.0)
    return max(0, 2 * int(most - calibrated.room.kept))


@dataclass(frozen=True)
class Fit:
    """How one layer came out: relative `output_error` (None where it was never run) and a word on trouble."""

    output_error: float | None
    steps: int = 0
    trouble: str | None = None


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The simplified network, and the tensors that differ from the original's.

    Weights are in the bank's dtype; biases and running means in float32, for the checkpoint to cast.
    """

    model: nn.Module
    tensors: Mapping[str, Tensor]
    fits: Mapping[str, Fit]

    @property
    def notes(self) -> tuple[str, ...]:
        """What did not go as it should, a sentence a layer."""
        return tuple(f"{name}: {fit.trouble}" for name, fit in self.fits.items() if fit.trouble)

    @property
    def output_errors(self) -> dict[str, float]:
        """The relative output error of each layer that was re-solved."""
        return {name: fit.output_error for name, fit in self.fits.items() if fit.output_error is not None}

    @property
    def buffers_changed(self) -> tuple[str, ...]:
        """The biases and batch norm means that took up shifts."""
        return tuple(name for name in self.tensors if name.endswith(("running_mean", "bias")))


@dataclass
class _ReconstructionState:
    """What changes along the way; of the layers in the order of the trace, so many are `done`."""

    model: nn.Module
    done: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)


def reconstruct(
    calibrated: CalibratedNetwork,
    targets: Mapping[str, Target],
    watcher: Watcher = SILENT,
    *,
    fitted: bool = True,
) -> Reconstruction:
    """Return the network in which the layers of `targets` are what these ask for.

    With `fitted` false every kernel is only projected and nothing else moves. A layer whose moments are
    singular, missing or of too few rows is projected too, and its `Fit` says so. Where memory does not do for
    a batch, it goes on at that layer with batches of half the size; of a `group`, no process can do so alone.
    """
    state = _ReconstructionState(copy.deepcopy(calibrated.model))

    def go_on(images: Sequence[Tensor]) -> Reconstruction:
        return _reconstruct(replace(calibrated, images=images), targets, watcher, state, fitted=fitted)

    if calibrated.group.size > 1:
        return go_on(calibrated.images)
    return calibrated.limit.in_batches(go_on, calibrated.images)


@full_float32()
def _reconstruct(
    calibrated: CalibratedNetwork,
    targets: Mapping[str, Target],
    watcher: Watcher,
    state: _ReconstructionState,
    *,
    fitted: bool,
) -> Reconstruction:
    layers = {layer.name: layer for layer in calibrated.bank.layers}
    now, before = (
        Replay(
            model, calibrated.traced, calibrated.images, Shelf(calibrated.room.kept, calibrated.room.folder)
        )
        for model in (state.model, calibrated.model)
    )
    watcher.start("re-solving layer by layer" if fitted else "projecting", len(calibrated.traced.uses))
    watcher.step(state.done)
    for use in calibrated.traced.uses[state.done :]:
        layer, target = layers[use.name], targets.get(use.name)
        if fitted and (state.tensors or target):
            replays = (now, before if state.tensors else None)
            moments = moments_now(use, layer, replays, calibrated, halved=target is None)
            # one process fits; the others are told
            fit = partial(_fit_layer, state.model, use, (layer, target), moments)
            if fitting := calibrated.group.from_first(fit):
                _store(state, fitting.tensors)
                state.fits[use.name] = fitting.fit
        elif target:
            _store(state, _stored(state.model, layer, target.nearest_kernels(layer.kernels)))
        give_back()
        watcher.step()
        state.done += 1
    for name in targets.keys() - {use.name for use in calibrated.traced.uses}:
        _store(state, _stored(state.model, layers[name], targets[name].nearest_kernels(layers[name].kernels)))
        state.fits[name] = Fit(None, trouble="never run on calibration images: only projected")
    return Reconstruction(state.model, state.tensors, state.fits)


def moments_now(
    use: Use,
    layer: LayerKernels,
    replays: tuple[Replay, Replay | None],
    calibrated: CalibratedNetwork,
    *,
    halved: bool = False,
) -> Moments | None:
    """Return the moments of one layer: (the network now, the original one where they differ by now)."""
    now, before = replays
    original = layer_weights(layer)
    width = original.shape[-1]
    batches, images = calibrated.images_for(use, width)
    sampling = sampling_for(use, width, images, calibrated.seed)
    was = before.inputs_of(use, batches) if before is not None else None
    how: dict[str, Any] = {"halved": halved, "spans": spans_of(calibrated.images), "group": calibrated.group}
    return pair_moments(now.inputs_of(use, batches), was, original, sampling, **how)


@dataclass(frozen=True, eq=False)
class _FittedLayer:
    """What fitting one layer came to: the tensors of the checkpoint that change, and how it went."""

    tensors: Mapping[str, Tensor]
    fit: Fit


def _fit_layer(
    model: nn.Module, use: Use, work: tuple[LayerKernels, Target | None], moments: Moments | None
) -> _FittedLayer | None:
    """Return what becomes of one layer of the network as it is now; None where it stays.

    A device that runs out of memory hands the layer to the CPU.
    """
    if moments is None or (moments.same and work[1] is None):
        return None
    device = moments.gram.device
    try:
        return _fitted_layer(model, use, work, moments)
    except torch.OutOfMemoryError:
        if device.type == "cpu":
            raise
    made = _fitted_layer(model, use, work, moments.to("cpu"))
    told = f"{device} ran out of memory, solved on the CPU"
    trouble = f"{told}; {made.fit.trouble}" if made.fit.trouble else told
    return replace(made, fit=replace(made.fit, trouble=trouble))


def _fitted_layer(
    model: nn.Module, use: Use, work: tuple[LayerKernels, Target | None], moments: Moments
) -> _FittedLayer:
    """Return what becomes of one layer, on the device of its moments."""
    layer, target = work
    shifted = takes_shift(model, use)
    metric = moments.centred() if shifted else moments
    weights, fit = _solve(layer, target, metric)
    kernels = _kernels_in_place(layer, target, weights)
    written = kernels.double().reshape(weights.shape).to(moments.gram.device)
    tensors = _stored(model, layer, kernels)
    if shifted:
        tensors |= _shifted(model, use, written, moments)
    share = metric.error(written).sum() / metric.power.sum().clamp_min(1e-300)
    return _FittedLayer(tensors, replace(fit, output_error=float(share.sqrt())))


def _solve(layer: LayerKernels, target: Target | None, moments: Moments) -> tuple[Tensor, Fit]:
    """Return the fitted weights on the CPU, or the projected ones with the reason."""
    device = moments.gram.device
    original = layer_weights(layer)
    free = FilterConstraint(layer.kernels[0, 0].numel(), ())
    constraint = target.constraint(layer.kernels) if target else free
    try:
        there = original.to(device)
        if target is not None and target.fit is not None:
            return target.fit(there, moments).cpu(), Fit(None)
        solved = resolve(there, constraint.to(device), moments)
        if target is not None:
            solved = settle(solved, there, (target, layer), moments)
        return solved.weights.cpu(), Fit(None, solved.steps)
    except UnsolvableError as reason:
        instead = "only projected" if target else "left as it was"
        return _unfitted(layer, target, constraint), Fit(None, trouble=f"{reason}; {instead}")


def _unfitted(layer: LayerKernels, target: Target | None, constraint: FilterConstraint) -> Tensor:
    """Return the original weights as they are within what the layer must become."""
    original = layer_weights(layer)
    if target is not None and target.fit is not None:
        return target.nearest_kernels(layer.kernels).double().reshape(original.shape)
    meets = target.settled(layer.kernels) if target and target.settled else constraint
    return meets.place(original)


def layer_weights(layer: LayerKernels) -> Tensor:
    """Return the original weights (groups, filters, D) in float64."""
    return layer.kernels.detach().double().reshape(layer.groups, len(layer.kernels) // layer.groups, -1)


def _kernels_in_place(layer: LayerKernels, target: Target | None, weights: Tensor) -> Tensor:
    """Return new weights as kernels that are exactly in their structures in the stored dtype.

    A filter whose weights did not move beyond rounding keeps its bits.
    """
    kernels = weights.reshape(layer.kernels.shape).to(layer.kernels.dtype)
    still = torch.isclose(weights, layer_weights(layer), rtol=1e-12, atol=0).all(-1).reshape(-1)
    kernels[still] = layer.kernels[still]
    return target.write(kernels) if target else kernels


def _stored(model: nn.Module, layer: LayerKernels, kernels: Tensor) -> dict[str, Tensor]:
    """Return the layer's weight as its checkpoint has it, by its name."""
    weight: Any = conv_modules(model)[layer.name].weight
    value = stored_order(kernels, layer.kind, layer.groups, tuple(weight.shape))
    return {tensor_name(layer.name): value.detach().contiguous()}


def _store(state: _ReconstructionState, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into the network, and keep them as they are."""
    own = state.model.state_dict()
    for name, value in tensors.items():
        own[name].copy_(value)
    state.tensors.update(tensors)


def takes_shift(model: nn.Module, use: Use) -> bool:
    """Say whether a shift of the layer's mean output has somewhere to go: its bias or its batch norm."""
    module: Any = conv_modules(model)[use.name]
    if use.calls > 1:
        return False  # one bias for several places cannot mend each
    if module.bias is not None:
        return True
    norm: Any = dict(model.named_modules())[use.norm] if use.norm else None
    return norm is not None and norm.running_mean is not None


def _shifted(model: nn.Module, use: Use, weights: Tensor, moments: Moments) -> dict[str, Tensor]:
    """Return the bias, or the batch norm's running mean, that takes the change of the layer's mean output.

    b* = b + level - mean'w, `level` the mean output before; a running mean moves the other way.
    """
    change = ((weights @ moments.mean[:, :, None])[:, :, 0] - moments.level).reshape(-1)
    module: Any = conv_modules(model)[use.name]
    if module.bias is not None:
        name, target, change = f"{use.name}.bias" if use.name else "bias", module.bias, -change
    else:
        norm: Any = dict(model.named_modules())[str(use.norm)]
        name, target = f"{use.norm}.running_mean", norm.running_mean
    return {name: (target.detach() + change.to(target.device, target.dtype)).cpu()}


def in_float32(model: nn.Module) -> nn.Module:
    """Return a copy of the network that calculates in float32, in evaluation mode, with channels last."""
    made: Any = copy.deepcopy(model).float().eval()
    return made.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]
