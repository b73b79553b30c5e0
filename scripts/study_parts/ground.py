"""What every cell of the study stands on: a network with its images, its draws and their solutions."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from loading import script
from numpy.typing import NDArray
from torch import Tensor, nn

from kernelsimp.data.splits import Data
from kernelsimp.data.transforms import Batches
from kernelsimp.evaluation.divergence import divergence
from kernelsimp.kernels.families import ZERO
from kernelsimp.models.layers import bank_from_model
from kernelsimp.records.plan import FREE
from kernelsimp.settings import DataSettings, PlanSettings
from kernelsimp.solver.controls import ControlCase, run_controls
from kernelsimp.solver.plan_builder import chooser
from kernelsimp.solver.solve import Solution, Surveyed, solve_at_budget, try_plan
from study_parts.statistics import Floats
from study_parts.tuning import tuned

IMAGES = 300
"""Test images a draw."""

KEPT = 4
"""Draws whose images and surveys are kept: one of EfficientNet-Lite0 takes a gigabyte."""


def make_room(kept: dict[int, Any]) -> None:
    """Let the oldest draw go where as many as may be are kept."""
    if len(kept) == KEPT:
        del kept[next(iter(kept))]


def evenly(count: int, most: int) -> list[int]:
    """Return at most so many of the places 0..count, evenly spread, the first and the last among them.

    >>> evenly(9, 3), evenly(2, 3)
    ([0, 4, 8], [0, 1])
    """
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()


@cache
def simplify_script() -> Any:
    """Return `bench_simplify`, which knows the networks and their images."""
    return script("bench_simplify")


class Study:
    """One network of the study; what several cells need of it is made once."""

    def __init__(self, name: str, folder: Path | None) -> None:
        self.name, self.folder = name, folder
        self._draws: dict[int, Any] = {}
        self._surveyed: dict[int, Surveyed] = {}
        self._solutions: dict[tuple[int, float], Solution] = {}
        self._arms: dict[tuple[int, float, str], nn.Module] = {}

    @classmethod
    def of_network(cls, model: nn.Module, data: Data, settings: DataSettings) -> Self:
        """Return the study of a network that was trained here."""
        study = cls("trained", None)
        study.bench = simplify_script().Bench("trained", model, bank_from_model(model), data, settings, False)
        return study

    @cached_property
    def bench(self) -> Any:
        return simplify_script().load(self.name, self.folder, flip=False)

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self.bench.model
        return model

    def draw(self, seed: int) -> Any:
        """Return other calibration images for each seed, and the test images."""
        if seed not in self._draws:
            make_room(self._draws)
            self._draws[seed] = self.bench.draw(seed)
        return self._draws[seed]

    def places(self, seed: int) -> NDArray[np.int64]:
        """Return which of the test split's images report."""
        places: NDArray[np.int64] = self.draw(seed).places[:IMAGES]
        return places

    def batches(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Return the first test images of a draw, with their labels, in batches of 100."""
        found: list[tuple[Tensor, Tensor]] = self.draw(seed).test[: IMAGES // 100]
        return found

    def drawn(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Return test images of each draw's own, with their labels, in batches of 100."""
        places = self.draw(seed).places
        order = np.random.default_rng((seed, 4)).permutation(len(places))[:IMAGES]
        return list(Batches(self.bench.data.test.subset(places[order]), self.bench.preprocess, 100))

    def images(self, seed: int) -> list[Tensor]:
        return [images for images, _ in self.batches(seed)]

    def settings(self, dof: float) -> PlanSettings:
        """Return linear families, chosen with the cost that suits the network."""
        depthwise = any(layer.kind == "depthwise" for layer in self.bench.bank.spatial)
        cost = "kind" if depthwise else "absolute"
        return PlanSettings(families=("linear", ZERO), cost=cost, dof=dof)

    def surveyed(self, seed: int) -> Surveyed:
        if seed not in self._surveyed:
            make_room(self._surveyed)
            self._surveyed[seed] = self.draw(seed).surveyed(self.settings(0.5))
        return self._surveyed[seed]

    def solution(self, seed: int, dof: float) -> Solution:
        """Return the network simplified to a share of its degrees of freedom, re-solved."""
        if (seed, dof) not in self._solutions:
            settings = self.settings(dof)
            made = solve_at_budget(self.surveyed(seed), chooser(settings), settings.cost)
            self._solutions[seed, dof] = made
        return self._solutions[seed, dof]

    def simplified(self, seed: int, dof: float) -> nn.Module:
        return self.solution(seed, dof).best.reconstruction.model

    def arm(self, seed: int, dof: float, name: str) -> nn.Module:
        """Return the network of one arm, made once: of `OWN`, or a control of the product's."""
        if (seed, dof, name) not in self._arms:
            own = OWN.get(name, Study._control)
            self._arms[seed, dof, name] = own(self, seed, dof, name)
        return self._arms[seed, dof, name]

    def _control(self, seed: int, dof: float, name: str) -> nn.Module:
        case = ControlCase(self.surveyed(seed), self.solution(seed, dof).best)
        return run_controls(case, [name], seed)[0].model

    def _found_only(self, seed: int, dof: float, _: str) -> nn.Module:
        """Return the network in which the solution's plan changes what was found alone, re-solved."""
        plan = self.solution(seed, dof).plan
        layers = tuple(
            replace(layer, choice=np.where(layer.found, layer.choice, layer.choice.dtype.type(FREE)))
            for layer in plan.layers
        )
        made = try_plan(self.surveyed(seed), (replace(plan, layers=layers), {}))
        return made.reconstruction.model

    def _tuned(self, seed: int, dof: float, _: str) -> nn.Module:
        return tuned(self.bench, self.simplified(seed, dof), self.solution(seed, dof).plan, seed)

    def _untouched(self, seed: int, _: float, __: str) -> nn.Module:
        return tuned(self.bench, self.model, None, seed)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that can be made: without training images nothing is tuned."""
        return ARMS if len(self.bench.data.train) else tuple(arm for arm in ARMS if arm not in TUNED)


OWN: dict[str, Callable[[Study, int, float, str], nn.Module]] = {
    "original": lambda study, *_: study.model,
    "simplified": lambda study, seed, dof, _: study.simplified(seed, dof),
    "found only": Study._found_only,
    "frozen and tuned": Study._tuned,
    "untouched, tuned": Study._untouched,
}

TUNED = ("frozen and tuned", "untouched, tuned")

ARMS = (*OWN, "random subspaces", "cell masks", "equal-norm noise")
"""What most measures are taken of, the controls at the degrees of freedom of the simplified network."""


def with_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a network that has these weights."""
    made = copy.deepcopy(model)
    made.load_state_dict(
        {name: value for name, value in tensors.items() if name in made.state_dict()}, strict=False
    )
    return made.eval()


class Judge:
    """What a network says of images, and how far others are from it."""

    def __init__(self, model: nn.Module, images: Sequence[Tensor]) -> None:
        self.images = images
        self.before = self._scores(model)

    @torch.no_grad()
    def _scores(self, model: nn.Module) -> list[Tensor]:
        return [model(batch) for batch in self.images]

    def divergence(self, other: nn.Module) -> Floats:
        """Return KL(network || other) of each image, in nats."""
        pairs = zip(self.before, self._scores(other), strict=True)
        parts = [divergence(was, now, "none").sum(1).double().numpy() for was, now in pairs]
        return np.concatenate(parts)


@torch.no_grad()
def wrong(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> Floats:
    """Return 100 for each image that a network has wrong, and 0 for the others."""
    parts = [(model(images).argmax(1) != labels).double().numpy() for images, labels in batches]
    return 100 * np.concatenate(parts)
