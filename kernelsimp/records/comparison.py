"""Two networks compared on the same images; the field names are the keys of `compare --json`.

A measure that is not defined for a pair of layers is null. Additions are free; renaming a field or
changing its meaning raises the schema number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = "kernelsimp.compare/1"


@dataclass(frozen=True)
class LayerSimilarity:
    """One layer of A beside one of B: `n` samples of `columns` (p of A, q of B) numbers each.

    `samples` says what a sample is: a position of an image, or an image. 1 is alike for cka, cca, svcca,
    pwcca and nbs; `procrustes` is 2 (1 - nbs), `angular` arccos(nbs) in radians, both 0 where alike.
    `pwcca` weighs the directions by A's layer, `pwcca_b` by B's. The aligned measures compare column with
    column: `relative_error` is ||Y - X|| / ||X||, `channel_correlation` the mean over columns and
    `channel_correlation_lowest` their minimum. `weight_error` is ||Wb - Wa|| / ||Wa||.
    """

    a: str
    b: str
    n: int
    samples: str
    columns: tuple[int, int]
    cka: float | None = None
    cka_debiased: float | None = None
    cka_minibatch: float | None = None
    cka_rbf: float | None = None
    cka_rbf_debiased: float | None = None
    cca: float | None = None
    svcca: float | None = None
    pwcca: float | None = None
    pwcca_b: float | None = None
    nbs: float | None = None
    procrustes: float | None = None
    angular: float | None = None
    relative_error: float | None = None
    channel_correlation: float | None = None
    channel_correlation_lowest: float | None = None
    weight_error: float | None = None


@dataclass(frozen=True)
class Predictions:
    """The answers of two classifiers: the share of images with the same one, 0..1, and the mean KL(A || B).

    `kl` is in nats. Both are null where the outputs are not class scores of as many classes.
    """

    agreement: float | None = None
    kl: float | None = None
    classes: int | None = None


@dataclass(frozen=True)
class Matrix:
    """All layers of A (rows) against all of B (columns), by measure, with the same sort of sample throughout.

    Where grids differ a sample is an image, its activations averaged over positions.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Mapping[str, tuple[tuple[float | None, ...], ...]]
    samples: str = "images"


@dataclass(frozen=True)
class Comparison:
    """Two networks, layer by layer. `sampling` is the rule by which samples were taken, in words."""

    layers: tuple[LayerSimilarity, ...]
    predictions: Predictions
    images: int
    by: str
    sampling: str
    matrix: Matrix | None = None
    notes: tuple[str, ...] = ()
    a: Mapping[str, Any] = field(default_factory=dict)
    b: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema: str = SCHEMA
