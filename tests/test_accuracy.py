"""Accuracy, its intervals and the paired tests, against published and independent values."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from saying import refusal
from scipy.stats import binomtest
from torch import Tensor, nn

from kernelsimp.data.sources import load_data
from kernelsimp.data.transforms import Preprocess, batches
from kernelsimp.evaluation.accuracy import (
    Outcome,
    correct_from,
    independent_interval,
    mcnemar,
    measure,
    paired_interval,
    stage,
    wilson,
)
from kernelsimp.models.architectures import build_model, load_weights
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.settings import DataSettings


def table(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.repeat([True, False, True, False], [both, gained, lost, neither])
    after = np.repeat([True, True, False, False], [both, gained, lost, neither])
    return before, after


class Fixed(nn.Module):
    """Gives the image itself, flattened, as its scores."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def scores(*rows: list[float]) -> Tensor:
    return torch.tensor(rows).reshape(len(rows), 1, 1, -1)


# --- measuring


def test_measure_counts_and_averages_over_batches() -> None:
    loader = [
        (scores([2.0, 0.0], [0.0, 1.0]), torch.tensor([0, 0])),
        (scores([0.0, 3.0]), torch.tensor([1])),
    ]
    outcome = measure(Fixed(), loader)
    assert outcome.correct.tolist() == [True, False, True]
    assert outcome.top1 == pytest.approx(200 / 3)
    expected = (np.log1p(np.exp(-2)) + np.log1p(np.exp(1)) + np.log1p(np.exp(-3))) / 3
    assert outcome.loss == pytest.approx(expected, rel=1e-6)
    assert outcome.top5 is None


def test_top5_counts_the_five_largest() -> None:
    images = torch.arange(10.0).repeat(10, 1).reshape(10, 1, 1, 10)
    outcome = measure(Fixed(), [(images, torch.arange(10))])
    assert outcome.top1 == 10
    assert outcome.top5 == 50


def test_measure_leaves_every_module_in_its_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    before = model[1].running_mean.clone()
    measure(model, [(scores([1.0, 2.0], [3.0, 4.0]), torch.tensor([0, 1]))])
    assert [module.training for module in model] == [True, False, True]
    assert torch.equal(model[1].running_mean, before)


def test_measure_runs_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2), nn.Dropout(0.999))
    outcome = measure(
        model, [(torch.eye(2).reshape(2, 1, 1, 2).repeat(50, 1, 1, 1), torch.tensor([0, 1] * 50))]
    )
    assert outcome.top1 == 100.0
    assert model[1].num_batches_tracked == 0
    assert model.training


def test_measure_refuses() -> None:
    images, labels = torch.zeros(2, 3, 8, 8), torch.tensor([0, 4])
    words = (
        r"the network cannot take images 3 x 8 x 8: .*expected input\[2, 3, 8, 8\] to have 1 channels.*"
        r"; see --input-size, --crop and --channels"
    )
    assert re.fullmatch(words, refusal(lambda: measure(nn.Conv2d(1, 2, 3), [(images, labels)])))
    words = "the network's output for 2 images 3 x 8 x 8 is (2, 3, 8, 8); expected (2, classes), one score a "
    assert refusal(lambda: measure(nn.Identity(), [(images, labels)])) == words + "class and image"
    words = "the network's output for images 3 x 8 x 8 holds NaN or Inf; check weights and --std"
    assert refusal(lambda: measure(Fixed(), [(images / 0, labels)])) == words
    words = "the network has 2 outputs, the data label 4; expected labels below 2: another --arch or --data"
    assert refusal(lambda: measure(Fixed(), [(torch.zeros(2, 1, 1, 2), labels)])) == words
    assert refusal(lambda: measure(Fixed(), [])) == "no images to measure on; expected at least one batch"


# --- Wilson


@pytest.mark.parametrize(("correct", "total"), [(932, 1017), (1, 10), (5, 7), (50, 100), (0, 20), (20, 20)])
def test_wilson_agrees_with_scipy(correct: int, total: int) -> None:
    interval = binomtest(correct, total).proportion_ci(method="wilson")
    assert wilson(correct, total) == pytest.approx((100 * interval.low, 100 * interval.high), abs=1e-9)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 100.0)


# --- McNemar


@pytest.mark.parametrize(
    ("gained", "lost"), [(0, 0), (1, 0), (0, 6), (5, 5), (3, 12), (40, 61), (1500, 1400)]
)
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(*table(17, gained, lost, 4)) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_needs_the_same_images() -> None:
    words = "3 images before, 2 after; expected the same images: a paired test needs pairs"
    assert refusal(lambda: mcnemar(np.ones(3, bool), np.ones(2, bool))) == words
    assert refusal(lambda: paired_interval(np.ones(3, bool), np.ones(2, bool))) == words


# --- the interval of a change


