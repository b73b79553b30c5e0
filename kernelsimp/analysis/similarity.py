"""How alike two sets of activations are: matrices X (n, p) and Y (n, q) of the same n samples.

Columns are centred here; everything is computed in float64. One singular value decomposition a layer and
one product U'V a pair serve every measure of whole subspaces; kernels of samples serve the rest. A measure
is one row of `MEASURES`; it answers None where it is not defined.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import acos, isfinite, sqrt

import torch
from torch import Tensor

SVCCA_VARIANCE = 0.99
"""The share of variance that SVCCA keeps of each side."""
MINIBATCH = 128
"""Samples in each batch of minibatch CKA."""
RBF_SAMPLES = 1024
"""Kernels of distances are n x n: they see the first so many samples."""
RBF_WIDTH = 0.8
"""The width of the Gaussian kernel, in median distances."""
ROUNDING = 64
"""Directions smaller than so many units of rounding of the largest are noise, and dropped."""
FEWEST = 4
"""Samples without which the debiased estimate does not exist."""


class Features:
    """One layer's samples (n, p), with what the measures need of them computed once."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.n, self.p = rows.shape
        self.eps = torch.finfo(rows.dtype).eps

    @property
    def centred(self) -> Tensor:
        """Return X less its column means, float64."""
        wide = self.rows.double()
        return wide - wide.mean(0)

    @cached_property
    def defect(self) -> str:
        """Say what makes the similarity of this layer undefined; nothing where all is well."""
        size = float(self.rows.double().norm())
        if not isfinite(size):
            return "holds NaN or Inf"
        return "is constant" if float(self.centred.norm()) <= self.eps * size else ""

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor]:
        """Return U (n, r) and the singular values (r,) of the centred matrix, without its null space."""
        centred = self.centred
        if self.p <= self.n:
            basis, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
            least = ROUNDING * self.eps
        else:  # through X X', whose rounding is the square root of the one above
            squares, basis = torch.linalg.eigh(centred @ centred.T)
            basis, sizes = basis.flip(1), squares.flip(0).clamp_min(0).sqrt()
            least = max(ROUNDING * self.eps, sqrt(ROUNDING * torch.finfo(torch.float64).eps))
        rank = int((sizes > least * sizes[0]).sum())
        return basis[:, :rank], sizes[:rank]

    @property
    def basis(self) -> Tensor:
        """The left singular vectors (n, r): an orthonormal basis of what the columns span."""
        return self._decomposed[0]

    @property
    def sizes(self) -> Tensor:
        """The singular values (r,), largest first."""
        return self._decomposed[1]

    @cached_property
    def loadings(self) -> Tensor:
        """U'X (r, p)."""
        return self.basis.T @ self.centred

    @cached_property
    def energies(self) -> Tensor:
        """The squared norm of each centred sample (n,): the diagonal of the linear kernel."""
        return self.centred.square().sum(1)

    @property
    def kept(self) -> int:
        """How many directions hold `SVCCA_VARIANCE` of the variance."""
        shares = self.sizes.square().cumsum(0) / self.sizes.square().sum()
        return int((shares < SVCCA_VARIANCE - 1e-12).sum()) + 1

    @cached_property
    def batch_kernels(self) -> Tensor:
        """The centred linear kernel of each minibatch (batches, s, s); samples left over are not used."""
        side = min(MINIBATCH, self.n)
        count = self.n // side
        batches = self.rows[: count * side].double().reshape(count, side, self.p)
        batches = batches - batches.mean(1, keepdim=True)
        return batches @ batches.transpose(1, 2)

    @cached_property
    def rbf_kernel(self) -> Tensor | None:
        """The centred Gaussian kernel of the first samples; None where their median distance is zero.

        exp(-d^2 / 2 sigma^2), sigma = `RBF_WIDTH` times the median distance.
        """
        rows = self.centred[:RBF_SAMPLES]
        distances = torch.cdist(rows, rows)
        above = torch.triu_indices(len(rows), len(rows), 1)
        sigma = RBF_WIDTH * float(distances[above[0], above[1]].quantile(0.5))
        if not sigma > 0:
            return None
        kernel = torch.exp(-distances.fill_diagonal_(0).square() / (2 * sigma**2))
        kernel -= kernel.mean(0)
        return kernel - kernel.mean(1, keepdim=True)


class ActivationPair:
    """Two layers on the same samples. `aligned`: column j of one stands for column j of the other.

    `force` computes the correlations of subspaces also where there are too few samples for them.
    """

    def __init__(self, a: Features, b: Features, *, aligned: bool = False, force: bool = False) -> None:
        if a.n != b.n:
            raise ValueError(f"{a.n} samples against {b.n}; expected the same samples")
        self.a, self.b, self.n = a, b, a.n
        self.aligned = aligned and a.p == b.p
        self.force = force

    @cached_property
    def overlap(self) -> Tensor:
        """U'V (r, s): the cosines between the bases."""
        return self.a.basis.T @ self.b.basis

    @cached_property
    def shared(self) -> Tensor:
        """X'Y up to rotations of both: its singular values are the same."""
        return self.a.sizes[:, None] * self.overlap * self.b.sizes

    @cached_property
    def canonical(self) -> tuple[Tensor, Tensor, Tensor]:
        """The canonical directions in A's basis (r, c), the correlations (c,), those in B's basis (s, c)."""
        left, correlations, right = torch.linalg.svd(self.overlap, full_matrices=False)
        return left, correlations.clamp(0, 1), right.T

    def enough(self, columns: int) -> bool:
        """Say whether correlations between subspaces of so many columns together mean anything."""
        return self.force or self.n > columns


