"""What chance gives: how often a random kernel comes as near to a family as this one does.

Under a null, p(r) = P(residual <= r) depends only on the family and r, so log p (natural) is tabulated
once and looked up. `white` draws cells independently; `matched` draws kernels with the layer's own raw
second moment C, `ring` with C made diagonal in the cosine basis and averaged over rings of equal
frequency, which keeps smoothness and drops orientation. Structures that are no subspace have a
`Sampled` null: residuals of kernels drawn by `gaussian_kernels` or `permuted_kernels`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from scipy.interpolate import CubicSpline
from torch import Tensor

from kernelsimp.kernels.covariance import ring_covariance, ring_numbers, second_moment
from kernelsimp.kernels.quadratic_forms import log_probability_below_zero
from kernelsimp.kernels.subspace import Floats, Subspace

_OCTAVES, _STEPS = 24, 64
"""The table's nodes: 64 linear steps an octave, from 2^-24, the rounding of float32, to 1/2."""

_SHIFT = 23 - 6
_FIRST = (127 - _OCTAVES) << 6
_HALF = (_OCTAVES - 1) * _STEPS

_ENOUGH = -80.0
"""log p below which the table goes on as the power law that it has become."""

_LOWER: Floats = np.concatenate(
    [2.0**-octave * (1 + np.arange(_STEPS) / _STEPS) for octave in range(_OCTAVES, 1, -1)]
)
NODES: Floats = np.concatenate([_LOWER, [0.5], 1 - _LOWER[::-1]])
"""The residuals at which log p is tabulated, as fine towards 1 as towards 0; linear between them."""


@dataclass(frozen=True, eq=False)
class Null:
    """One null for some families: `table` (families, nodes) holds log p at `NODES`.

    `name` is what was asked for; `note` says, in one sentence, why white stands in for it, if it does.
    """

    name: str
    table: Tensor
    note: str | None = None

    def log_p(self, family: int, r: Tensor) -> Tensor:
        """Return log P(residual <= r) for residuals of one family, any shape, as float32.

        A residual under 2^-24 is read as that: it is the rounding of the numbers it was made from.
        """
        low, share = _places(r.detach().to(torch.float32))
        row = self.table[family]
        return torch.lerp(row[low], row[low + 1], share)

    def log_p_values(self, residuals: Tensor) -> Tensor:
        """Return log p for residuals (n, families), one column a family, in float32."""
        out = torch.empty(residuals.shape[1], residuals.shape[0])
        for family in range(residuals.shape[1]):
            out[family] = self.log_p(family, residuals[:, family])
        return out.T

    def p_values(self, residuals: Tensor) -> Tensor:
        """Return p = P(residual <= r) for residuals (n, families), in float64."""
        return self.log_p_values(residuals).double().exp()

    def smallest_log_p(self, residuals: Tensor, largest: float = 1.0) -> Tensor:
        """Return the least log p over the families of residuals (n, families), as (n,).

        Exact where it is under log(`largest`) and 0 elsewhere: with a small `largest` few look-ups are
        needed, and a p-value that is then multiplied and cut at 1 comes out the same.
        """
        count = residuals.shape[0]
        columns = residuals.T.contiguous().to(torch.float32)
        limits = self.residual_at(largest).astype(np.float32)
        # numpy finds the places several times faster than torch
        near = torch.from_numpy(np.flatnonzero(columns.numpy() <= limits[:, None]))
        if not len(near):
            return torch.zeros(count)
        low, share = _places(columns.reshape(-1).index_select(0, near))
        family = near.div(count, rounding_mode="floor")
        low = low + family * self.table.shape[1]
        flat = self.table.reshape(-1)
        log_p = torch.lerp(flat.index_select(0, low), flat.index_select(0, low + 1), share)
        return torch.zeros(count).scatter_reduce_(0, near - family * count, log_p, "amin")

    def residual_at(self, p: float) -> Floats:
        """Return for each family a residual, one of `NODES`, at which P(residual <= r) is p or just above."""
        if p >= 1:
            return np.ones(len(self.table))
        above = self.table.numpy() >= np.log(p)
        return np.asarray(NODES[np.argmax(above, axis=1)])

    def expected_share(self, tolerance: float, family: int) -> float:
        """Return the share of kernels within `tolerance` of a family that chance gives."""
        return float(self.expected_shares(tolerance)[family])

    def expected_shares(self, tolerance: float) -> Floats:
        """Return `expected` of every family, (families,)."""
        low, share = _places(torch.tensor(float(tolerance)))
        return np.asarray(
            torch.lerp(self.table[:, low], self.table[:, low + 1], share).double().exp().numpy()
        )


