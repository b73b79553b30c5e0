"""Fit every coefficient of a filter again, so that the layer's output on real inputs changes least.

Weights are (groups, filters a group, D) with D = in / groups * cells, in float64. With the kernels of a
filter held to their subspaces, minimise |T w - X w0|^2 / n + d |w - w0|^2, that is
w'(G + dI)w - 2 w'(b + d w0) with G = T'T/n and b = T'X w0/n, by conjugate gradients for many filters of a
layer at once. What is multiplied on a card, and in which precision, is in `precision`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.memory import numbers_at_once
from kernelsimp.solver.moments import Moments
from kernelsimp.solver.precision import product_dtype

DAMPING = 0.01
"""d in units of the mean of diag G; from 1e-4 to 1e-2 at most one image of a thousand changes."""

DAMPINGS = (0.01, 0.1, 1.0, 10.0, 100.0, 1e4)
"""What is tried where both halves of the images are at hand."""

STOP = 1e-9
"""A filter is done when its residual is this share of its first one: 1e-6 would leave weights 1e-5 off."""

ROUNDING = 1e-13
"""A residual below this share of the right-hand side is rounding, and nothing more can be gained."""

MOST_STEPS = 2000

LEG = 1e-3
"""Products in float32 bring a residual down to this share of what it was; then it is taken anew."""

BLOCK_NUMBERS = 1 << 22
"""Kernels times cells squared that are solved at once on a CPU: the preconditioner then takes 32 MiB."""

BYTES_A_NUMBER = 32
"""What each of them takes on a GPU, where there is room for more: float64, and copies on the way."""

ROWS_A_CELL_AT_LEAST = 5
"""With fewer rows than this times D, moments are too poor to fit to."""


class UnsolvableError(KernelsimpError):
    """A layer whose moments cannot be fitted to; the caller projects instead, and says so."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Some kernels and the projector of each: `index` (k,) into the flat kernels, P (d, d) or (k, d, d)."""

    index: Tensor
    projector: Tensor


@dataclass(frozen=True, eq=False)
class FilterConstraint:
    """What the kernels of one layer are held to; a kernel in no piece is free, and none is in two.

    `offset` (kernels, cells) moves each subspace away from zero; it is itself outside of them.
    """

    cells: int
    pieces: tuple[Piece, ...]
    offset: Tensor | None = None

    def place(self, weights: Tensor) -> Tensor:
        """Return the nearest weights (..., D) that meet the constraint, offset included."""
        inside = self.project(weights)
        return inside if self.offset is None else inside + self.offset.reshape(inside.shape)

    def project(self, weights: Tensor) -> Tensor:
        """Return the nearest weights (..., D) in which every kernel is in its subspace through zero."""
        flat = weights.reshape(-1, self.cells)
        result = flat.clone()
        for piece in self.pieces:
            rows = flat[piece.index]
            shared = piece.projector.ndim == 2
            moved = rows @ piece.projector if shared else (piece.projector @ rows[:, :, None])[:, :, 0]
            result[piece.index] = moved
        return result.reshape(weights.shape)

    def part(self, first: int, last: int) -> "FilterConstraint":
        """Return the constraint of the kernels from `first` up to `last` alone."""
        pieces = []
        for piece in self.pieces:
            inside = (piece.index >= first) & (piece.index < last)
            if bool(inside.any()):
                own = piece.projector if piece.projector.ndim == 2 else piece.projector[inside]
                pieces.append(Piece(piece.index[inside] - first, own))
        offset = self.offset
        if offset is not None:
            offset = offset.reshape(-1, self.cells)[first:last]
        return FilterConstraint(self.cells, tuple(pieces), offset)

    def to(self, device: torch.device) -> "FilterConstraint":
        """Return the same constraint with its tensors on `device`."""
        moved = tuple(Piece(p.index.to(device), p.projector.to(device)) for p in self.pieces)
        return FilterConstraint(self.cells, moved, None if self.offset is None else self.offset.to(device))


@dataclass(frozen=True, eq=False)
class Solved:
    """The weights found (groups, filters, D), and how many steps the slowest filter took."""

    weights: Tensor
    steps: int


