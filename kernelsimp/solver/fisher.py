"""One pass over calibration images that says what a kernel's error costs, before anything is changed.

Per layer: H_jj, the second moment of the windows of input channel j, (in, cells, cells), and g_o, how much
the loss minds output channel o, (out,). Both are means over images; g is summed over positions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves

from kernelsimp.errors import DamagedError, KernelsimpError
from kernelsimp.evaluation.outputs import class_scores
from kernelsimp.files import read_sealed, write_sealed
from kernelsimp.models.hooks import Observed, Trace, observe_convolutions
from kernelsimp.solver.moments import WindowSampling, rows_of, sampling_for, windows
from kernelsimp.watch import SILENT, Watcher


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """One layer: `blocks` (in, cells, cells) and `fisher` (out,), float64 on the CPU."""

    blocks: Tensor
    fisher: Tensor


def survey(
    model: nn.Module, traced: Trace, images: Sequence[Tensor], seed: int, watcher: Watcher = SILENT
) -> Mapping[str, Sensitivity]:
    """Return the sensitivity of every convolution larger than 1x1 that the images reach.

    L is the cross-entropy against a label drawn from the model's own output (the Fisher information);
    a network whose output is not (n, classes) gets Gaussian noise on its output in place of that.
    """
    count = sum(len(batch) for batch in images)
    sums: dict[str, _Sum] = {use.name: _Sum(sampling_for(use, 1, count, seed)) for use in traced.uses}
    generator = torch.Generator().manual_seed(seed)
    watcher.start("measuring what each layer sees", len(images))
    heard = True
    with observe_convolutions(model) as seen, torch.enable_grad():
        for batch, inputs in enumerate(images):
            loss = _loss(model(inputs.clone().requires_grad_()), generator)
            heard = heard and _backward(loss)
            for name, calls in seen.items():
                if any(side > 1 for side in calls[0].call[0].kernel_size):  # type: ignore[union-attr]
                    sums[name].add(calls, batch)
            seen.clear()
            model.zero_grad(set_to_none=True)
            watcher.step()
    if not heard:
        watcher.warn("this network gives no gradients: every output channel counts alike")
    return {name: item.result(count if heard else None) for name, item in sums.items() if item.rows}


def cached_survey(
    path: Path | None, make: Callable[[], Mapping[str, Sensitivity]], watcher: Watcher = SILENT
) -> Mapping[str, Sensitivity]:
    """Return the survey kept in the file `path`, or make it and keep it there; say which was done.

    The file's name must tell network, images and seed apart. A file that cannot be read is made again.
    """
    if path is None:
        return make()
    try:
        kept = load(read_sealed(path))
        read = {name: Sensitivity(kept[f"{name}/blocks"], kept[f"{name}/fisher"]) for name in _names(kept)}
        watcher.note(f"what each layer sees was measured before: read from {path}")
        return read
    except (OSError, DamagedError, SafetensorError, KeyError) as error:
        if path.exists():
            watcher.warn(f"{path}: cannot be used ({type(error).__name__}); measured again")
        found = make()
    arrays = {f"{name}/blocks": item.blocks.contiguous() for name, item in found.items()}
    arrays |= {f"{name}/fisher": item.fisher.contiguous() for name, item in found.items()}
    write_sealed(path, lambda partial: save_file(arrays, partial))
    return found


def _names(kept: Mapping[str, Tensor]) -> list[str]:
    return [key.removesuffix("/blocks") for key in kept if key.endswith("/blocks")]


def _backward(loss: Tensor) -> bool:
    """Run the backward pass; say whether there was one (a network may detach, round or work in place)."""
    try:
        torch.autograd.backward(loss)
    except torch.OutOfMemoryError as error:
        raise KernelsimpError("the device ran out of memory in a backward pass; use --device cpu") from error
    except RuntimeError:
        return False
    return True


def _loss(output: object, generator: torch.Generator) -> Tensor:
    """Return a scalar whose gradient's second moment is the Fisher information of the output."""
    tensors, scores = output_tensors(output), class_scores(output)
    if scores is not None:
        logits = scores.float()
        labels = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=generator)[:, 0]
        return cross_entropy(logits, labels.to(logits.device), reduction="sum")
    noise = [torch.randn(item.shape, generator=generator).to(item.device) for item in tensors]
    return torch.stack([(item.float() * eps).sum() for item, eps in zip(tensors, noise, strict=True)]).sum()


def output_tensors(output: object) -> list[Tensor]:
    """Return the real tensors of whatever a network returns, in order."""
    return [item for item in tree_leaves(output) if isinstance(item, Tensor) and item.is_floating_point()]


class _Sum:
    """Running sums of one layer."""

    def __init__(self, sampling: WindowSampling) -> None:
        self.sampling = sampling
        self.blocks: Tensor | None = None
        self.fisher: Tensor | None = None
        self.rows = 0

    def add(self, calls: Sequence[Observed], batch: int) -> None:
        for number, observed in enumerate(calls):
            blocks, rows = _blocks(observed, self.sampling, batch * 101 + number)
            gradient = observed.output.grad
            fisher = torch.zeros(observed.output.shape[1], dtype=torch.float64)
            if gradient is not None:
                fisher = gradient.double().square().transpose(0, 1).flatten(1).sum(1).cpu()
            self.blocks = blocks if self.blocks is None else self.blocks + blocks
            self.fisher = fisher if self.fisher is None else self.fisher + fisher
            self.rows += rows

    def result(self, images: int | None) -> Sensitivity:
        assert self.blocks is not None
        assert self.fisher is not None
        fisher = self.fisher / images if images else torch.ones_like(self.fisher)
        return Sensitivity(self.blocks / self.rows, fisher)


@torch.no_grad()
def _blocks(observed: Observed, sampling: WindowSampling, batch: int) -> tuple[Tensor, int]:
    """Return the sum of x_j x_j' over the sampled windows, (in, cells, cells), and their number."""
    view = windows(observed.call)
    grid = observed.call[0].kernel_size
    positions = math.prod(view.shape[2 : 2 + len(grid)])  # type: ignore[arg-type]
    image, place = sampling.places(view.shape[0], positions, batch)
    rows = rows_of(observed.call, image, place)  # (groups, rows, D)
    cells = math.prod(view.shape[-len(grid) :])  # type: ignore[arg-type]
    split = rows.transpose(0, 1).reshape(len(image), -1, cells).transpose(0, 1)
    return (split.mT @ split).double().cpu(), len(image)
