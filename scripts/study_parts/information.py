"""Information: bytes of the coded file with structures and without, at one divergence from the original."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from kernelsimp.commands.export_coded import CodingJob
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.models.checkpoint import checkpoint_in_memory
from kernelsimp.models.network import Network
from kernelsimp.models.stored_order import tensor_name
from kernelsimp.records.plan import Plan
from kernelsimp.solver.coding_kernels import planned_menus
from kernelsimp.solver.coding_search import prepare_ground
from kernelsimp.solver.coding_walk import Coding, code_network
from study_parts.ground import Judge, Study
from study_parts.statistics import Measured

SHARE = 0.5

PRICE = 3e-7
"""Of a bit in nats, for the network with structures."""

OWN_PRICES = {"mobilenet": 6e-8}
"""Where the usual one leaves little of a network; chosen after looking (KL was 0.84)."""

STEP, MOST_STEPS = 2.5, 8
"""By what the price of the others is raised or lowered until there is one on either side of that KL."""

SIZES = ("kB of the coded file", "bits a kernel")


@dataclass(frozen=True)
class Coded:
    """What a coded network takes in each of `SIZES`, and its KL from the original on test images."""

    sizes: tuple[float, float]
    divergence: float


def information(study: Study, draws: int) -> list[Measured]:
    """Code the simplified network by its structures, it and the original without, all at one KL."""
    arms: dict[str, list[tuple[float, ...]]] = {}
    levels = []
    for seed in range(draws):
        found = coded_arms(study, seed)
        levels.append(found["with structures"].divergence)
        for name, item in found.items():
            arms.setdefault(name, []).append(item.sizes)
    fact = f"at KL {np.mean(levels):.2g} nats"
    return [
        Measured(
            measure,
            {name: [np.array([item[at]]) for item in sizes] for name, sizes in arms.items()},
            fact=fact,
        )
        for at, measure in enumerate(SIZES)
    ]


def coded_arms(study: Study, seed: int) -> dict[str, Coded]:
    """Return every arm of a draw, the others at the KL that the one with structures has."""
    simplified, plan = study.simplified(seed, SHARE), study.solution(seed, SHARE).plan
    judge = Judge(study.model, study.images(seed))
    ours = Coder(study, seed, judge, simplified, plan).coded(OWN_PRICES.get(study.name, PRICE))
    without = {"without": study.model, "simplified, without": simplified}
    others = {
        name: coded_at(ours.divergence, Coder(study, seed, judge, model)) for name, model in without.items()
    }
    return {"with structures": ours, **others}


class Coder:
    """A network that can be coded, by the structures of a plan or by cells."""

    def __init__(
        self, study: Study, seed: int, judge: Judge, model: nn.Module, plan: Plan | None = None
    ) -> None:
        self.study, self.judge = study, judge
        checkpoint = checkpoint_in_memory(model.state_dict(), study.name)
        network = Network(checkpoint, KernelBank(()), None, torch.device("cpu"), prototype=model)
        images = torch.cat([images for images, _ in study.draw(seed).calibration])
        dtypes = {name: item.dtype for name, item in checkpoint.tensors.items()}
        ground = prepare_ground(model, torch.split(images, 128), dtypes, seed)
        planned = planned_menus(plan.layers, plan.structures) if plan else {}
        self.job = CodingJob(network, replace(ground, menus={**ground.menus, **planned}))

    def coded(self, price: float) -> Coded:
        """Return the network coded at a price of a bit."""
        coding = code_network(self.job.ground, price)
        sizes = self.job.file(coding).size / 1000, bits_a_kernel(self.study, coding)
        return Coded(sizes, float(self.judge.divergence(self.job.decoded(coding).module()).mean()))


def bits_a_kernel(study: Study, coding: Coding) -> float:
    """Return the bits of all kernels larger than 1x1 over their number."""
    layers = study.bench.bank.spatial
    bits = sum(coding.tensors[tensor_name(layer.name)].bits for layer in layers)
    return bits / sum(layer.count for layer in layers)


def coded_at(level: float, coder: Coder) -> Coded:
    """Return what lies at a KL between the two prices next to it."""
    price, points = PRICE, [coder.coded(PRICE)]
    factor = STEP if points[0].divergence < level else 1 / STEP
    while len(points) <= MOST_STEPS and (points[-1].divergence < level) == (factor > 1):
        price *= factor
        points.append(coder.coded(price))
    near = points[-2:]
    sizes = [size_at(level, [(item.sizes[at], item.divergence) for item in near]) for at in range(len(SIZES))]
    return Coded((sizes[0], sizes[1]), level)


def size_at(level: float, points: list[tuple[float, float]]) -> float:
    """Return the size at a KL on the line through two points (size, KL), in logarithms of both.

    >>> round(size_at(0.02, [(100.0, 0.01), (25.0, 0.04)]), 6)
    50.0
    """
    (first, near), (second, far) = ((np.log(size), np.log(kl)) for size, kl in points)
    return float(np.exp(first + (second - first) * (np.log(level) - near) / (far - near)))
