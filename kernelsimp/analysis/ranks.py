"""How many directions a weight or a layer's outputs really use.

The effective rank is exp(-sum p log p) with p the singular values as shares of their sum (Roy and Vetterli
2007): 1 for one direction, n for n equal ones. All sums are in float64.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernelsimp.records.audit import ActivationRank, WeightRank

POSITIONS = 64
"""Positions read of each map, drawn from the seed."""


def weight_rank(weight: Tensor) -> WeightRank:
    """Return the ranks of a weight (out, ...), unrolled to (out, everything else)."""
    rows = weight.detach().double().flatten(1)
    small = rows @ rows.mT if rows.shape[0] <= rows.shape[1] else rows.mT @ rows
    squares = torch.linalg.eigvalsh(small).clamp_min(0)
    largest = float(squares.max()) if squares.numel() else 0.0
    stable = float(squares.sum()) / largest if largest > 0 else 0.0
    return WeightRank(effective_rank(squares.sqrt()), stable, min(rows.shape))


def effective_rank(singular: Tensor) -> float:
    """Return exp of the entropy of singular values as shares of their sum; 0 where all are zero."""
    total = float(singular.sum())
    if total <= 0:
        return 0.0
    shares = singular / total
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


@dataclass
class _RankSums:
    """Running sums over rows of one layer's outputs."""

    rows: int = 0
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        wide = rows.detach().cpu().double()
        self.rows += len(wide)
        self.first = self.first + wide.sum(0)
        self.second = self.second + wide.mT @ wide

    def rank(self) -> ActivationRank:
        mean = torch.as_tensor(self.first) / self.rows
        covariance = torch.as_tensor(self.second) / self.rows - mean[:, None] * mean
        singular = torch.linalg.eigvalsh(covariance).clamp_min(0).sqrt()
        return ActivationRank(effective_rank(singular), mean_correlation(covariance), len(mean), self.rows)


def mean_correlation(covariance: Tensor) -> float | None:
    """Return the mean |r| over pairs of channels that vary; None with fewer than two."""
    variance = covariance.diagonal()
    alive = variance > 1e-12 * variance.max().clamp_min(1e-300)
    if int(alive.sum()) < 2:
        return None
    part, scale = covariance[alive][:, alive], variance[alive].sqrt()
    correlation = (part / (scale[:, None] * scale)).abs()
    count = len(scale)
    return float((correlation.sum() - count) / (count * (count - 1)))


def activation_ranks(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Tensor], seed: int = 0
) -> dict[str, ActivationRank]:
    """Return the ranks of what each of `layers` puts out on batches of the network's input.

    The network is in evaluation mode, on the device of the batches.
    """
    sums: dict[str, _RankSums] = {}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), _listen_to_layers(layers, sums, generator):
        for images in batches:
            model(images)
    return {name: total.rank() for name, total in sums.items()}


@contextmanager
def _listen_to_layers(
    layers: Mapping[str, nn.Module], sums: dict[str, _RankSums], generator: torch.Generator
) -> Iterator[None]:
    def listen(name: str, module: nn.Module) -> "torch.utils.hooks.RemovableHandle":
        def keep(_: nn.Module, __: object, output: Tensor) -> None:
            linear = isinstance(module, nn.Linear)
            rows = output.reshape(-1, output.shape[-1]) if linear else _rows(output, generator)
            sums.setdefault(name, _RankSums()).add(rows)

        return module.register_forward_hook(keep)

    handles = [listen(name, module) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(output: Tensor, generator: torch.Generator) -> Tensor:
    """Return (images * positions, channels) of some positions of maps (images, channels, *sides)."""
    flat = output.flatten(2)
    if flat.shape[2] > POSITIONS:
        places = torch.randperm(flat.shape[2], generator=generator)[:POSITIONS]
        flat = flat[:, :, places.to(flat.device)]
    return flat.transpose(1, 2).reshape(-1, flat.shape[1])
