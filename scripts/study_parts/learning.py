"""Intent over training and over seeds: does structure grow, and does a channel's role choose its family?"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from kernelsimp.analysis.chance import found_in
from kernelsimp.analysis.examine import examine
from kernelsimp.data.transforms import Batches, preprocess_of
from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.models.hooks import Call, calls_of
from kernelsimp.models.layers import bank_from_model
from kernelsimp.settings import Settings
from study_parts.ground import IMAGES, Study
from study_parts.intent import FDR
from study_parts.readable import families_of_channels
from study_parts.statistics import Floats, Measured
from study_parts.training import settings_of, train_network

MARKS = {"start": 0.0, "an eighth of training": 0.125, "half of training": 0.5, "end": 1.0}


@dataclass(frozen=True, eq=False)
class Course:
    """A network trained from one seed: by mark how many of its kernels were found, in percent."""

    model: nn.Module
    found: dict[str, float]
    images: Tensor


_COURSES: dict[tuple[str, int], Course] = {}


def course(study: Study, seed: int) -> Course:
    """Train a network once a seed."""
    if (study.name, seed) not in _COURSES:
        _COURSES[study.name, seed] = _trained(settings_of(study.name, study.folder, seed))
    return _COURSES[study.name, seed]


def _trained(settings: Settings) -> Course:
    epochs = settings.finetune.epochs
    marks = {round(share * epochs): mark for mark, share in MARKS.items()}
    found: dict[str, float] = {}

    def look(epoch: int, model: nn.Module) -> None:
        if epoch in marks:
            found[marks[epoch]] = found_share(model)

    model, data = train_network(settings, look)
    images, _ = next(iter(Batches(data.test, preprocess_of(settings.data), IMAGES)))
    return Course(model, found, images)


def found_share(model: nn.Module) -> float:
    """Return the percentage of kernels larger than 1x1 that chance does not explain."""
    layers = bank_from_model(copy.deepcopy(model)).spatial
    found = [found_in(examine(layer), FDR) for layer in layers]
    return 100 * float(np.concatenate(found).mean())


def growth(study: Study, draws: int) -> list[Measured]:
    """Count what is found through training; a draw is a seed."""
    courses = [course(study, seed) for seed in range(draws)]
    arms = {mark: [np.array([item.found[mark]]) for item in courses] for mark in MARKS}
    return [Measured("kernels found, %", arms, less=False, fact=f"{draws} seeds")]


def roles(study: Study, draws: int) -> list[Measured]:
    """Match channels over pairs of seeds by what they answer, and compare their families."""
    arms: dict[str, list[Floats]] = {"matched channels": [], "by chance": []}
    pairs = list(zip(range(0, draws, 2), range(1, draws, 2), strict=False))  # no seed in two of them
    for one, other in pairs:
        first, second = course(study, one), course(study, other)
        same = [
            matched_families(layers, answers)
            for layers, answers in zip(_layers(first, second), _answers(first, second), strict=True)
        ]
        for arm, values in zip(arms, zip(*same, strict=True), strict=True):
            arms[arm].append(100 * np.concatenate(values))
    counts = [len(values) for values in arms["by chance"]]
    places = [
        np.arange(count) + at * max(counts) for at, count in enumerate(counts)
    ]  # no channel comes twice
    fact = f"{len(pairs)} pairs of seeds"
    return [Measured("channels of one family, %", arms, less=False, places=places, fact=fact)]


def _layers(first: Course, second: Course) -> list[tuple[LayerKernels, LayerKernels]]:
    banks = [bank_from_model(item.model).spatial for item in (first, second)]
    return list(zip(*banks, strict=True))


def _answers(first: Course, second: Course) -> list[tuple[Floats, Floats]]:
    """Return what each layer's channels answer to the same images in both networks, (out, answers)."""
    found = [answers_of(item.model, first.images) for item in (first, second)]
    return [(found[0][name], found[1][name]) for name in found[0]]


def answers_of(model: nn.Module, images: Tensor) -> dict[str, Floats]:
    """Return each convolution's output, (out, images * positions), of layers larger than 1x1 in order."""
    wanted = [layer.name for layer in bank_from_model(model).spatial]
    seen: dict[str, Floats] = {}

    def see(name: str, call: Call) -> None:
        module, inputs = call
        if name in wanted:
            output = module._conv_forward(inputs, module.weight, None)  # type: ignore[operator]
            seen[name] = output.transpose(0, 1).flatten(1).double().numpy()

    with torch.no_grad(), calls_of(model, see):
        model(images)
    return {name: seen[name] for name in wanted}


def matched_families(
    layers: tuple[LayerKernels, LayerKernels], answers: tuple[Floats, Floats]
) -> tuple[Floats, Floats]:
    """Return for each channel whether its mate has its family, and how often a channel at random has it."""
    first, second = (families_of_channels(layer) for layer in layers)
    count = len(first)
    likeness = np.nan_to_num(np.corrcoef(answers[0], answers[1])[:count, count:])
    rows, mates = linear_sum_assignment(-np.abs(likeness))
    chance = (first[rows, None] == second[None, :]).mean(1)
    return (first[rows] == second[mates]).astype(float), chance
