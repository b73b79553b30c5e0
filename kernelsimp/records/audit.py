"""What a network's layers cost, as plain data; the field names are the keys of `audit --json`.

A MAC is one multiplication with its addition, for one image. Weights are counted without biases.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA = "kernelsimp.audit/1"


@dataclass(frozen=True)
class Alternative:
    """What a cheaper layer would cost in this one's place.

    Ratios are this layer's cost over the alternative's: above 1 the alternative is cheaper. MACs are null
    where the size of the maps is unknown.
    """

    name: str
    weights: int
    macs: int | None
    weight_ratio: float
    mac_ratio: float | None


@dataclass(frozen=True)
class WeightRank:
    """Of the weight unrolled to (out, in / groups * cells), whose rank is `full` at most.

    `effective` is exp of the entropy of the singular values as shares of their sum (Roy and Vetterli 2007),
    `stable` the sum of their squares over the largest square.
    """

    effective: float
    stable: float
    full: int


@dataclass(frozen=True)
class ActivationRank:
    """Of a layer's outputs before the next operation: channels as columns, positions of images as rows.

    `effective` is as for weights, of the centred rows; `correlation` the mean |r| of pairs of channels,
    null with fewer than two that vary; `full` counts channels.
    """

    effective: float
    correlation: float | None
    full: int
    rows: int


@dataclass(frozen=True)
class LayerAudit:
    """One layer. `parameters` counts weights and biases; shares are of the whole network, 0..1.

    `patch` is cells * in / groups, the numbers that one filter sees; `expansion` is out / groups over it:
    above 1 the layer widens its patch, below it narrows. Sizes, MACs and the receptive field (pixels of the
    input) are null where they are unknown.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    groups: int
    parameters: int
    parameter_share: float
    macs: int | None
    mac_share: float | None
    size_in: tuple[int, ...] | None
    size_out: tuple[int, ...] | None
    patch: int
    expansion: float
    weight_rank: WeightRank
    activations: ActivationRank | None
    receptive_field: tuple[int, ...] | None
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True)
class Totals:
    """The whole network; MACs are of everything that multiplies, also what is no layer here."""

    layers: int
    parameters: int
    macs: int | None


@dataclass(frozen=True)
class Audit:
    """Every convolution, and every linear layer where the architecture is known."""

    source: Mapping[str, Any]
    input_shape: tuple[int, ...] | None
    totals: Totals
    layers: tuple[LayerAudit, ...]
    notes: tuple[str, ...] = ()
    schema: str = SCHEMA
