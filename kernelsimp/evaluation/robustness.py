"""How networks stand where images or weights are not what they were trained on: everything in one report.

Accuracies are in percent, changes in percentage points (pp) after minus before. All results are plain data:
`dataclasses.asdict` makes JSON of them. The test split is measured on here and chooses nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from torch import nn

from kernelsimp.data.cifar_c import official_suite
from kernelsimp.data.corruptions import STYLE, Suite, style_suite
from kernelsimp.data.splits import Data, Split
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome
from kernelsimp.evaluation.attacks import Adversarial, adversarial, check_attacks
from kernelsimp.evaluation.corrupted import (
    CorruptedTop1,
    CorruptionChange,
    CorruptionTrial,
    corruption_change,
    measure_corrupted,
    scores,
)
from kernelsimp.evaluation.stability import (
    Bench,
    Calibration,
    Consistency,
    NoiseLevel,
    calibration,
    check_draws,
    consistency,
    weight_noise,
    whole_pixels,
)
from kernelsimp.settings import RobustnessSettings
from kernelsimp.watch import SILENT, Watcher

__all__ = ["Bench", "Gap", "Robustness", "RobustnessReport", "assess", "check_trial", "train_test_gap"]


@dataclass(frozen=True)
class Gap:
    """Accuracy on seeded train images and on test images, `images` of each at most, unchanged."""

    train_top1: float
    test_top1: float
    gap_pp: float
    images: int


@dataclass(frozen=True)
class Robustness:
    """One network. `mean_corrupted_top1` is the mean over corruptions of their mean over severities."""

    clean_top1: float
    mean_corrupted_top1: float
    corruptions: tuple[CorruptedTop1, ...]
    weight_noise: tuple[NoiseLevel, ...]
    consistency: Consistency
    adversarial: tuple[Adversarial, ...]
    calibration: Calibration
    gap: Gap | None


@dataclass(frozen=True)
class RobustnessReport:
    """All networks, and the change from the first to each later one; `suite` names the pictures."""

    suite: str
    images: int
    seed: int
    models: Mapping[str, Robustness]
    changes: tuple[CorruptionChange, ...]


def assess(
    models: Mapping[str, nn.Module],
    data: Data,
    bench: Bench,
    settings: RobustnessSettings = RobustnessSettings(),  # noqa: B008 (frozen)
    watcher: Watcher = SILENT,
) -> RobustnessReport:
    """Try every network in every way on the test split, and compare each with the first.

    The models are on `bench.device` and come back unchanged. Raises `KernelsimpError` for no network,
    unknown corruptions, an incomplete CIFAR-10-C folder, and as `measure` does.
    """
    if not models:
        raise KernelsimpError("no network to try; expected at least one")
    trial = _Trial(data, sample(data.test, settings.images, bench.seed), bench, settings)
    watcher.start("corrupted pictures")
    cells = measure_corrupted(models, trial.suite(), bench, watcher)
    results, tested = {}, []
    for name, model in models.items():
        watcher.start(f"robustness of {name}")
        clean = bench.measure(model, trial.test)
        tested.append(CorruptionTrial(name, clean.correct, cells[name]))
        results[name] = trial.of(model, clean, scores(cells[name]))
    changes = tuple(corruption_change(tested[0], other) for other in tested[1:])
    suite = f"CIFAR-10-C, {settings.cifar_c}" if settings.cifar_c else STYLE
    return RobustnessReport(suite, len(trial.test), bench.seed, results, changes)


def check_trial(data: Data, bench: Bench, settings: RobustnessSettings) -> None:
    """Raise `KernelsimpError` for all that `assess` would refuse in its settings, before any work is done."""
    trial = _Trial(data, sample(data.test, settings.images, bench.seed), bench, settings)
    next(trial.suite(), None)  # unknown names and missing files
    check_draws(settings.noise_draws)
    whole_pixels(settings.shifts)
    check_attacks(settings.radii, settings.pgd_steps)


@dataclass(frozen=True, eq=False)
class _Trial:
    """What every network goes through; `test` is the part of the test split that is used."""

    data: Data
    test: Split
    bench: Bench
    settings: RobustnessSettings

    def suite(self) -> Suite:
        names = self.settings.corruptions
        if self.settings.cifar_c:
            return official_suite(Path(self.settings.cifar_c), self.test.geometry, names)
        return style_suite(self.test, self.bench.seed, names)

    def of(self, model: nn.Module, clean: Outcome, corruptions: tuple[CorruptedTop1, ...]) -> Robustness:
        bench, settings = self.bench, self.settings
        radii = [radius / 255 for radius in settings.radii]
        return Robustness(
            clean.top1,
            fmean(row.mean for row in corruptions),
            corruptions,
            weight_noise(model, self.test, bench, settings.weight_noise, settings.noise_draws),
            consistency(model, self.test, bench, settings.shifts),
            adversarial(model, self.test, bench, radii, settings.pgd_steps),
            calibration(model, self.test, bench),
            train_test_gap(model, self.data.train, clean, bench),
        )


def train_test_gap(model: nn.Module, train: Split, test: Outcome, bench: Bench) -> Gap | None:
    """Return accuracy on train minus that on test, in pp; None where there are no training images.

    As many training images as `test` has, seeded: their level says nothing alone, the network saw them.
    """
    part = sample(train, test.total, bench.seed)
    if len(part) == 0:
        return None
    seen = bench.measure(model, part).top1
    return Gap(seen, test.top1, seen - test.top1, min(len(part), test.total))


def sample(split: Split, count: int, seed: int) -> Split:
    """Return `count` seeded images of a split in their order; all of them where count is 0 or too large."""
    if count < 0:
        raise KernelsimpError(f"{count} images for robustness; expected 0 for all, or more")
    if count == 0 or count >= len(split):
        return split
    order = np.random.default_rng((seed, 3)).permutation(len(split))
    return split.subset(np.sort(order[:count]))