@dataclass(frozen=True, eq=False)
class Sampled:
    """A null known by its residuals `sorted_r` (N,), for a structure that is no linear subspace.

    Inside the sample p = (1 + number at or below r) / (1 + N). Below its `_ANCHOR`-th member p follows
    the power law r^codimension, where that is known: how the volume round a smooth set grows.
    """

    name: str
    sorted_r: Tensor
    codimension: int | None = None

    def log_p(self, r: Tensor) -> Tensor:
        """Return log P(residual <= r), any shape, in float64."""
        count, flat = len(self.sorted_r), r.detach().double()
        below = torch.searchsorted(self.sorted_r, flat.contiguous(), right=True).double()
        log_p = ((1 + below) / (1 + count)).log()
        if self.codimension is None or count < 2 * _ANCHOR:
            return log_p
        anchor = float(self.sorted_r[_ANCHOR - 1])
        floor = 2.0**-_OCTAVES
        tail = np.log(_ANCHOR / count) + self.codimension * (flat.clamp_min(floor) / max(anchor, floor)).log()
        return torch.where(flat < anchor, tail, log_p)

    def expected_share(self, tolerance: float) -> float:
        """Return the share of kernels within `tolerance` that chance gives."""
        return float((self.sorted_r <= tolerance).double().mean())


_ANCHOR = 50


def sampled_null(name: str, residuals: Tensor, codimension: int | None = None) -> Sampled:
    """Return the null that the residuals (N,) of random kernels make."""
    return Sampled(name, residuals.detach().double().flatten().sort().values, codimension)


def white_null(subspaces: Sequence[Subspace]) -> Null:
    """Return the null of independent cells: r^2 ~ Beta((d - q) / 2, q / 2) with q = dim, exactly."""
    rows = [_white_row(space.cells, space.dim) for space in subspaces]
    return Null("white", torch.stack(rows) if rows else torch.zeros(0, len(NODES)))


def matched_null(kernels: Tensor, subspaces: Sequence[Subspace]) -> Null:
    """Return the null w ~ N(0, C), C the raw second moment of a layer's live kernels (n, *shape).

    Falls back to white, and says so in `note`, with fewer live kernels than twice their cells or where
    C is singular.
    """
    flat = kernels.reshape(len(kernels), -1)
    cells, count = flat.shape[1], len(kernels)
    if count < 2 * cells:
        why = f"{count} live kernels of {cells} cells, at least {2 * cells} needed for their covariance"
        return _fallen_back("matched", subspaces, why)
    return gaussian_null("matched", second_moment(kernels), subspaces)


def ring_null(kernels: Tensor, subspaces: Sequence[Subspace]) -> Null:
    """Return the null w ~ N(0, C), C diagonal in the cosine basis and equal over each frequency ring.

    It keeps how smooth the layer's live kernels (n, *shape) are and nothing else. Falls back to white,
    and says so in `note`, with fewer live kernels than twice the rings or where a ring holds no energy.
    """
    shape = tuple(kernels.shape[1:])
    rings, count = len(np.unique(ring_numbers(shape))), len(kernels)
    if count < 2 * rings:
        why = f"{count} live kernels, at least {2 * rings} needed for the energies of {rings} rings"
        return _fallen_back("ring", subspaces, why)
    return gaussian_null("ring", ring_covariance(second_moment(kernels), shape), subspaces)


def gaussian_null(name: str, covariance: Floats, subspaces: Sequence[Subspace]) -> Null:
    """Return the null of kernels drawn from N(0, covariance), covariance (cells, cells).

    P(r^2 <= t) = P(sum l_i z_i^2 <= 0) with l = eig(C^(1/2) (Q - tI) C^(1/2)), Q = I - P. Falls back to
    white where the covariance is singular.
    """
    values, vectors = np.linalg.eigh(covariance)
    if not values[0] > 1e-9 * values[-1]:
        return _fallen_back(name, subspaces, "the kernels' covariance is singular")
    root = (vectors * np.sqrt(values / values.mean())) @ vectors.T
    nodes, log_p = _solve_coarse(root, subspaces)
    wanted = np.log(NODES) - 0.5 * np.log1p(-np.square(NODES))
    rows = [_interpolate_log_p(nodes, row, wanted) for row in log_p]
    return Null(name, torch.from_numpy(np.array(rows, dtype=np.float32).reshape(-1, len(NODES))))


def _fallen_back(name: str, subspaces: Sequence[Subspace], why: str) -> Null:
    return Null(name, white_null(subspaces).table, f"{name} null not estimated: {why}; white used instead")


