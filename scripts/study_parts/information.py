"""Information: bytes of the coded file with structures and without, at one divergence from the original."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from kernelsimp.commands.export_coded import CodingJob
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.models.checkpoint import checkpoint_in_memory
from kernelsimp.models.network import Network
from kernelsimp.records.plan import Plan
from kernelsimp.solver.coding_kernels import planned_menus
from kernelsimp.solver.coding_search import prepare_ground
from kernelsimp.solver.coding_walk import code_network
from study_parts.ground import Judge, Study
from study_parts.statistics import Floats, Measured

SHARE = 0.5

PRICE = 3e-7
"""Of a bit in nats, for the simplified network."""

FACTORS = (0.6, 1.4)
"""Of that price: what the original is coded at, to have a KL on either side."""


def information(study: Study, draws: int) -> list[Measured]:
    """Code the simplified network by its structures, and the original at prices on both sides of its KL."""
    arms: dict[str, list[Floats]] = {"with structures": [], "without": []}
    levels = []
    for seed in range(draws):
        judge = Judge(study.model, study.images(seed))
        solution = study.solution(seed, SHARE)
        size, level = coded(study, seed, solution.best.reconstruction.model, PRICE, judge, solution.plan)
        points = [coded(study, seed, study.model, PRICE * factor, judge) for factor in FACTORS]
        arms["with structures"].append(np.array([size / 1000]))
        arms["without"].append(np.array([bytes_at(level, points) / 1000]))
        levels.append(level)
    fact = f"at KL {np.mean(levels):.3f} nats"
    return [Measured("kB of the coded file", arms, fact=fact)]


def coded(
    study: Study, seed: int, model: nn.Module, price: float, judge: Judge, plan: Plan | None = None
) -> tuple[float, float]:
    """Return bytes of the coded file, and the KL of what it decodes to from the original on test images."""
    checkpoint = checkpoint_in_memory(model.state_dict(), study.name)
    network = Network(checkpoint, KernelBank(()), None, torch.device("cpu"), prototype=model)
    images = torch.cat([images for images, _ in study.draw(seed).calibration])
    dtypes = {name: item.dtype for name, item in checkpoint.tensors.items()}
    ground = prepare_ground(model, torch.split(images, 128), dtypes, seed)
    if plan is not None:
        planned = planned_menus(plan.layers, plan.structures)
        ground = replace(ground, menus={**ground.menus, **planned})
    job, coding = CodingJob(network, ground), code_network(ground, price)
    return job.file(coding).size, float(judge.divergence(job.decoded(coding).module()).mean())


def bytes_at(level: float, points: list[tuple[float, float]]) -> float:
    """Return bytes at a KL on the line through two points (bytes, KL), in logarithms of both.

    >>> round(bytes_at(0.02, [(100.0, 0.01), (25.0, 0.04)]), 6)
    50.0
    """
    (first, near), (second, far) = ((np.log(size), np.log(kl)) for size, kl in points)
    return float(np.exp(first + (second - first) * (np.log(level) - near) / (far - near)))
