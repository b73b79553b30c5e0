"""What is wrong with a state dict beside its kernels: tensors gone, new, of another form, or no numbers.

One finding a sort of change, so that a lost head or a foreign wrapper is a line and not a page.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kernelsimp.error_text import printable
from kernelsimp.models.digest import describe_tensors
from kernelsimp.models.layers import tensor_name
from kernelsimp.records.limits import Baseline
from kernelsimp.records.verdict import Finding

COUNTER = "num_batches_tracked"
"""What a batch norm counts; old files lack it and nothing depends on it."""

MOST_NAMED = 5


def changed_tensors(
    baseline: Baseline, tensors: Mapping[str, Tensor], kernels: set[str]
) -> Iterator[Finding]:
    """Yield findings of `layers.changed` about tensors that are missing or of another form.

    None where the baseline does not name its tensors. `kernels` are the names of kernels larger than 1x1 in
    either: that one is missing, new or of another shape is said elsewhere, so of them only the dtype counts.
    """
    known, here = _without_counters(baseline.tensors), _without_counters(describe_tensors(tensors))
    yield from _finding([name for name in known if name not in here and name not in kernels], "is missing")
    both = [name for name in known if name in here and known[name] != here[name]]
    retyped: dict[str, list[str]] = {}
    for name in both:
        (shape, dtype), (old_shape, old_dtype) = here[name].split(), known[name].split()
        if shape == old_shape:
            retyped.setdefault(f"of {dtype}, in the baseline of {old_dtype}", []).append(name)
        elif name not in kernels:
            yield from _finding([name], f"is {here[name]}, in the baseline {known[name]}")
    for what, names in retyped.items():
        yield from _finding(names, f"is {what}")


def added_tensors(baseline: Baseline, tensors: Mapping[str, Tensor], kernels: set[str]) -> Iterator[Finding]:
    """Yield a finding about the tensors that the baseline does not name, where it names any; as above."""
    known = _without_counters(baseline.tensors)
    added = [
        name
        for name in _without_counters(describe_tensors(tensors))
        if name not in known and name not in kernels
    ]
    yield from _finding(added if known else [], "is not in the baseline")


def _without_counters(words: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in words.items() if not name.endswith(COUNTER)}


def broken_tensors(baseline: Baseline, tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Yield a finding of `weights.nan` for each tensor that is no kernel of the baseline and holds NaN.

    Infinity counts where it is positive: masks are made of the other.
    """
    kernels = {tensor_name(layer.name) for layer in baseline.layers}
    for name, tensor in tensors.items():
        if name in kernels or not tensor.is_floating_point() or tensor.layout != torch.strided:
            continue
        bad = int((tensor.isnan() | tensor.isposinf()).sum())
        if bad:
            where = printable(name)
            message = f"{where}: {bad:,} of {tensor.numel():,} numbers are NaN or infinity"
            yield Finding("weights.nan", "error", where, 1, 0, message)


def _finding(names: list[str], what: str) -> Iterator[Finding]:
    if not names:
        return
    listed = ", ".join(map(printable, names[:MOST_NAMED]))
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    message = f"{listed}: the tensor {what}"
    if len(names) > 1:
        message = f"{listed}{more}: {len(names):,} tensors {what.replace('is', 'are', 1)}"
    yield Finding("layers.changed", "error", printable(names[0]), len(names), 0, message)