def hsic1(inner: Tensor, d: Tensor, e: Tensor) -> Tensor:
    """Return the unbiased HSIC of two centred kernels from <K, L> and their diagonals (..., n).

    HSIC_1 of Song et al. 2012 is the same for K as for HKH; for centred kernels K1 = 0, and with the
    diagonals d, e taken out it becomes
    [<K, L> - d'e + (1'd)(1'e) / ((n-1)(n-2)) - 2 d'e / (n-2)] / (n (n-3)).
    """
    n = d.shape[-1]
    both = (d * e).sum(-1)
    sums = d.sum(-1) * e.sum(-1) / ((n - 1) * (n - 2))
    result: Tensor = (inner - both + sums - 2 * both / (n - 2)) / (n * (n - 3))
    return result


def _ratio(cross: Tensor, a: Tensor, b: Tensor) -> float | None:
    """Return cross / sqrt(a b); None where an estimate of a square is not positive."""
    if not (float(a) > 0 and float(b) > 0):
        return None
    return float(cross) / sqrt(float(a) * float(b))


def cka(pair: ActivationPair) -> float | None:
    """Return linear CKA, ||X'Y||^2 / (||X'X|| ||Y'Y||) (Kornblith et al. 2019)."""
    powers = (side.sizes.pow(4).sum() for side in (pair.a, pair.b))
    return _ratio(pair.shared.square().sum(), *powers)


def cka_debiased(pair: ActivationPair) -> float | None:
    """Return linear CKA of unbiased estimates: 0 in the mean for independent samples, however few."""
    if pair.n < FEWEST:
        return None
    d, e = pair.a.energies, pair.b.energies
    own = [hsic1(side.sizes.pow(4).sum(), side.energies, side.energies) for side in (pair.a, pair.b)]
    return _ratio(hsic1(pair.shared.square().sum(), d, e), *own)


def cka_minibatch(pair: ActivationPair) -> float | None:
    """Return linear CKA from batches: the three unbiased HSICs are averaged, then divided (Nguyen 2021)."""
    if pair.n < FEWEST:
        return None
    k, m = pair.a.batch_kernels, pair.b.batch_kernels
    return _ratio(_batch_hsic(k, m), _batch_hsic(k, k), _batch_hsic(m, m))


def _batch_hsic(k: Tensor, m: Tensor) -> Tensor:
    inner = (k * m).sum((1, 2))
    return hsic1(inner, k.diagonal(dim1=1, dim2=2), m.diagonal(dim1=1, dim2=2)).mean()


def cka_rbf(pair: ActivationPair) -> float | None:
    """Return CKA with Gaussian kernels as wide as 0.8 median distances."""
    k, m = pair.a.rbf_kernel, pair.b.rbf_kernel
    if k is None or m is None:
        return None
    return _ratio((k * m).sum(), k.square().sum(), m.square().sum())


def cka_rbf_debiased(pair: ActivationPair) -> float | None:
    """Return the same of unbiased estimates."""
    k, m = pair.a.rbf_kernel, pair.b.rbf_kernel
    if k is None or m is None or pair.n < FEWEST:
        return None
    return _ratio(_batch_hsic(k[None], m[None]), _batch_hsic(k[None], k[None]), _batch_hsic(m[None], m[None]))


def cca(pair: ActivationPair) -> float | None:
    """Return the mean canonical correlation; None for n <= p + q, where chance alone gives nearly 1.

    Over as many directions as the layer of lower rank has.
    """
    if not pair.enough(pair.a.p + pair.b.p):
        return None
    return float(pair.canonical[1].mean())


def svcca(pair: ActivationPair) -> float | None:
    """Return the mean canonical correlation of the directions that hold 99 % of each side's variance.

    Raghu et al. 2017. None where the samples are not more than those directions together.
    """
    p, q = pair.a.kept, pair.b.kept
    if not pair.enough(p + q):
        return None
    return float(torch.linalg.svdvals(pair.overlap[:p, :q]).clamp(0, 1).mean())


def pwcca(pair: ActivationPair) -> float | None:
    """Return the canonical correlations weighted by how much of A's columns each direction carries.

    Weights sum_j |<h_i, x_j>| over A's columns, h_i the directions in A's span (Morcos et al. 2018).
    """
    directions, correlations, _ = pair.canonical
    return _weight_correlations(pair, pair.a, directions, correlations)


def pwcca_b(pair: ActivationPair) -> float | None:
    """Return the same weighted by B's columns."""
    _, correlations, directions = pair.canonical
    return _weight_correlations(pair, pair.b, directions, correlations)


