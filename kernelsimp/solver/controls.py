"""What else the same degrees of freedom buy solved alike: the controls beside every result.

Each arm changes one thing and keeps the rest: the budget, the cost, the re-solve, the images. Arms are
networks to measure; none of them is meant to be exactly in a family.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.cells import chunks
from kernelsimp.kernels.families import ZERO
from kernelsimp.models.layers import bank_from_model, conv_modules
from kernelsimp.records.plan import FREE, SHAPES
from kernelsimp.solver.candidates import FREE_NAME, SetStructure, Structure, rows_of_layer
from kernelsimp.solver.costs import BY_KIND, COSTS
from kernelsimp.solver.lagrangian import choose_for_dof, dof_share
from kernelsimp.solver.layerwise import CalibratedNetwork, reconstruct
from kernelsimp.solver.plan_builder import Prepared, cost_tables
from kernelsimp.solver.projected_cg import FilterConstraint, Piece
from kernelsimp.solver.solve import PlanTrial, Surveyed
from kernelsimp.solver.targets import Target, targets_of
from kernelsimp.training.hold import release
from kernelsimp.training.kernel_sets import InFlats
from kernelsimp.training.parametrisations import LayerConstraint, parametrise, stored_places
from kernelsimp.watch import SILENT, Watcher, Within


@dataclass(frozen=True, eq=False)
class Arm:
    """One control: its name, the share of degrees of freedom it leaves, and the network it makes.

    `constraints` say what its kernels are held to, by layer; nothing where it holds none.
    """

    name: str
    dof: float
    model: nn.Module
    constraints: Mapping[str, FilterConstraint]


@dataclass(frozen=True, eq=False)
class ControlCase:
    """What the controls stand beside: the surveyed network, and the plan that was kept."""

    surveyed: Surveyed
    kept: PlanTrial

    def alone(self) -> "ControlCase":
        """Return the same for what one process of a group does by itself."""
        return replace(self, surveyed=self.surveyed.alone())

    @property
    def calibrated(self) -> CalibratedNetwork:
        return self.surveyed.calibrated

    @property
    def prepared(self) -> Prepared:
        return self.surveyed.prepared

    @property
    def cost(self) -> str:
        """The cost that the kept plan was chosen with; absolute where that is not known."""
        return self.kept.cost if self.kept.cost in (*COSTS, BY_KIND) else "absolute"

    @property
    def bent(self) -> bool:
        """Whether some structure on offer is no subspace, so that kernels in it pick again after a fit."""
        return any(
            isinstance(item, SetStructure) for offer in self.prepared.offers.values() for item in offer
        )

    @property
    def share(self) -> float:
        return self.kept.plan.dof_after / self.kept.plan.dof_before


def run_controls(
    case: ControlCase, names: Sequence[str] | None = None, seed: int = 0, watcher: Watcher = SILENT
) -> tuple[Arm, ...]:
    """Return the arms called `names`, or all of them, at the kept plan's degrees of freedom."""
    names = names or tuple(CONTROLS)
    return tuple(
        CONTROLS[name](case, seed, Within(watcher, f"control {number} of {len(names)}"))
        for number, name in enumerate(names, 1)
    )


def permuted_labels(case: ControlCase, seed: int, watcher: Watcher) -> Arm:
    """Deal the plan's structures out again at random among the kernels of each layer."""
    shuffle = np.random.default_rng(seed)
    layers = tuple(
        replace(
            layer,
            choice=shuffle.permutation(layer.choice.reshape(-1)).reshape(layer.choice.shape),
            # a template's shape is another kernel's now: each is fitted afresh
            parameters={key: value for key, value in layer.parameters.items() if key != SHAPES},
        )
        for layer in case.kept.plan.layers
    )
    targets = targets_of(replace(case.kept.plan, layers=layers))
    return _reconstructed_arm(case, ("permuted labels", case.share), targets, watcher)


def random_subspaces(case: ControlCase, seed: int, watcher: Watcher) -> Arm:
    """Offer random subspaces of the structures' dimensions in their place, and choose and re-solve alike.

    Where a structure lets a kernel pick (which cells are equal), the kernel picks among as many of them, and
    again after the first fit.
    """
    generator = torch.Generator().manual_seed(seed)

    def swap(candidate: Structure, cells: int) -> Structure:
        kept = candidate.name == FREE_NAME or candidate.dim == 0
        return candidate if kept else random_rivals(candidate, cells, generator)

    made: dict[tuple[str, tuple[int, ...]], Structure] = {}
    for layer in case.prepared.bank.spatial:
        for item in case.prepared.offers[layer.name]:
            if (item.name, layer.grid) not in made:
                made[item.name, layer.grid] = swap(item, math.prod(layer.grid))
    return _arm_of_offers(
        case,
        "random subspaces",
        lambda layer: tuple(made[item.name, layer.grid] for item in case.prepared.offers[layer.name]),
        watcher,
    )


