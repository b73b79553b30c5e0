"""Whether the kernels of a network are still what its report says: bit for bit, structure by structure.

Kernels are canonical, (out, in / groups, *grid), by layer name; a kernel is named `layer[out,in]`. What is
compared are the stored bytes, so a checkpoint in another dtype is another network.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.error_text import printable
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.families import ZERO
from kernelsimp.kernels.structures import DENOISED, drawn_kernels, find
from kernelsimp.models.layers import bank_from_tensors, canonical, tensor_name
from kernelsimp.records.held import CRC_PER_KERNEL_UP_TO, decode_assignment, decode_shapes
from kernelsimp.records.limits import Baseline, BaselineLayer, baseline_of
from kernelsimp.records.report import Report
from kernelsimp.records.verdict import Finding

Bools = NDArray[np.bool_]
Choice = NDArray[np.int16]

MOST_NAMED = 8
"""Kernels named in a message; a finding lists up to `MOST_LISTED`."""
MOST_LISTED = 1000

FREE = "free"


@dataclass(frozen=True, eq=False)
class Held:
    """One layer as it is: its kernels, and the structure that the baseline gives each.

    `shapes` (out, in / groups, 4 or more) are the numbers by which kernels are drawn, where any are.
    """

    layer: BaselineLayer
    kernels: Tensor
    choice: Choice
    shapes: NDArray[np.float32] | None = None

    @property
    def bad(self) -> Bools:
        """Kernels (out, in / groups) that hold NaN or infinity."""
        finite = self.kernels.isfinite().flatten(2).all(dim=2)
        return np.asarray(~finite.numpy())


def verify_holds(
    source: Report | Baseline, kernels: KernelBank | Mapping[str, Tensor]
) -> tuple[Finding, ...]:
    """Return a finding for each layer and rule that the kernels break; none where all is as reported.

    Rules: `layers.changed` (missing, another shape), `kernels.nan`, `kernels.frozen_changed` (CRC-32 of
    the stored bytes) and `kernels.structure_broken`. Raises `KernelsimpError` where the report contradicts
    itself or describes another network.
    """
    baseline = baseline_of(source) if isinstance(source, Report) else source
    present = canonical_kernels(baseline, kernels)
    if baseline.layers and not any(layer.name in present for layer in baseline.layers):
        names = [printable(layer.name) for layer in baseline.layers]
        raise KernelsimpError(
            f"the baseline is of another network: none of its {len(names)} layers ({names[0]}...) is here; "
            "name the baseline that was made from this one"
        )
    findings: list[Finding] = []
    for layer in baseline.layers:
        findings += _layer_findings(baseline, layer, present.get(layer.name))
    return tuple(findings)


def verify_present(baseline: Baseline, kernels: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Yield what the layers that are there break; those that are not count for nothing."""
    for layer in baseline.layers:
        if layer.name in kernels:
            yield from _layer_findings(baseline, layer, kernels[layer.name])