def slow_interval(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """Newcombe's method 10, written as the correlation of two Wilson intervals found by root search."""
    from scipy.optimize import brentq

    n, z = both + gained + lost + neither, 1.959963984540054

    def bounds(share: float) -> tuple[float, float]:
        def score(p: float) -> float:
            return (share - p) ** 2 - z * z * p * (1 - p) / n

        low = brentq(score, 0, share * (1 - 1e-9), xtol=1e-15) if share > 0 else 0.0
        return low, brentq(score, share + 1e-9, 1, xtol=1e-15) if share < 1 else 1.0

    after, before = (both + gained) / n, (both + lost) / n
    (l1, u1), (l2, u2) = bounds(after), bounds(before)
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    excess = both * neither - gained * lost
    phi = 0.0 if product == 0 else (max(excess - n / 2, 0) if excess > 0 else excess) / product**0.5
    root = np.array([[1, -phi], [-phi, 1]])
    down, up = np.array([after - l1, u2 - before]), np.array([u1 - after, before - l2])
    change = after - before
    return 100 * (change - (down @ root @ down) ** 0.5), 100 * (change + (up @ root @ up) ** 0.5)


@pytest.mark.parametrize(
    "cells", [(36, 12, 2, 0), (20, 12, 2, 16), (930, 4, 2, 81), (5, 0, 0, 5), (0, 3, 4, 0), (10, 0, 0, 0)]
)
def test_the_paired_interval_agrees_with_its_slow_twin(cells: tuple[int, int, int, int]) -> None:
    assert paired_interval(*table(*cells)) == pytest.approx(slow_interval(*cells), abs=1e-7)


def test_the_paired_interval_is_newcombes_published_example() -> None:
    low, high = paired_interval(*table(20, 12, 2, 16))
    assert (round(low / 100, 4), round(high / 100, 4)) == (0.0562, 0.3292)


def test_the_independent_interval_is_newcombes_published_example() -> None:
    assert independent_interval((48, 80), (56, 70)) == pytest.approx((5.24, 33.39), abs=0.005)
    assert independent_interval((56, 70), (48, 80)) == pytest.approx((-33.39, -5.24), abs=0.005)


def test_the_paired_interval_turns_round_with_its_arguments() -> None:
    before, after = table(80, 9, 3, 8)
    low, high = paired_interval(before, after)
    assert paired_interval(after, before) == pytest.approx((-high, -low))
    assert low < 6 < high


def test_the_paired_interval_covers_the_true_change_19_times_in_20() -> None:
    rng = np.random.default_rng(0)
    shares, n = [0.86, 0.06, 0.04, 0.04], 300
    hits = 0
    for _ in range(1000):
        low, high = paired_interval(*table(*rng.multinomial(n, shares)))
        hits += low <= 2 <= high
    assert 930 <= hits <= 975


# --- records


@pytest.mark.parametrize("total", [1, 7, 8, 9, 1017])
def test_a_stage_keeps_every_image(total: int) -> None:
    correct = np.random.default_rng(total).random(total) < 0.7
    record = stage("original", Outcome(correct, 0.25))
    assert (record.stage, record.correct, record.total, record.loss) == (
        "original",
        correct.sum(),
        total,
        0.25,
    )
    assert record.ci95 == wilson(int(correct.sum()), total)
    assert correct_from(record).tolist() == correct.tolist()


def test_a_damaged_stage_is_refused() -> None:
    record = stage("finetuned", Outcome(np.array([True, False, True]), 0.5))
    words = "stage 'finetuned': correct_bits is no base64; the report is damaged"
    assert refusal(lambda: correct_from(replace(record, correct_bits="?"))) == words
    words = "stage 'finetuned': correct_bits has 1 bytes for 30 images; the report is damaged"
    assert refusal(lambda: correct_from(replace(record, total=30))) == words
    words = "stage 'finetuned': correct_bits has 2 right, the stage says 3; the report is damaged"
    assert refusal(lambda: correct_from(replace(record, correct=3))) == words


# --- the real networks


@pytest.mark.parametrize(("network", "file", "right"), [("resnet20", "resnet20-12fca82f.th", 932)])
def test_a_published_network_has_its_measured_accuracy(
    shared_data: Path, network: str, file: str, right: int
) -> None:
    model = build_model(f"zoo:{network}")
    load_weights(model, load_checkpoint(shared_data / "checkpoints" / file))
    data = load_data(DataSettings(data=f"npz:{shared_data / 'cifar10-exact.npz'}"), 0)
    preprocess = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    outcome = measure(model, batches(data.test, preprocess, 128))
    assert (outcome.right, outcome.total) == (right, 1017)


@pytest.mark.slow
def test_mobilenet_on_the_imagenet_sample(shared_data: Path) -> None:
    model = build_model(f"{shared_data / 'nets.py'}:mobilenet_v1_025")
    load_weights(model, load_checkpoint(shared_data / "checkpoints" / "mobilenet_v1_025.safetensors"))
    settings = DataSettings(data=f"imagefolder:{shared_data / 'imagenet-sample'}", split="0:0:1000", crop=224)
    data = load_data(settings, 0)
    outcome = measure(model, batches(data.test, Preprocess((0.5,), (0.5,)), 100, workers=2))
    assert outcome.top1 == pytest.approx(57.2)
    assert outcome.top5 == pytest.approx(79.9)
