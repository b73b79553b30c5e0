"""Robustness: original, simplified and controls under corruptions, noise, shifts and an adversary."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kernelsimp.data.corruptions import style_suite
from kernelsimp.data.splits import Split
from kernelsimp.evaluation.accuracy import measure, outputs
from kernelsimp.evaluation.attacks import adversarial
from kernelsimp.evaluation.corrupted import measure_corrupted
from kernelsimp.evaluation.robustness import sample
from kernelsimp.evaluation.stability import (
    Bench,
    consistency,
    expected_calibration_error,
    weight_noise,
)
from study_parts.ground import IMAGES, Study
from study_parts.statistics import Floats, Measured, pseudo_values
from study_parts.training import settings_of, train_network

SHARE = 0.5

CORRUPTIONS = ("gaussian_noise", "defocus_blur", "contrast", "pixelate")

BLOCK = 25
"""Images of a block, the unit of what the product tells of many images alone."""

GROUPS = 20
"""Parts of the jackknife."""

NOISE, PIXELS, STEPS = 0.1, 2.0, 10

RADII = {1: 0.1, 3: 1 / 255}
"""Of PGD by channels of an image: as usual for handwritten digits, and for photographs."""

Test = Callable[[nn.Module, Split, Bench], float]


def _under_noise(model: nn.Module, split: Split, bench: Bench) -> float:
    return 100 - weight_noise(model, split, bench, [NOISE], 2)[0].top1


def _under_shift(model: nn.Module, split: Split, bench: Bench) -> float:
    return 100 - consistency(model, split, bench, [PIXELS]).shifts[0][1]


def _under_attack(model: nn.Module, split: Split, bench: Bench) -> float:
    radius = RADII[len(split[0][0])]
    return 100 - adversarial(model, split, bench, [radius], STEPS)[1].top1


BLOCKWISE: dict[str, Test] = {
    f"wrong with noise of {NOISE:.0%} in weights, %": _under_noise,
    f"answers changed by {PIXELS:.0f} pixels of shift, %": _under_shift,
}

ATTACKED = "wrong under PGD, of what all arms have right, %"


def robustness(study: Study, draws: int) -> list[Measured]:
    """Measure the original, the simplified network, and the controls of the same draw."""
    taken = (
        measured(study.bench, {name: study.arm(seed, SHARE, name) for name in study.arms}, seed)
        for seed in range(draws)
    )
    return by_measure(taken)


def by_measure(draws: Iterable[dict[str, dict[str, Floats]]]) -> list[Measured]:
    """Return {measure: {arm: values}} of every draw as what the page compares."""
    found: dict[str, dict[str, list[Floats]]] = {}
    for draw in draws:
        for name, arms in draw.items():
            for arm, values in arms.items():
                found.setdefault(name, {}).setdefault(arm, []).append(values)
    return [Measured(name, arms) for name, arms in found.items()]


TRAINED: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalised": {"penalty": ["rate:1"]},
    "constrained": {
        "constrain": ["*=full-square:0.4+mirror-h:0.2+mirror-v:0.2+odd-h:0.1+odd-v:0.1"],
    },
}
"""The penalty and the families of the study of three ways, where the validation images of `digits-cnn`
chose the penalty's weight."""


def trained_simple(study: Study, draws: int) -> list[Measured]:
    """Train plainly, penalised and constrained from the same seeds, and simplify the plain network too."""
    return by_measure(_trained(study, seed) for seed in range(draws))


def _trained(study: Study, seed: int) -> dict[str, dict[str, Floats]]:
    models = {}
    for name, train in TRAINED.items():
        settings = settings_of(study.name, study.folder, seed, train=train)
        models[name], data = train_network(settings)
    own = Study.of_network(models["plain"], data, settings.data)
    models["simplified"] = own.simplified(seed, SHARE)
    return measured(own.bench, models, seed)


def measured(ground: Any, models: dict[str, nn.Module], seed: int) -> dict[str, dict[str, Floats]]:
    """Return {measure: {arm: values}}; noise, starts of attacks and pictures hang on the seed.

    `ground` is the images and how they become inputs, as `bench_simplify` has them.
    """
    data, bench = ground.data, Bench(ground.preprocess, batch_size=100, seed=seed)
    test = sample(data.test.subset(ground.draw(seed).places), IMAGES, 0)
    cells = measure_corrupted(models, style_suite(test, seed, CORRUPTIONS), bench)
    clean = {arm: _right(model, test, bench) for arm, model in models.items()}
    made = {
        "wrong on clean images, %": {arm: 100 * (1 - right) for arm, right in clean.items()},
        "wrong on corrupted images, %": {
            arm: 100 * (1 - np.mean(list(there.values()), axis=0)) for arm, there in cells.items()
        },
    }
    for name, test_of in BLOCKWISE.items():
        made[name] = {arm: _by_block(test_of, model, test, bench) for arm, model in models.items()}
    known = test.subset(np.flatnonzero(np.all(list(clean.values()), axis=0)))
    if len(known) >= BLOCK:
        made[ATTACKED] = {arm: _by_block(_under_attack, model, known, bench) for arm, model in models.items()}
    if len(data.train):
        train = sample(data.train, len(test), seed)
        seen = {arm: _right(model, train, bench) for arm, model in models.items()}
        made["accuracy on train less that on test, pp"] = {
            arm: pseudo_values(len(test), GROUPS, lambda kept, arm=arm: _gap(seen[arm], clean[arm], kept))  # type: ignore[misc]
            for arm in models
        }
    made["calibration error, %"] = {arm: _calibration(model, test, bench) for arm, model in models.items()}
    return made


def _by_block(test_of: Test, model: nn.Module, split: Split, bench: Bench) -> Floats:
    firsts = range(0, len(split) - BLOCK + 1, BLOCK)
    return np.array([test_of(model, split.subset(range(at, at + BLOCK)), bench) for at in firsts])


def _right(model: nn.Module, split: Split, bench: Bench) -> Floats:
    return measure(model, bench.batches(split)).correct.astype(float)


def _gap(seen: Floats, unseen: Floats, kept: Sequence[int]) -> float:
    return 100 * float(seen[kept].mean() - unseen[kept].mean())


def _calibration(model: nn.Module, split: Split, bench: Bench) -> Floats:
    """Return pseudo-values of the expected calibration error."""
    logits, labels = zip(*outputs(model, bench.batches(split)), strict=True)
    sure = torch.cat(logits).double().softmax(1).max(1)
    right = (sure.indices == torch.cat(labels)).numpy()
    confidence = sure.values.numpy()
    return pseudo_values(
        len(right), GROUPS, lambda kept: expected_calibration_error(confidence[kept], right[kept])
    )
