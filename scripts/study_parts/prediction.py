"""What a network shows before it is simplified, beside what simplifying then costs it: figures of many."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.models.zoo import DigitsDepthwise
from kernelsimp.settings import FinetuneSettings, RunSettings, Settings
from kernelsimp.solver.candidates import rows_of_layer
from kernelsimp.solver.costs import predicted_loss
from kernelsimp.solver.fisher import Sensitivity
from kernelsimp.training.finetune import finetune
from kernelsimp.training.job import job_of
from study_parts.ground import Judge, Study, simplify_script, with_tensors, wrong
from study_parts.statistics import Row
from study_parts.training import RECIPES, settings_of, train_network

SHARE = 0.3

NOISE = 0.1
"""Of a layer's norm."""

RETUNED = FinetuneSettings(epochs=2, lr=0.02, distill=0.0, log="none")
"""How the siblings of a published network are made; the usual way is the network as it came."""

Change = Callable[[Settings], Settings]


def _trained_by(**words: Any) -> Change:
    return lambda settings: replace(settings, finetune=replace(settings.finetune, **words))


WAYS: dict[str, Change] = {
    "usual": lambda settings: settings,
    "no weight decay": _trained_by(weight_decay=0.0),
    "more weight decay": lambda settings: _trained_by(
        weight_decay=max(0.01, 3 * settings.finetune.weight_decay)
    )(settings),
    "a quarter of the epochs": lambda settings: _trained_by(epochs=max(1, settings.finetune.epochs // 4))(
        settings
    ),
    "smoothed labels": _trained_by(label_smoothing=0.2),
    "mixed images": _trained_by(mixup=1.0),
}

SHAPES: dict[str, dict[str, str]] = {
    "digits": {
        "half as wide": f"{__name__}:narrow_digits",
        "twice as deep": f"{__name__}:deep_digits",
    }
}

RETUNED_WAYS = {"resnet20": ("no weight decay", "more weight decay", "smoothed labels", "mixed images")}


def narrow_digits() -> nn.Module:
    return DigitsDepthwise(channels=24)


def deep_digits() -> nn.Module:
    return DigitsDepthwise(blocks=4)


# --- figures; of each, more should cost more


def planned_loss(study: Study, seed: int) -> float:
    """Return the loss that the survey predicts of the plan, before any re-solve, in nats an image."""
    return sum(study.solution(seed, SHARE).best.predicted.values())


def entropy(study: Study, seed: int) -> float:
    """Return the mean entropy of the original's answers to the images held back, in nats."""
    scores = torch.cat([answers[0] for answers in study.surveyed(seed).judge.answers])
    sure = scores.log_softmax(1)
    return float(-(sure.exp() * sure).sum(1).mean())


def whole_loss(study: Study, seed: int) -> float:
    """Return half the sum of w'Fw over all kernels: Fisher information times squared weights."""
    seen = study.surveyed(seed).prepared.sensitivities
    return sum(
        predicted_loss(layer, rows_of_layer(layer), seen.get(layer.name))
        for layer in study.bench.bank.spatial
    )


def weight_error(study: Study, seed: int) -> float:
    """Return the squared error of the plan's projection over the squared weights."""
    lost = whole = 0.0
    for layer in study.solution(seed, SHARE).plan.layers:
        kernels = study.bench.bank.by_name[layer.name].kernels
        energy = kernels.double().flatten(2).square().sum(2).numpy()
        lost += float((np.square(layer.residual.astype(float)) * energy).sum())
        whole += float(energy.sum())
    return lost / whole


def not_found(study: Study, seed: int) -> float:
    """Return the percentage of kernels that chance explains."""
    found = study.surveyed(seed).prepared.found.values()
    return 100 * (1 - float(np.concatenate([layer.reshape(-1) for layer in found]).mean()))


def directions(study: Study, seed: int) -> float:
    """Return over how large a share of directions the windows of an input channel are spread."""
    return _mean_of_layers(study, seed, lambda _, seen: _spread(seen))


def _spread(seen: Sensitivity) -> float:
    traces = seen.blocks.diagonal(dim1=1, dim2=2).sum(1)
    squares = seen.blocks.square().sum((1, 2)).clamp_min(1e-300)
    return float((traces.square() / squares).mean()) / seen.blocks.shape[1]


def stable_rank(study: Study, seed: int) -> float:
    """Return ||W||^2 over its squared spectral norm, as a share of the rank, a mean over layers."""
    return _mean_of_layers(study, seed, lambda layer, _: _rank(layer))


def _rank(layer: LayerKernels) -> float:
    values = torch.linalg.svdvals(layer.kernels.double().flatten(1))
    return float(values.square().sum() / values[0].square()) / len(values)


def _mean_of_layers(study: Study, seed: int, figure: Callable[[LayerKernels, Sensitivity], float]) -> float:
    seen = study.surveyed(seed).prepared.sensitivities
    return float(np.mean([figure(layer, seen[layer.name]) for layer in study.bench.bank.spatial]))


def under_noise(study: Study, seed: int) -> float:
    """Return KL with noise in all kernels, on the images held back: the one figure that takes a pass."""
    dice = torch.Generator().manual_seed(seed)
    weights = dict(study.model.state_dict())
    for layer in study.bench.bank.spatial:
        weight = weights[f"{layer.name}.weight"]
        noise = torch.randn(weight.shape, generator=dice)
        weights[f"{layer.name}.weight"] = weight + NOISE * weight.norm() * noise / noise.norm()
    return study.surveyed(seed).judge.distance(with_tensors(study.model, weights)).divergence


FIGURES: dict[str, Callable[[Study, int], float]] = {
    "loss predicted of the plan": planned_loss,
    "that loss over the entropy of answers": lambda study, seed: (
        planned_loss(study, seed) / max(entropy(study, seed), 1e-9)
    ),
    "entropy of answers": entropy,
    "loss predicted of all kernels": whole_loss,
    "squared weight error of the plan": weight_error,
    "kernels not found": not_found,
    "spread of inputs": directions,
    "stable rank of weights": stable_rank,
    "KL under noise": under_noise,
}

ACCURACY, KL, LOST = "accuracy, %", f"KL at {SHARE:.0%}, nats", "points lost"


def figures_of(study: Study, seed: int) -> dict[str, float]:
    """Return what was seen before, and what it came to on test images."""
    figures = {name: figure(study, seed) for name, figure in FIGURES.items()}
    batches, simplified = study.batches(seed), study.simplified(seed, SHARE)
    before, after = (float(wrong(model, batches).mean()) for model in (study.model, simplified))
    far = Judge(study.model, study.images(seed)).divergence(simplified)
    return {**figures, ACCURACY: 100 - before, KL: float(far.mean()), LOST: after - before}


# --- networks


@dataclass(frozen=True)
class Figures:
    """What was measured of networks of one architecture, by name; the page compares them with others'."""

    networks: dict[str, dict[str, float]]

    def row(self, _: Sequence[tuple[str, str]]) -> Row:
        return {"measure": "figures", "units": len(self.networks), "gaps": [], "networks": self.networks}


def prediction(study: Study, draws: int) -> list[Figures]:
    """Take the figures of a network, and of those of its architecture that are trained here."""
    networks = dict(trained_here(study, draws))
    if study.name in simplify_script().PLACES:
        drawn = [figures_of(study, seed) for seed in range(draws)]
        networks["as it came"] = {name: float(np.mean([item[name] for item in drawn])) for name in drawn[0]}
    return [Figures(networks)]


def trained_here(study: Study, draws: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield networks from scratch, a seed a draw, or siblings of a published one."""
    if study.name in RECIPES:
        for seed in range(draws):
            for way, settings in settings_by_way(study, seed).items():
                model, data = train_network(settings)
                own = Study.of_network(model, data, settings.data)
                yield f"{way}, seed {seed}", figures_of(own, seed)
    for way in RETUNED_WAYS.get(study.name, ()):
        own = Study.of_network(retuned(study, way), study.bench.data, study.bench.settings)
        yield f"retuned, {way}", figures_of(own, 0)


def settings_by_way(study: Study, seed: int) -> dict[str, Settings]:
    usual = settings_of(study.name, study.folder, seed)
    shapes = {
        way: replace(usual, model=replace(usual.model, arch=arch))
        for way, arch in SHAPES.get(study.name, {}).items()
    }
    return {**{way: change(usual) for way, change in WAYS.items()}, **shapes}


def retuned(study: Study, way: str) -> nn.Module:
    """Return a copy as it is after a short training at a high rate, though its best epoch be the first."""
    run = RunSettings(seed=0, device="cpu")
    settings = WAYS[way](Settings(data=study.bench.settings, finetune=RETUNED, run=run))
    student, last = copy.deepcopy(study.model), copy.deepcopy(study.model)
    job = job_of(study.bench.data, settings, None)
    job = replace(job, on_epoch=lambda _: last.load_state_dict(student.state_dict()) and None)
    finetune(student, job, settings.finetune)
    return last.eval()