def canonical_kernels(baseline: Baseline, kernels: KernelBank | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the kernels by layer name, turned as the baseline's kinds ask.

    A bank made from weights alone cannot tell a transposed convolution; the baseline can.
    """
    if not isinstance(kernels, KernelBank):
        return dict(kernels)
    kinds = {layer.name: layer for layer in baseline.layers}
    turned = {}
    for item in kernels.layers:
        known = kinds.get(item.name)
        mistaken = known is not None and known.kind == "transposed" and item.kind != "transposed"
        turned[item.name] = (
            canonical(item.kernels, known.kind, known.groups) if mistaken and known else item.kernels
        )
    return turned


def from_tensors(baseline: Baseline, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the baseline's layers from a state dict, canonical; layers that are not there are left out.

    A weight of another rank than reported stays as it is stored, for the shape check to name.
    """
    kernels = {}
    for layer in baseline.layers:
        weight = tensors.get(tensor_name(layer.name))
        if weight is not None:
            same = tuple(weight.shape) == layer.weight_shape
            kernels[layer.name] = canonical(weight, layer.kind, layer.groups) if same else weight
    return kernels


def spatial_layers(tensors: Mapping[str, Tensor]) -> tuple[LayerKernels, ...]:
    """Return the layers with kernels larger than 1x1 that the weights alone show."""
    try:
        return bank_from_tensors(tensors).spatial
    except KernelsimpError:  # weights alone do not show one-dimensional convolutions; the baseline does
        return ()


def held_layer(baseline: Baseline, layer: BaselineLayer, kernels: Tensor) -> Held:
    """Return the layer with its assignment; raises `KernelsimpError` where that is damaged."""
    rows, columns = canonical_shape(layer)[:2]
    try:
        choice = decode_assignment(layer.hold.assignment, (rows, columns))
    except ValueError as error:
        raise KernelsimpError(
            f"{printable(layer.name)}: the baseline's assignment is damaged ({error}); write the report again"
        ) from error
    if choice.size and not 0 <= int(choice.min()) <= int(choice.max()) < len(baseline.structures):
        raise KernelsimpError(
            f"{printable(layer.name)}: the baseline's assignment names structure {int(choice.max())} of "
            f"{len(baseline.structures)}; write the report again"
        )
    return Held(layer, kernels.detach().cpu(), choice, _shapes(baseline, layer, choice))


def _shapes(baseline: Baseline, layer: BaselineLayer, choice: Choice) -> NDArray[np.float32] | None:
    drawn, wide = drawn_kernels(choice, baseline.structures, canonical_shape(layer)[2:])
    if not drawn.any():
        return None
    shapes = np.zeros((*choice.shape, wide), np.float32)
    try:
        shapes[drawn] = decode_shapes(layer.hold.shapes, int(drawn.sum()), wide)
    except ValueError as error:
        raise KernelsimpError(
            f"{printable(layer.name)}: the numbers by which the baseline draws kernels are damaged "
            f"({error}); write the report again"
        ) from error
    return shapes


def canonical_shape(layer: BaselineLayer) -> tuple[int, ...]:
    """Return (out, in / groups, *grid) of a stored weight's shape; a 1-D grid is (1, k)."""
    first, second, *grid = layer.weight_shape
    if layer.kind == "transposed":
        first, second = second * layer.groups, first // layer.groups
    return (first, second, *([1, *grid] if len(grid) == 1 else grid))


def _layer_findings(baseline: Baseline, layer: BaselineLayer, kernels: Tensor | None) -> Iterator[Finding]:
    where, expected = printable(layer.name), canonical_shape(layer)
    if kernels is None:
        yield Finding("layers.changed", "error", where, 1, 0, f"{where}: the layer is missing")
        return
    if tuple(kernels.shape) != expected:
        message = f"{where}: kernels are {tuple(kernels.shape)}, the baseline has {expected}"
        yield Finding("layers.changed", "error", where, 1, 0, message)
        return
    held = held_layer(baseline, layer, kernels)
    bad = held.bad
    if bad.any():
        yield _finding("kernels.nan", held, bad, f"of {bad.size:,} kernels hold NaN or infinity")
    yield from _frozen_findings(held, frozen_kernels(held, baseline.structures))
    if baseline.held:
        broken = broken_kernels(held, baseline.structures) & ~bad
        if broken.any():
            what = f"of {broken.size:,} kernels have left their structure"
            yield _finding("kernels.structure_broken", held, broken, what)


def zeroed_layers(baseline: Baseline, kernels: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Yield a finding of `layers.zeroed` for each layer that is all zero and was not declared so."""
    for layer in baseline.layers:
        here = kernels.get(layer.name)
        if here is None or tuple(here.shape) != canonical_shape(layer) or bool((here != 0).any()):
            continue
        declared = held_layer(baseline, layer, here).choice
        names = {baseline.structures[int(index)] for index in np.unique(declared)}
        if names != {ZERO}:
            where = printable(layer.name)
            message = f"{where}: every one of {declared.size:,} kernels is zero"
            yield Finding("layers.zeroed", "error", where, 1, 0, message)


def broken_kernels(held: Held, structures: Sequence[str]) -> Bools:
    """Say for each kernel (out, in / groups) whether it has left the structure it was given."""
    broken = np.zeros(held.choice.shape, dtype=np.bool_)
    for index in np.unique(held.choice):
        name = structures[int(index)]
        if name != FREE:
            mask = held.choice == index
            shapes = None if held.shapes is None else held.shapes[mask]
            broken[mask] = ~_holds(name, held.kernels[torch.from_numpy(mask)], shapes).numpy()
    return broken


def _holds(name: str, kernels: Tensor, shapes: NDArray[np.float32] | None) -> Tensor:
    if name == ZERO:
        return (kernels == 0).flatten(1).all(dim=1)
    return find(name, tuple(kernels.shape[1:]), shapes).holds(kernels)


def frozen_kernels(held: Held, structures: Sequence[str]) -> Bools:
    """Say which kernels (out, in / groups) have checksums: every simplified one, or, tied, the denoised.

    A layer too large for one checksum a kernel does not tell the two apart by their number; its digest does.
    """
    sums = held.layer.hold.frozen_crc32
    every = held.choice != 0
    if not sums:
        return np.zeros_like(every)
    denoised = np.array([name.startswith(DENOISED) for name in structures], dtype=np.bool_)[held.choice]
    if held.choice.size > CRC_PER_KERNEL_UP_TO:
        matches = sha256(_rows(held, denoised).tobytes()).hexdigest() == held.layer.hold.sha256
        return denoised if denoised.any() and matches else every
    tied = denoised.any() and len(sums) == int(denoised.sum())
    return denoised if tied else every


def frozen_rows(held: Held, structures: Sequence[str]) -> NDArray[np.uint8]:
    """Return the stored bytes of the kernels that have checksums, a row each."""
    return _rows(held, frozen_kernels(held, structures))


def _rows(held: Held, mask: Bools) -> NDArray[np.uint8]:
    """Return the stored bytes of the kernels in `mask`, a row each."""
    stored = held.kernels.contiguous().view(torch.uint8).reshape(held.choice.size, -1).numpy()
    return np.asarray(stored[mask.reshape(-1)])


def _frozen_findings(held: Held, frozen: Bools) -> Iterator[Finding]:
    """Compare the checksums; a layer too large for one a kernel says only that it changed."""
    sums, where = held.layer.hold.frozen_crc32, printable(held.layer.name)
    if not sums:
        return
    rows = _rows(held, frozen)
    single = held.choice.size > CRC_PER_KERNEL_UP_TO
    if len(sums) != (1 if single else len(rows)):
        raise KernelsimpError(
            f"{where}: the baseline has {len(sums)} checksums for {len(rows)} frozen kernels; "
            "write the report again"
        )
    digest = sha256(rows.tobytes()).hexdigest()
    if digest == held.layer.hold.coded_sha256:
        return  # what the run's own coded file decodes to; structures are checked all the same
    same = digest == held.layer.hold.sha256
    moved = [] if single else [zlib.crc32(row) != crc for row, crc in zip(rows, sums, strict=True)]
    if any(moved):
        changed = np.zeros(held.choice.shape, dtype=np.bool_)
        changed[frozen] = moved
        hint = "; every one: a checkpoint of another run, or in another dtype?" if all(moved) else ""
        what = f"of {len(rows):,} frozen kernels changed"
        finding = _finding("kernels.frozen_changed", held, changed, what)
        yield replace(finding, message=finding.message + hint)
    elif not same:
        message = f"{where}: at least one of {len(rows):,} frozen kernels changed (SHA-256 differs)"
        yield Finding("kernels.frozen_changed", "error", where, 1, 0, message)


def _finding(rule: str, held: Held, mask: Bools, what: str) -> Finding:
    """Return the finding that the kernels in `mask` make; `what` goes on after their number."""
    where, count = printable(held.layer.name), int(mask.sum())
    names = tuple(f"{where}[{out},{into}]" for out, into in np.argwhere(mask)[:MOST_LISTED].tolist())
    more = f" and {count - MOST_NAMED:,} more" if count > MOST_NAMED else ""
    message = f"{where}: {count:,} {what}: {', '.join(names[:MOST_NAMED])}{more}"
    return Finding(rule, "error", where, count, 0, message, names)