def cell_masks(case: ControlCase, _: int, watcher: Watcher) -> Arm:
    """Offer every number of free cells in place of the families: unstructured pruning, re-solved."""

    def offer(layer: LayerKernels) -> tuple[Structure, ...]:
        cells = math.prod(layer.grid)
        masked = (Masked(f"{k} cells", k, None, math.log2(math.comb(cells, k))) for k in range(1, cells))
        return (*_ends(cells), *masked)

    return _arm_of_offers(case, "cell masks", offer, watcher)


def zeroed_kernels(case: ControlCase, _: int, watcher: Watcher) -> Arm:
    """Take whole kernels out, and nothing else."""
    return _arm_of_offers(case, "whole kernels zeroed", lambda layer: _ends(math.prod(layer.grid)), watcher)


def equal_norm_noise(case: ControlCase, seed: int, watcher: Watcher) -> Arm:
    """Give each simplified kernel noise of the norm of what simplifying takes away; re-solve."""
    generator = torch.Generator().manual_seed(seed)
    layers = {layer.name: layer for layer in case.calibrated.bank.layers}
    targets = {}
    for plan in case.kept.plan.layers:
        changed = torch.from_numpy(plan.choice != FREE).reshape(-1)
        if changed.any():
            rows = rows_of_layer(layers[plan.name])
            noise = torch.randn(rows.shape, dtype=torch.float64, generator=generator)
            size = torch.from_numpy(plan.residual).double().reshape(-1, 1) * rows.norm(dim=1, keepdim=True)
            noisy = rows + noise * size / noise.norm(dim=1, keepdim=True)
            zero = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
            piece = Piece(changed.nonzero()[:, 0], zero)
            targets[plan.name] = _loose(FilterConstraint(rows.shape[1], (piece,), noisy * changed[:, None]))
    return _reconstructed_arm(case, ("equal-norm noise", case.share), targets, watcher)


Control = Callable[[ControlCase, int, Watcher], Arm]

CONTROLS: dict[str, Control] = {
    "permuted labels": permuted_labels,
    "random subspaces": random_subspaces,
    "cell masks": cell_masks,
    "whole kernels zeroed": zeroed_kernels,
    "equal-norm noise": equal_norm_noise,
}
"""Every arm takes the case, a seed and a watcher. Noise keeps its degrees of freedom: it shows the error's
size alone."""


def _ends(cells: int) -> tuple[Structure, Structure]:
    zero = torch.zeros(cells, cells, dtype=torch.float64)
    return Structure(FREE_NAME, cells, None), Structure(ZERO, 0, zero)


def _arm_of_offers(
    case: ControlCase, name: str, offer: Callable[[LayerKernels], tuple[Structure, ...]], watcher: Watcher
) -> Arm:
    """Choose among other structures at the same share and cost, and re-solve."""
    bank = case.prepared.bank
    prepared = replace(case.prepared, offers={layer.name: offer(layer) for layer in bank.spatial})
    tables = cost_tables(prepared, case.cost)
    choices = choose_for_dof(tables, case.share)
    targets = {
        layer.name: _target(prepared.offers[layer.name], chosen, again=case.bent)
        for layer, chosen in zip(bank.spatial, choices.structures, strict=True)
        if chosen.any()
    }
    return _reconstructed_arm(case, (name, dof_share(tables, choices)), targets, watcher)


def _reconstructed_arm(
    case: ControlCase, label: tuple[str, float], targets: Mapping[str, Target], watcher: Watcher
) -> Arm:
    model = reconstruct(case.calibrated, targets, watcher).model
    return Arm(*label, model, constraints_at(model, targets))


def constraints_at(model: nn.Module, targets: Mapping[str, Target]) -> dict[str, FilterConstraint]:
    """Return what keeps each kernel of a network in the subspace in which it is now, by layer.

    That of a bent set goes through the fitted kernel, not through the one it came from.
    """
    kernels = {layer.name: layer.kernels.detach().cpu() for layer in bank_from_model(model).layers}
    return {name: target.constraint(kernels[name]) for name, target in targets.items()}