def _places(r: Tensor) -> tuple[Tensor, Tensor]:
    """Return the node at or below each residual, and how far on towards the next it lies, in 0..1.

    The bits of a float32 are its place on the nodes' scale: exponent, then linear steps. Above 1/2 they
    are the bits of 1 - r, counted from the other end.
    """
    upper = r > 0.5
    bits = torch.where(upper, 1 - r, r).clamp_(float(NODES[0]), 0.5 - 2.0**-25).view(torch.int32)
    low = (bits >> _SHIFT) - _FIRST
    share = (bits & ((1 << _SHIFT) - 1)).to(torch.float32) * 2.0**-_SHIFT
    return torch.where(upper, 2 * _HALF - 1 - low, low), torch.where(upper, 1 - share, share)


@lru_cache(maxsize=1024)
def _white_row(cells: int, dim: int) -> Tensor:
    """Return log of the Beta((d - q) / 2, q / 2) distribution function at the squares of `NODES`."""
    a, b, t = (cells - dim) / 2, dim / 2, np.square(NODES)
    with np.errstate(divide="ignore"):
        log_p = np.log(special.betainc(a, b, t))
        small = t < 1e-3
        # where betainc would underflow: its series I_t(a, b) = t^a (1-t)^b / (a B(a, b)) * 2F1(...)
        series = special.hyp2f1(a + b, 1.0, a + 1, t[small])
        head = a * np.log(t[small]) + b * np.log1p(-t[small]) - np.log(a) - special.betaln(a, b)
    log_p[small] = head + np.log(series)
    return torch.from_numpy(log_p.astype(np.float32))


def _coarse_nodes() -> Floats:
    """Return nodes in v = log(r / sqrt(1 - r^2)), falling; log p is smooth in v and straight at its ends.

    They end at r = 1e-5: the eigenvalues that matter are then 1e-10 of the largest, and lose digits.
    """
    middle = np.arange(4.0, -4.0, -0.25)
    return np.concatenate([np.arange(17.0, 4.2, -1.0), middle, np.arange(middle[-1] - 0.6, -11.5, -0.8)])


def _solve_coarse(root: Floats, subspaces: Sequence[Subspace]) -> tuple[Floats, list[Floats]]:
    """Return coarse nodes v (falling) and for each family log p at as many of them as matter."""
    nodes = _coarse_nodes()
    squares = 1 / (1 + np.exp(-2 * nodes))
    covariance = root @ root
    pencils = [root @ (np.eye(len(root)) - space.projector) @ root for space in subspaces]
    rows: list[list[float]] = [[] for _ in pencils]
    for start in range(0, len(nodes), 6):
        t = squares[start : start + 6]
        open_rows = [i for i, row in enumerate(rows) if not row or row[-1] > _ENOUGH]
        if not open_rows:
            break
        spectra = np.concatenate([_spectra(pencils[i], covariance, t) for i in open_rows])
        log_p = log_probability_below_zero(spectra).reshape(len(open_rows), len(t))
        for i, part in zip(open_rows, log_p, strict=True):
            rows[i].extend(part)
    return nodes, [np.array(row) for row in rows]


def _spectra(pencil: Floats, covariance: Floats, t: Floats) -> Floats:
    """Return the eigenvalues of `pencil` - t * `covariance` at each t, (t, cells)."""
    if len(pencil) >= _LARGE:
        product = pencil @ covariance
        if np.abs(product - product.T).max() < 1e-9 * np.abs(product).max():
            _, vectors = np.linalg.eigh(pencil + np.sqrt(2.1) * covariance)
            a, c = (
                np.einsum("ij,ik,kj->j", vectors, m, vectors, optimize=True) for m in (pencil, covariance)
            )
            return np.asarray(a - t[:, None] * c)
    return np.asarray(np.linalg.eigvalsh(pencil - t[:, None, None] * covariance))


_LARGE = 25
"""From this many cells on it pays to look whether one basis serves every t."""


def _interpolate_log_p(nodes: Floats, log_p: Floats, wanted: Floats) -> NDArray[np.float32]:
    """Return log p at the residuals `wanted` (as v, rising) from coarse nodes (falling)."""
    v, values = nodes[: len(log_p)][::-1], log_p[::-1]
    slope = (values[1] - values[0]) / (v[1] - v[0])
    curve = CubicSpline(v, values, bc_type="natural")
    inside = np.maximum.accumulate(curve(np.maximum(wanted, v[0])))
    filled = np.where(wanted < v[0], values[0] + slope * (wanted - v[0]), inside)
    return np.minimum(filled, 0).astype(np.float32)