def resolve(
    original: Tensor, constraint: FilterConstraint, moments: Moments, damping: float = DAMPING
) -> Solved:
    """Return the weights within `constraint` whose outputs are nearest to the original ones.

    Projected conjugate gradients, each kernel preconditioned by its own block of the operator within its
    subspace; the direction is projected again at every step, or it would drift off. Raises
    `UnsolvableError` where the moments are missing, singular or of too few rows, and where the iteration
    breaks down.
    """
    check_moments(moments)
    if moments.halves:
        damping = best_damping(original, moments.halves)
    d = damping * moments.scale
    if d <= 0:
        raise UnsolvableError("its inputs are always the same, so there is nothing to fit to")
    target = moments.target + d * original
    if not constraint.pieces and constraint.offset is None:
        return Solved(_unconstrained((moments.gram, d), target), 0)
    solved = []
    at_once = numbers_at_once(original.device, BLOCK_NUMBERS, BYTES_A_NUMBER)
    for place in _parts(original.shape, constraint.cells, at_once):
        start, gram = original[place], moments.gram[place[0]]
        own = _constraint_of(constraint, original, place)
        precondition = _preconditioner((gram, d), own, start.shape, at_once)
        solved.append(_conjugate_gradients(start, _Descent(gram, d, target[place], own, precondition)))
    weights = torch.cat([part.weights for part in solved], 1 if len(original) == 1 else 0)
    return Solved(weights, max(part.steps for part in solved))


def best_damping(original: Tensor, halves: Sequence[Moments]) -> float:
    """Return the damping at which weights fitted without constraint to one half of the images do best on
    the other: a layer with many inputs, few windows and little to mend had better stay near where it was.
    """
    dtype = product_dtype(original.device)
    errors = []
    for damping in DAMPINGS:
        error = 0.0
        for fitted, judge in (halves, halves[::-1]):
            d = damping * fitted.scale
            weights = _unconstrained((fitted.gram, d), fitted.target + d * original, dtype)
            error += float(judge.error(weights).sum())
        errors.append(error)
    return DAMPINGS[errors.index(min(errors))]