def _weight_correlations(
    pair: ActivationPair, side: Features, directions: Tensor, correlations: Tensor
) -> float | None:
    if not pair.enough(pair.a.p + pair.b.p):
        return None
    weights = (directions.T @ side.loadings).abs().sum(1)
    return float((weights * correlations).sum() / weights.sum())


def nbs(pair: ActivationPair) -> float:
    """Return the normalised Bures similarity, ||X'Y||_* / (||X||_F ||Y||_F); 1 but for rounding is 1."""
    total = float(torch.linalg.svdvals(pair.shared).sum())
    share = total / (float(pair.a.sizes.norm()) * float(pair.b.sizes.norm()))
    return 1.0 if share > 1 - ROUNDING * torch.finfo(torch.float64).eps else share


def procrustes(pair: ActivationPair) -> float:
    """Return the squared distance left by the best rotation, both scaled to norm 1: 2 (1 - NBS)."""
    return 2 * (1 - nbs(pair))


def angular(pair: ActivationPair) -> float:
    """Return the angle left by the best rotation, arccos NBS, in radians (Williams et al. 2021)."""
    return acos(nbs(pair))


def relative_error(pair: ActivationPair) -> float | None:
    """Return ||Y - X|| / ||X|| of the samples as they are, not centred; None where X is zero."""
    x = pair.a.rows.double()
    size = float(x.norm())
    return float((pair.b.rows.double() - x).norm()) / size if size else None


def channel_correlation(pair: ActivationPair) -> float | None:
    """Return the mean over columns of the correlation of a column with its namesake."""
    correlations = _correlations(pair)
    return float(correlations.mean()) if len(correlations) else None


def channel_correlation_lowest(pair: ActivationPair) -> float | None:
    """Return the lowest of them."""
    correlations = _correlations(pair)
    return float(correlations.min()) if len(correlations) else None


def _correlations(pair: ActivationPair) -> Tensor:
    """Return the correlations of the columns that are constant in neither layer."""
    x, y = pair.a.centred, pair.b.centred
    size, other = x.norm(dim=0), y.norm(dim=0)
    live = (size > pair.a.rows.double().norm(dim=0) * pair.a.eps) & (
        other > pair.b.rows.double().norm(dim=0) * pair.b.eps
    )
    correlations: Tensor = (x * y).sum(0)[live] / (size * other)[live]
    return correlations


@dataclass(frozen=True)
class SimilarityMeasure:
    """One row: `value` of a pair. `aligned` ones need columns that stand for each other.

    `correlates`: needs more samples than the two layers have columns.
    """

    meaning: str
    value: Callable[[ActivationPair], float | None]
    aligned: bool = False
    correlates: bool = False


MEASURES: Mapping[str, SimilarityMeasure] = {
    "cka": SimilarityMeasure("linear CKA", cka),
    "cka_debiased": SimilarityMeasure("linear CKA, debiased", cka_debiased),
    "cka_minibatch": SimilarityMeasure(f"linear CKA in batches of {MINIBATCH}, debiased", cka_minibatch),
    "cka_rbf": SimilarityMeasure("CKA of Gaussian kernels", cka_rbf),
    "cka_rbf_debiased": SimilarityMeasure("CKA of Gaussian kernels, debiased", cka_rbf_debiased),
    "cca": SimilarityMeasure("mean canonical correlation", cca, correlates=True),
    "svcca": SimilarityMeasure("mean canonical correlation of 99 % of the variance", svcca, correlates=True),
    "pwcca": SimilarityMeasure("canonical correlations weighted by A's columns", pwcca, correlates=True),
    "pwcca_b": SimilarityMeasure("canonical correlations weighted by B's columns", pwcca_b, correlates=True),
    "nbs": SimilarityMeasure("normalised Bures similarity", nbs),
    "procrustes": SimilarityMeasure("squared Procrustes distance", procrustes),
    "angular": SimilarityMeasure("angular Procrustes distance, radians", angular),
    "relative_error": SimilarityMeasure("||Y - X|| / ||X||", relative_error, aligned=True),
    "channel_correlation": SimilarityMeasure(
        "mean correlation of a column with its namesake", channel_correlation, True
    ),
    "channel_correlation_lowest": SimilarityMeasure("the lowest of them", channel_correlation_lowest, True),
}
"""The measures by the key they have in the JSON of a comparison."""


def compute_measures(pair: ActivationPair, names: tuple[str, ...]) -> dict[str, float | None]:
    """Return the named measures of a pair; a measure of subspaces is None where a side is constant."""
    sound = not (pair.a.defect or pair.b.defect)
    finite = "holds NaN or Inf" not in (pair.a.defect, pair.b.defect)
    return {name: _value(MEASURES[name], pair, sound=sound, finite=finite) for name in names}


def _value(measure: SimilarityMeasure, pair: ActivationPair, *, sound: bool, finite: bool) -> float | None:
    if measure.aligned:
        return measure.value(pair) if pair.aligned and finite else None
    return measure.value(pair) if sound else None
