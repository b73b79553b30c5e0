"""What a file holds outside the network under check: a gate that reads one state dict must not pass another.

A tensor there is covered where it is a copy, bit for bit, of what was checked, or as the baseline has it.
What training leaves (optimisers, counters, random states) is no network and only named. All else is a
finding of `tensors.extra`; where it is a second copy of the network, what its kernels hold is checked too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernelsimp.error_text import printable
from kernelsimp.gate.kernels import from_tensors, verify_present, zeroed_layers
from kernelsimp.models.contents import Beside
from kernelsimp.models.layers import tensor_name
from kernelsimp.records.limits import Baseline
from kernelsimp.records.verdict import Finding

EXTRA = "tensors.extra"

MOST_NAMED = 5

TWIN = 0.5
"""Share of the baseline's layers from which tensors under one prefix count as a second network."""


@dataclass(frozen=True, eq=False)
class Outside:
    """The tensors outside the network, by place: `uncovered` may be loaded by somebody, `training` is not."""

    uncovered: dict[str, Tensor]
    training: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()


def sort_outside(baseline: Baseline, checked: Mapping[str, Tensor], others: Mapping[str, Beside]) -> Outside:
    """Sort the tensors beside the network `checked`."""
    named = {tensor_name(layer.name) for layer in baseline.layers}
    uncovered, training, copies = {}, [], []
    for place, item in others.items():
        twin = next((name for name in _tails(place) if name in checked), None)
        if twin is not None and _same(checked[twin], item.tensor):
            copies.append(place)
        elif baseline.beside.get(place) == item.words:
            continue
        elif not named.intersection(_tails(place)) and (item.training or not _weighs(item.tensor)):
            training.append(place)
        else:
            uncovered[place] = item.tensor
    return Outside(uncovered, tuple(training), tuple(copies))


def twin_findings(baseline: Baseline, tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Yield what second networks among `tensors` break of what the baseline has the network hold."""
    for prefix, inner in _twins(baseline, tensors).items():
        kernels = from_tensors(baseline, inner)
        found = (*verify_present(baseline, kernels), *zeroed_layers(baseline, kernels))
        yield from (_at(prefix, finding) for finding in found)


def extra_findings(baseline: Baseline, uncovered: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Yield a finding for each second network, and one for all other tensors outside the network."""
    alone = dict(uncovered)
    for prefix, tensors in _twins(baseline, uncovered).items():
        where = printable(prefix.removesuffix(".")) or "the top level"
        alone = {place: item for place, item in alone.items() if place.removeprefix(prefix) not in tensors}
        message = (
            f"{where}: a second network of {len(tensors):,} tensors that differs from the one checked, and "
            "nobody knows which is loaded; save one, or pass --allow-extra"
        )
        yield Finding(EXTRA, "error", where, len(tensors), 0, message)
    if alone:
        what = "is not" if len(alone) == 1 else f"are {len(alone):,} tensors, not"
        message = (
            f"{name_places(tuple(alone))}: {what} in the baseline and not checked; save the network alone, "
            "or pass --allow-extra"
        )
        yield Finding(EXTRA, "error", printable(next(iter(alone))), len(alone), 0, message)


def notes_outside(found: Outside, *, allow: bool) -> tuple[str, ...]:
    """Name what was passed over, and why."""
    kinds = (
        (found.copies, "the same bit for bit as what was checked"),
        (found.training, "unchecked, as left by training and no weights"),
        (tuple(found.uncovered) if allow else (), "unchecked, as --allow-extra asks"),
    )
    return tuple(f"{name_places(places)}: {why}" for places, why in kinds if places)


def name_places(places: Sequence[str]) -> str:
    """Name places by what stands in them, a few in all."""
    parents = list(dict.fromkeys(printable(place.rpartition(".")[0] or place) for place in places))
    more = f" and {len(parents) - MOST_NAMED:,} more" if len(parents) > MOST_NAMED else ""
    return f"{', '.join(parents[:MOST_NAMED])}{more}"


def _twins(baseline: Baseline, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return, by prefix, the tensors that carry the names and shapes of enough of the baseline's layers."""
    shapes = {tensor_name(layer.name): layer.weight_shape for layer in baseline.layers}
    counts: dict[str, int] = {}
    for place, tensor in tensors.items():
        name = next((tail for tail in _tails(place) if tail in shapes), None)
        if name is not None and tuple(tensor.shape) == shapes[name]:
            prefix = place.removesuffix(name)
            counts[prefix] = counts.get(prefix, 0) + 1
    prefixes = [prefix for prefix, count in counts.items() if count >= TWIN * len(shapes)]
    return {
        prefix: {
            place.removeprefix(prefix): item for place, item in tensors.items() if place.startswith(prefix)
        }
        for prefix in prefixes
    }


def _tails(place: str) -> Iterator[str]:
    """Yield a dotted place, then without its first part, without two, and so on."""
    while place:
        yield place
        place = place.partition(".")[2]


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.layout != other.layout:
        return False
    if one.layout != torch.strided:
        return False
    bits = (item.detach().contiguous().reshape(-1).view(torch.uint8) for item in (one, other))
    return torch.equal(*bits)


def _weighs(tensor: Tensor) -> bool:
    """Say whether a tensor could be weights: real numbers, more than one."""
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() > 1


def _at(prefix: str, finding: Finding) -> Finding:
    where = printable(prefix)
    kernels = tuple(where + name for name in finding.kernels)
    return replace(finding, where=where + finding.where, message=where + finding.message, kernels=kernels)