def _unconstrained(
    operator: tuple[Tensor, float], target: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return w of (G + dI) w = b for every filter, b (groups, filters, D), factorised in `dtype`.

    Where that rounds so much that there are no factors, they are those of float64.
    """
    gram, d = operator
    damped = gram.to(dtype, copy=True)
    damped.diagonal(dim1=1, dim2=2).add_(d)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if not bool(failed.any()):
        return torch.cholesky_solve(target.to(dtype).mT, factor).mT.to(target.dtype)
    if dtype != torch.float64:
        return _unconstrained(operator, target)
    raise UnsolvableError("the fit broke down: its moments are not positive definite")


def _parts(shape: torch.Size, cells: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Yield (groups, filters) of the parts of a layer that are solved at once: filters, or whole groups."""
    groups, filters, width = shape
    numbers = width * cells if groups == 1 else filters * width * cells
    size = max(1, at_once // numbers)
    for first in range(0, filters if groups == 1 else groups, size):
        part, whole = slice(first, first + size), slice(None)
        yield (whole, part) if groups == 1 else (part, whole)


def _constraint_of(
    constraint: FilterConstraint, original: Tensor, place: tuple[slice, slice]
) -> FilterConstraint:
    """Return the constraint of one part: its kernels stand one behind the other."""
    groups, filters, width = original.shape
    part = place[1] if groups == 1 else place[0]
    kernels = width // constraint.cells * (1 if groups == 1 else filters)
    return constraint.part(part.start * kernels, part.stop * kernels)


def check_moments(moments: Moments) -> None:
    """Raise `UnsolvableError` for moments of too few rows, or that are not finite."""
    needed = ROWS_A_CELL_AT_LEAST * moments.width
    if moments.rows < needed:
        raise UnsolvableError(f"{moments.rows} windows for {moments.width} cells; expected {needed} at least")
    if not bool(moments.gram.isfinite().all() and moments.target.isfinite().all()):
        raise UnsolvableError("its inputs on calibration images are not finite")


@dataclass(frozen=True, eq=False)
class _Descent:
    """P A P w = P b for some filters; A = G + dI is never made: it would take as much memory as G again.

    `gram` is G (groups, D, D), `target` b like the weights; `precondition` solves each kernel's block of A.
    """

    gram: Tensor
    d: float
    target: Tensor
    constraint: FilterConstraint
    precondition: Callable[[Tensor], Tensor]

    def left(self, w: Tensor) -> Tensor:
        """Return the residual of w."""
        return self.constraint.project(self.target - w @ self.gram - self.d * w)

    def run(self, w: Tensor, left: Tensor, enough: Tensor, gram: Tensor) -> Solved:
        """Go on from w until the residual, followed along the way, is `enough`; G is taken to be `gram`."""
        ready = self.precondition(left)
        direction = ready.clone()
        energy = _dot(left, ready)
        live = left.norm(dim=-1) > enough
        for step in range(1, MOST_STEPS + 1):
            if not bool(live.any()):
                return Solved(w, step - 1)
            image = (direction.to(gram.dtype) @ gram).to(direction.dtype) + self.d * direction
            curvature = _dot(direction, image)
            if not bool((curvature[live] > 0).all() and energy[live].isfinite().all()):
                raise UnsolvableError("the fit broke down: its moments are not positive definite")
            length = torch.where(live, energy / curvature, 0.0)[..., None]
            w = w + length * direction
            left = left - length * self.constraint.project(image)
            live = live & (left.norm(dim=-1) > enough)
            ready = self.precondition(left)
            fresh = _dot(left, ready)
            mix = torch.where(live, fresh / energy, 0.0)[..., None]
            direction = self.constraint.project(ready + mix * direction)
            energy = fresh
        raise UnsolvableError(f"the fit did not settle in {MOST_STEPS} steps")

    def run_in_legs(self, w: Tensor, left: Tensor, enough: Tensor, dtype: torch.dtype) -> Solved:
        """Go on from w with G in a lower precision, as long as that brings it nearer.

        Rounding leads the residual that is followed astray, so each leg starts from the true one.
        """
        gram, steps = self.gram.to(dtype), 0
        far = left.norm(dim=-1)
        while bool((far > enough).any()):
            try:
                tried = self.run(w, left, torch.maximum(enough, LEG * far), gram)
            except UnsolvableError:
                break
            left = self.left(tried.weights)
            before, far = far, left.norm(dim=-1)
            if not bool(far.sum() < before.sum() / 2):
                break
            w, steps = tried.weights, steps + tried.steps
        return Solved(w, steps)


def _conjugate_gradients(start: Tensor, descent: _Descent) -> Solved:
    """Solve P A P w = P b for every filter from P start, to float64's precision on every device."""
    w = descent.constraint.place(start)
    left = descent.left(w)
    enough = torch.maximum(STOP * left.norm(dim=-1), ROUNDING * descent.target.norm(dim=-1))
    dtype, steps = product_dtype(start.device), 0
    if dtype != start.dtype:
        near = descent.run_in_legs(w, left, enough, dtype)
        w, left, steps = near.weights, descent.left(near.weights), near.steps
    solved = descent.run(w, left, enough, descent.gram)
    return Solved(solved.weights, steps + solved.steps)


def _preconditioner(
    operator: tuple[Tensor, float], constraint: FilterConstraint, shape: torch.Size, at_once: int
) -> Callable[[Tensor], Tensor]:
    """Return the map that solves P A_jj P x = r for every kernel by itself, j its input; A is (G, d).

    It halves the steps. Kernels so large that even one filter's blocks are too many divide by the mean of
    diag A_jj.
    """
    gram, d = operator
    cells, inputs = constraint.cells, shape[-1] // constraint.cells
    blocks = diagonal_blocks(gram, cells) + d * torch.eye(cells, dtype=gram.dtype, device=gram.device)
    kernels = shape.numel() // cells
    if kernels * cells**2 > 4 * at_once:
        level = blocks.diagonal(dim1=1, dim2=2).mean(1).repeat_interleave(cells)
        scale = level.reshape(len(gram), 1, -1)
        return lambda left: left / scale
    place = torch.arange(kernels, device=gram.device)
    block_of = place // (shape[1] * inputs) * inputs + place % inputs
    inverse = torch.linalg.inv(blocks)[block_of]
    for piece in constraint.pieces:
        shared = piece.projector.ndim == 2
        own = _inverse_within(blocks if shared else blocks[block_of[piece.index]], piece.projector)
        inverse[piece.index] = own[block_of[piece.index]] if shared else own

    def apply(left: Tensor) -> Tensor:
        solved: Tensor = inverse @ left.reshape(-1, cells, 1)
        return solved.reshape(left.shape)

    return apply


def diagonal_blocks(operator: Tensor, cells: int) -> Tensor:
    """Return the blocks A_jj (groups * inputs, cells, cells) on the diagonal of A (groups, D, D)."""
    groups, width, _ = operator.shape
    split = operator.reshape(groups, width // cells, cells, width // cells, cells)
    return split.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).reshape(-1, cells, cells)


def _inverse_within(blocks: Tensor, projector: Tensor) -> Tensor:
    """Return the inverse of P A P on the range of P, and zero elsewhere."""
    outside = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device) - projector
    level = blocks.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    inverse: Tensor = torch.linalg.inv(projector @ blocks @ projector + level * outside)
    return projector @ inverse @ projector


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)
