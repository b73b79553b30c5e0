"""Every structure that a plan can give a kernel, by name: the linear families, `zero`, and sets that bend.

A bent set (low rank, few distinct values, a drawing a*T + b) is no subspace, but each of its members lies
in one: the set's flat at that member, in which a re-solve can move it. Membership of low rank and few values
needs nothing but the kernel; what T is (a template, or a prototype of the layer) the plan keeps, a row a
kernel.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.kernels import (
    denoisers,
    families,
    few_values,
    masks,
    orbits,
    partitions,
    prototypes,
    rank,
    template_fit,
    templates,
)
from kernelsimp.kernels.cells import rounding
from kernelsimp.kernels.subspace import OrbitSubspace, Shape

RANKS = {"rank-one": 1, "rank-two": 2}
VALUES = {f"few-values-{count}": count for count in few_values.COUNTS}

BENT = (*RANKS, *VALUES)
"""The names of the bent sets that need nothing but the kernel, in the order in which they are offered."""

TEMPLATE = "template-"
TEMPLATED = tuple(f"{TEMPLATE}{name}" for name in templates.NAMES)
"""The names of the structures a*T + b; their degrees of freedom are a, b and the shape parameters of T."""

PROTOTYPES = "prototypes-"
"""What the names of the structures a*X + b begin with, X one of K prototypes that the layer shares, moved."""

PROTOTYPED = (f"{PROTOTYPES}8",)
"""Those that a group's name offers; by its own name any number of prototypes is to be had."""

DRAWN = (TEMPLATE, PROTOTYPES)
"""What the names of structures begin with whose kernels need numbers that the plan keeps."""

CURVED = (*BENT, *TEMPLATED, *PROTOTYPED)
"""Every structure that is no subspace."""

DENOISED = "denoised-"
"""What the names of denoised kernels begin with: estimates of their own, which are in no set."""

LINEAR = "linear"
GROUPS = {
    "all": (LINEAR, families.ZERO, *BENT, *TEMPLATED),
    LINEAR: (LINEAR, families.ZERO),
    "seventeen": (*families.SEVENTEEN, families.ZERO),
    "bent": BENT,
    "templates": TEMPLATED,
    "prototypes": PROTOTYPED,
}
"""Words that stand for several structures; `linear` among the members means every linear family there is.

`all` are those that a kernel is in by itself: prototypes, which a layer shares, are asked for beside them."""