def _target(offer: Sequence[Structure], chosen: Tensor, *, again: bool) -> Target:
    """Return a target whose kernels meet what was chosen on offer, up to rounding.

    Where the run's structures may pick `again` after a first fit, so may these.
    """
    places = torch.unique(chosen).tolist()

    def meets(kernels: Tensor) -> FilterConstraint:
        rows = kernels.detach().double().reshape(len(chosen), -1)
        pieces = []
        for place in places:
            mask = chosen == place
            projectors = offer[place].among(mask).projectors(rows[mask])
            if projectors is not None:
                pieces.append(Piece(mask.nonzero()[:, 0], projectors))
        return FilterConstraint(rows.shape[1], tuple(pieces))

    return Target(
        meets, lambda kernels: _place_kernels(meets(kernels), kernels), around=meets if again else None
    )


def _loose(constraint: FilterConstraint) -> Target:
    """Return a target whose kernels meet one constraint, whatever they are, up to rounding."""
    return Target(lambda _: constraint, lambda kernels: _place_kernels(constraint, kernels))


def _place_kernels(constraint: FilterConstraint, kernels: Tensor) -> Tensor:
    placed = constraint.place(kernels.double().reshape(-1, constraint.cells))
    return placed.reshape(kernels.shape).to(kernels.dtype)


@contextmanager
def held_arm(arm: Arm, bank: KernelBank, *, values: bool) -> Iterator[nn.Module]:
    """Within the block, hold the arm's constrained kernels in its network: their `values`, or subspaces.

    `bank` has the layers' layout. The network is a plain one again afterwards.
    """
    layers = {layer.name: layer for layer in bank.layers}
    modules = conv_modules(arm.model)
    for name, constraint in arm.constraints.items():
        weight = modules[name].get_parameter("weight")
        places = stored_places(weight, layers[name].kind, layers[name].groups).reshape(-1)
        parts = [
            InFlats(places[p.index], weight, p.projector[..., :0] if values else p.projector, around=True)
            for p in constraint.pieces
        ]
        parametrise(arm.model, weight, LayerConstraint([*parts]))
    try:
        yield arm.model
    finally:
        release(arm.model)


MOST_PICKS = 8192
"""A pick is among at most this many subspaces: all that partitions of a 3x3 kernel into few values need."""


CHUNK_NUMBERS = 1 << 22
"""Kernels are compared with the subspaces in parts of about this many products."""


@dataclass(frozen=True, eq=False)
class Masked(Structure):
    """The `dim` largest cells of each kernel are kept, the others are zero."""

    def errors(self, kernels: Tensor) -> Tensor:
        return kernels * ~self.masks(kernels)

    def projectors(self, kernels: Tensor) -> Tensor:
        return torch.diag_embed(self.masks(kernels).to(kernels.dtype))

    def masks(self, kernels: Tensor) -> Tensor:
        """Return which cells of each kernel (n, cells) are kept."""
        places = kernels.abs().topk(self.dim, dim=1).indices
        return torch.zeros_like(kernels, dtype=torch.bool).scatter_(1, places, True)


@dataclass(frozen=True, eq=False)
class Picked(Structure):
    """Each kernel takes the nearest of some subspaces, of orthonormal `bases` (m, cells, dim)."""

    bases: Tensor = field(kw_only=True)

    def errors(self, kernels: Tensor) -> Tensor:
        nearest = self.nearest(kernels)
        return kernels - torch.einsum("ncd,nd->nc", nearest, torch.einsum("ncd,nc->nd", nearest, kernels))

    def projectors(self, kernels: Tensor) -> Tensor:
        nearest = self.nearest(kernels)
        return nearest @ nearest.mT

    def nearest(self, kernels: Tensor) -> Tensor:
        """Return the basis (n, cells, dim) of the subspace that each of kernels (n, cells) is nearest to."""
        count, cells, dim = self.bases.shape
        columns = self.bases.permute(1, 0, 2).reshape(cells, count * dim).float()  # to pick, that is enough
        parts = chunks(kernels.float(), max(1, CHUNK_NUMBERS // (count * dim)))
        inside = [(part @ columns).square().reshape(-1, count, dim).sum(2).argmax(1) for part in parts]
        return self.bases[torch.cat(inside)]


def random_rivals(like: Structure, cells: int, generator: torch.Generator) -> Structure:
    """Return random subspaces for what `like` offers: as many of its dimension as its side bits can name."""
    count = min(MOST_PICKS, round(2**like.side_bits))
    drawn = torch.randn(count, cells, like.dim, dtype=torch.float64, generator=generator)
    bases = torch.linalg.qr(drawn)[0]
    if count == 1:  # one subspace for all kernels, so one projector
        return Structure(like.name, like.dim, bases[0] @ bases[0].mT)
    return Picked(like.name, like.dim, None, math.log2(count), bases=bases)