@dataclass(frozen=True)
class KernelSet:
    """A set of kernels of `shape`; `dim` numbers are left of a kernel and `side_bits` name the rest."""

    name: str
    shape: Shape
    dim: int
    side_bits: float = 0.0

    def snap(self, kernels: Tensor) -> Tensor:
        """Return the nearest members (..., *shape), in the kernels' own dtype."""
        raise NotImplementedError

    def holds(self, kernels: Tensor) -> Tensor:
        """Say for each kernel (..., *shape) whether it is a member, as exactly as its kind admits."""
        raise NotImplementedError

    def flats(self, kernels: Tensor) -> Tensor:
        """Return the projector (n, cells, cells) of the flat at the member nearest to each of (n, *shape)."""
        raise NotImplementedError

    @property
    def shared(self) -> int:
        """How many numbers the kernels of a layer share that are in the set."""
        return 0

    def partition(self, kernels: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return which cells of each member (n, *shape) are equal, (n, cells), where that is the set."""
        return None

    def residual(self, kernels: Tensor) -> Tensor:
        """Return ||w - snap(w)|| / ||w|| of kernels (..., *shape), in float64; 0 for a zero kernel."""
        wide = self._rows(kernels).double()
        norm = wide.flatten(1).norm(dim=1)
        left = (wide - self.snap(wide)).flatten(1).norm(dim=1)
        return torch.where(norm > 0, left / norm.clamp_min(1e-300), 0.0).reshape(self._lead(kernels))

    def _rows(self, kernels: Tensor) -> Tensor:
        return kernels.reshape(-1, *self.shape)

    def _lead(self, kernels: Tensor) -> torch.Size:
        return kernels.shape[: kernels.ndim - len(self.shape)]


@dataclass(frozen=True)
class LowRank(KernelSet):
    """Kernels of rank `order` or less; the flat keeps the row space, span(I kron V)."""

    order: int = 1

    def snap(self, kernels: Tensor) -> Tensor:
        return rank.snap(self._rows(kernels), self.order).reshape(kernels.shape)

    def holds(self, kernels: Tensor) -> Tensor:
        return rank.holds(self._rows(kernels), self.order).reshape(self._lead(kernels))

    def flats(self, kernels: Tensor) -> Tensor:
        _, rows = rank.factors(kernels, self.order)
        basis = torch.linalg.qr(rows.mT)[0]
        space = basis @ basis.mT
        identity = torch.eye(self.shape[0], dtype=torch.float64)
        cells = self.shape[0] * self.shape[1]
        return torch.einsum("ab,nij->naibj", identity, space).reshape(-1, cells, cells)


@dataclass(frozen=True)
class FewValued(KernelSet):
    """Kernels of `count` distinct values or fewer; the flat keeps which cells are equal."""

    count: int = 2

    def snap(self, kernels: Tensor) -> Tensor:
        rows = self._rows(kernels)
        return few_values.snap(rows, few_values.fit(rows, self.count)).reshape(kernels.shape)

    def holds(self, kernels: Tensor) -> Tensor:
        return few_values.holds(self._rows(kernels), self.count).reshape(self._lead(kernels))

    def flats(self, kernels: Tensor) -> Tensor:
        labels = self.partition(kernels)
        member = torch.nn.functional.one_hot(labels, self.count).double()
        sizes = member.sum(1).clamp_min(1)
        return (member / sizes[:, None, :]) @ member.mT

    def partition(self, kernels: Tensor) -> Tensor:
        rows = self._rows(kernels)
        same = rows.flatten(1)[:, :, None] == rows.flatten(1)[:, None, :]
        exact = partitions.canonical(same.int().argmax(dim=2))  # cheap, and blind to no small difference
        return torch.where(self.holds(rows)[:, None], exact, few_values.fit(rows, self.count).labels)


@dataclass(frozen=True, eq=False)
class Drawn(KernelSet):
    """Kernels a*T + b; the flat is span{T, 1}, T drawn from `shapes` (n, k), a row a kernel.

    Without shapes every kernel gets those that fit it best.
    """

    shapes: Tensor | None = field(default=None, repr=False)

    @property
    def width(self) -> int:
        """How many numbers say what T is."""
        raise NotImplementedError

    def shapes_of(self, kernels: Tensor) -> Tensor:
        """Return the numbers (n, width) that fit kernels (n, *shape) best, as float32 holds them."""
        raise NotImplementedError

    def draw(self, shapes: Tensor) -> Tensor:
        """Return T (n, cells) of zero mean and unit norm, or of zeros."""
        raise NotImplementedError

    def snap(self, kernels: Tensor) -> Tensor:
        drawn, (a, b, _) = self._profile(kernels)
        return (a[:, None] * drawn + b[:, None]).reshape(kernels.shape).to(kernels.dtype)

    def holds(self, kernels: Tensor) -> Tensor:
        _, (_, _, residual) = self._profile(kernels)
        return (residual <= rounding(kernels.dtype)).reshape(self._lead(kernels))

    def flats(self, kernels: Tensor) -> Tensor:
        basis = self.basis(kernels)
        return basis @ basis.mT

    def basis(self, kernels: Tensor) -> Tensor:
        """Return an orthonormal basis (n, cells, 2) of the flat of each of kernels (n, *shape)."""
        drawn = self._drawn(self._rows(kernels))
        return torch.stack([drawn, torch.full_like(drawn, drawn.shape[1] ** -0.5)], dim=2)

    def _profile(self, kernels: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        rows = self._rows(kernels)
        drawn = self._drawn(rows)
        return drawn, template_fit.profile(rows, drawn)

    def _drawn(self, rows: Tensor) -> Tensor:
        return self.draw(self.shapes_of(rows) if self.shapes is None else self.shapes.double())

    @property
    def _grid(self) -> tuple[int, int]:
        return self.shape[0], self.shape[1]


@dataclass(frozen=True, eq=False)
class Templated(Drawn):
    """Kernels a*T + b, T a template; its degrees of freedom are a, b and T's shape parameters."""

    template: str = ""

    @property
    def width(self) -> int:
        return len(templates.parameters_of(templates.by_name(self.template), self._grid))

    def shapes_of(self, kernels: Tensor) -> Tensor:
        """Return the shape parameters (n, k) that fit best.

        A constant kernel, which every template fits, gets the first point of the search grid.
        """
        found = template_fit.fit(self._rows(kernels), [self.template])
        known = templates.grid_points(templates.by_name(self.template), self._grid)
        constant = found.template[:, None] < 0
        return torch.where(constant, known[0].float().double(), found.parameters[:, : known.shape[1]])

    def draw(self, shapes: Tensor) -> Tensor:
        return templates.draw(templates.by_name(self.template), self._grid, shapes)


@dataclass(frozen=True, eq=False)
class Prototyped(Drawn):
    """Kernels a*X + b, X one of `count` prototypes that a layer shares, turned or mirrored.

    A kernel's numbers are the cells of its X; without them the prototypes are those of the kernels given.
    """

    count: int = 8
    seed: int = 0

    @property
    def width(self) -> int:
        return self.shape[0] * self.shape[1]

    def shapes_of(self, kernels: Tensor) -> Tensor:
        return prototypes.moved_centres(self._rows(kernels), self.count, self.seed).float().double()

    def draw(self, shapes: Tensor) -> Tensor:
        centred = shapes - shapes.mean(dim=1, keepdim=True)
        return torch.nn.functional.normalize(centred, dim=1)

    @property
    def shared(self) -> int:
        """The numbers of the prototypes themselves."""
        return self.count * self.width


@dataclass(frozen=True)
class PointSet(KernelSet):
    """Kernels that are kept as they were written, each a set of its own: what a denoiser made of them."""

    def snap(self, kernels: Tensor) -> Tensor:
        return kernels

    def holds(self, kernels: Tensor) -> Tensor:
        return self._rows(kernels).isfinite().flatten(1).all(dim=1).reshape(self._lead(kernels))

    def flats(self, kernels: Tensor) -> Tensor:
        cells = int(np.prod(self.shape))
        return torch.zeros(len(self._rows(kernels)), cells, cells, dtype=torch.float64)


def find(name: str, shape: Shape, shapes: NDArray[np.float32] | None = None) -> OrbitSubspace | KernelSet:
    """Return the structure called `name` at `shape`: a family, `zero`, or a bent set.

    `shapes` (n, 4 or more) are the numbers by which the n kernels are drawn that a template or prototypes
    will be asked about. Raises `KernelsimpError` where the name is unknown or has no meaning at this shape.
    """
    found = _find(name, shape)
    if not isinstance(found, Drawn) or shapes is None:
        return found
    return replace(found, shapes=torch.from_numpy(np.ascontiguousarray(shapes[:, : found.width])).double())


def is_bent(name: str) -> bool:
    """Say whether a name is that of a structure which is no subspace."""
    return name in CURVED or name.startswith(PROTOTYPES)


@lru_cache(maxsize=4096)
def _find(name: str, shape: Shape) -> OrbitSubspace | KernelSet:
    if name.startswith(masks.PREFIX):
        return masks.find(name, shape)
    if name.startswith(DENOISED):
        denoisers.by_name(name.removeprefix(DENOISED))
        return PointSet(name, shape, int(np.prod(shape)))
    if name.startswith(PROTOTYPES):
        return _prototyped(name, shape)
    if name not in CURVED:
        return families.find(name, shape)
    made = {item.name: item for item in kernel_sets(shape)}
    if name not in made:
        raise KernelsimpError(f"structure '{name}' is not offered for kernels of shape {shape}")
    return made[name]


def _prototyped(name: str, shape: Shape) -> Prototyped:
    text = name.removeprefix(PROTOTYPES)
    if not text.isdecimal() or not 1 <= int(text) <= prototypes.PrototypeSettings.limit:
        raise KernelsimpError(
            f"structure '{name}': expected K prototypes, K from 1 to {prototypes.PrototypeSettings.limit}"
        )
    if len(shape) != 2 or min(shape) < 2:
        raise KernelsimpError(f"structure '{name}' is not offered for kernels of shape {shape}")
    count = int(text)
    moves = len(orbits.moves((shape[0], shape[1])))
    return Prototyped(name, shape, 2, math.log2(count * moves), count=count)


def drawn_kernels(
    choice: NDArray[np.int16], structures: Sequence[str], shape: Shape
) -> tuple[NDArray[np.bool_], int]:
    """Say which kernels of a layer, shaped like `choice`, are drawn, and by how many numbers each."""
    marks = np.array([name.startswith(DRAWN) for name in structures], dtype=np.bool_)
    return marks[choice], numbers_kept((structures[index] for index in np.unique(choice)), shape)


def numbers_kept(names: Iterable[str], shape: Shape) -> int:
    """Return how many numbers a kernel the plan keeps for structures of these names; 0 for none."""
    drawn = [name for name in names if name.startswith(DRAWN)]
    shared = any(name.startswith(PROTOTYPES) for name in drawn)
    return max(template_fit.WIDTH, int(np.prod(shape)) if shared else 0) if drawn else 0


def expand(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names with the words of `GROUPS` spelled out; `linear` stays, for every linear family.

    Raises `KernelsimpError` with the nearest known name for one that is nothing.
    """
    known = (*(row.name for row in families.FAMILIES), *CURVED, families.ZERO, *GROUPS)
    for name in names:
        head, _, tail = name.partition("-")
        pair = head in ("rows", "columns") and tail.replace("-", "").isdigit()
        drawn = head == "prototypes" and tail.isdecimal()
        if not pair and not drawn and name not in known:
            raise KernelsimpError(f"unknown family '{name}'{did_you_mean(name, known)}")
    return tuple(dict.fromkeys(part for name in names for part in GROUPS.get(name, (name,))))


def projectors(structure: OrbitSubspace | KernelSet, kernels: Tensor) -> Tensor:
    """Return the projector of a subspace (cells, cells), or of the flat at each of kernels (n, *shape)."""
    if isinstance(structure, KernelSet):
        return structure.flats(kernels)
    return torch.from_numpy(structure.projector)


@lru_cache(maxsize=256)
def kernel_sets(shape: Shape, names: tuple[str, ...] = PROTOTYPED) -> tuple[KernelSet, ...]:
    """Return the bent sets that restrict kernels of `shape`, of prototypes those among `names`.

    There are none for kernels of three sides.
    """
    if len(shape) != 2:
        return ()
    grid, cells = (shape[0], shape[1]), int(np.prod(shape))
    low = (
        LowRank(name, shape, rank.dof(grid, order), order=order)
        for name, order in RANKS.items()
        if rank.is_offered(grid, order)
    )
    few = (
        FewValued(name, shape, count, partitions.bits(cells, count), count)
        for name, count in VALUES.items()
        if few_values.is_offered(grid, count)
    )
    drawn = (
        Templated(TEMPLATE + item.name, shape, templates.degrees_of_freedom(item, grid), template=item.name)
        for item in templates.offered_templates(grid)
    )
    shared = (_prototyped(name, shape) for name in names if name.startswith(PROTOTYPES) and min(shape) > 1)
    return (*low, *few, *drawn, *shared)
