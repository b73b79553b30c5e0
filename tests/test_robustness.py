"""Robustness measures on networks whose answers are known in closed form."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from saying import refusal
from torch import Tensor, nn

from kernelsimp.data.corruptions import style_suite
from kernelsimp.data.images import Geometry
from kernelsimp.data.splits import Data, Split
from kernelsimp.data.stores import ArrayStore
from kernelsimp.data.transforms import Preprocess
from kernelsimp.evaluation.accuracy import Outcome, measure
from kernelsimp.evaluation.attacks import adversarial
from kernelsimp.evaluation.corrupted import (
    CorruptionTrial,
    corruption_change,
    measure_corrupted,
    relative_mce,
    scores,
)
from kernelsimp.evaluation.robustness import assess, sample, train_test_gap
from kernelsimp.evaluation.stability import (
    Bench,
    calibration,
    consistency,
    expected_calibration_error,
    shift_images,
    weight_noise,
)
from kernelsimp.settings import RobustnessSettings

BENCH = Bench(Preprocess(), batch_size=7)


class Linear(nn.Module):
    """Score 0 for class 0, sum(weight * image) + bias for class 1."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = bias

    def forward(self, images: Tensor) -> Tensor:
        score = (images * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack([torch.zeros_like(score), score], 1)


def split_of(images: Tensor, labels: Tensor) -> Split:
    return Split(ArrayStore(images, labels), range(len(images)), Geometry())


def noise_images(count: int = 60, side: int = 8, channels: int = 1) -> Split:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(60, 196, (count, channels, side, side), generator=generator, dtype=torch.uint8)
    return split_of(images, (images.float().mean((1, 2, 3)) > 127.5).long())


def brightness_net(side: int = 8) -> Linear:
    """Right on every one of `noise_images`: is the mean above 127.5 / 255?"""
    return Linear(torch.full((1, side, side), 100 / side**2), -50.0)


# --- adversaries


def test_fgsm_and_pgd_do_what_a_linear_network_allows() -> None:
    split = noise_images()
    images, labels = split.fetch(range(len(split)))
    margin = (images.mean((1, 2, 3)) - 0.5).abs()
    for radius in (0.002, 0.005, 0.01, 0.05):
        expected = 100 * float((margin > radius).float().mean())  # every pixel moves by the radius
        fgsm, pgd = adversarial(brightness_net(), split, BENCH, [radius], steps=10)
        assert (fgsm.method, fgsm.radius, fgsm.steps) == ("fgsm", radius, 1)
        assert fgsm.top1 == pytest.approx(expected)
        assert pgd.top1 == pytest.approx(expected)
    assert labels.float().mean() > 0.2


def test_attacks_go_through_normalising_and_stay_in_the_pixel_range() -> None:
    bright = split_of(torch.full((4, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]))
    seen = []

    class Watching(Linear):
        def forward(self, images: Tensor) -> Tensor:
            seen.append((float(images.detach().min()), float(images.detach().max())))
            return super().forward(images)

    model = Watching(torch.ones(1, 2, 2), -1.0)
    adversarial(model, bright, Bench(Preprocess((0.5,), (0.25,)), batch_size=2), [0.5], steps=3)
    assert max(high for _, high in seen) == pytest.approx(2.0)
    assert min(low for low, _ in seen) == pytest.approx(0.0)
    assert model.weight.grad is None


def test_attacks_do_not_depend_on_the_batch_size() -> None:
    seen: list[Tensor] = []

    class Recording(Linear):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.detach())
            return super().forward(images)

    def starts(batch_size: int) -> Tensor:
        seen.clear()
        bench = replace(BENCH, batch_size=batch_size)
        adversarial(Recording(torch.ones(1, 8, 8), 0.0), noise_images(), bench, [0.03], steps=1)
        return torch.cat(seen[2::4])  # a batch: FGSM looks twice, then PGD twice

    whole = starts(60)
    assert torch.equal(whole, starts(7))
    moved = whole - noise_images().fetch(range(60))[0]
    assert 0.025 < float(moved.abs().max()) <= 0.03 + 1e-6
    assert float(moved.std()) == pytest.approx(0.03 / 3**0.5, rel=0.05)


def test_attacks_refuse() -> None:
    words = "attack of radius 0 and 10 steps; expected above 0"
    assert refusal(lambda: adversarial(brightness_net(), noise_images(), BENCH, [0.1, 0])) == words
    words = "no images to measure on; expected at least one batch"
    assert refusal(lambda: adversarial(brightness_net(), noise_images().subset([]), BENCH, [0.1])) == words


# --- noise in weights


def test_weight_noise_leaves_the_network_as_it_was_and_follows_its_level() -> None:
    model, split = brightness_net(), noise_images()
    before = model.weight.detach().clone()
    low, high = weight_noise(model, split, BENCH, [1e-6, 30.0], draws=4)
    assert torch.equal(model.weight, before)
    assert (low.level, low.top1, low.spread, low.draws) == (1e-6, 100.0, 0.0, 4)
    assert high.top1 < 90
    assert high.spread > 0
    assert weight_noise(model, split, BENCH, [30.0], draws=4) == (high,)
    assert weight_noise(model, split, replace(BENCH, seed=1), [30.0], draws=4) != (high,)
    assert (
        refusal(lambda: weight_noise(model, split, BENCH, [1], 0))
        == "0 draws of weight noise; expected at least 1"
    )


def test_weight_noise_has_the_level_of_each_tensor() -> None:
    class Recording(Linear):
        def forward(self, images: Tensor) -> Tensor:
            found.append(self.weight.detach().clone())
            return super().forward(images)

    found: list[Tensor] = []
    weight = torch.cat([torch.full((1, 50, 50), 8.0), torch.zeros(3, 50, 50)])  # RMS 4
    split = split_of(torch.zeros(1, 4, 50, 50), torch.zeros(1).long())
    weight_noise(Recording(weight, 0.0), split, BENCH, [0.1], draws=1)
    assert float((found[0] - weight).std()) == pytest.approx(0.4, rel=0.05)


# --- flips and shifts


def test_shifted_moves_and_fills_with_black() -> None:
    images = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    assert shift_images(images, 1, 0)[0, 0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert shift_images(images, 0, -1)[0, 0].tolist() == [[2, 3, 0], [5, 6, 0], [8, 9, 0]]
    assert shift_images(images, -2, 1)[0, 0].tolist() == [[0, 7, 8], [0, 0, 0], [0, 0, 0]]
    assert float(shift_images(images, 5, 0).abs().sum()) == 0


def test_consistency_counts_equal_answers() -> None:
    images = torch.zeros(4, 1, 8, 8)
    for i, column in enumerate((0, 1, 2, 7)):
        images[i, 0, 4, column] = 1
    weight = torch.ones(1, 8, 8)
    weight[..., 4:] = -1  # answers 1 for a dot on the left half
    split = split_of(images, torch.tensor([1, 1, 1, 0]))
    found = consistency(Linear(weight, -0.5), split, BENCH, [1, 4])
    assert found.flip == 0.0
    # by 1, left loses the dot of column 0; the answer to nothing is 0
    assert found.shifts[0] == (1.0, (100 + 100 + 75 + 100) / 4)
    # by 4, down loses all, left loses three and brings 7 over, right takes three over and loses one
    assert found.shifts[1] == (4.0, (25 + 100 + 0 + 25) / 4)
    assert refusal(lambda: consistency(brightness_net(), split, BENCH, [0.5])) == (
        "shifts 0.5; expected whole pixels from 1"
    )


# --- confidence


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, True, True, False, False, True])
    # (4/6) |0.75 - 0.95| + (2/6) |0.5 - 0.55|
    assert expected_calibration_error(confidence, correct) == pytest.approx(100 * (4 * 0.2 + 2 * 0.05) / 6)
    assert expected_calibration_error(np.ones(3), np.ones(3, bool)) == 0
    assert expected_calibration_error(np.array([]), np.array([], bool)) == 0


def test_calibration_of_a_network() -> None:
    logit = float(np.log(4))  # softmax 0.8
    split = split_of(torch.ones(10, 1, 1, 1), torch.tensor([1] * 6 + [0] * 4))
    found = calibration(Linear(torch.full((1, 1, 1), logit), 0.0), split, BENCH)
    assert found.error == pytest.approx(20.0, abs=1e-4)
    assert found.confidence == pytest.approx(80.0, abs=1e-4)
    assert found.top1 == pytest.approx(60.0)
    assert found.loss == pytest.approx(-0.6 * np.log(0.8) - 0.4 * np.log(0.2), abs=1e-6)


# --- corrupted pictures, in pairs


def a_cell(*right: int) -> np.ndarray:
    return np.array(right, dtype=bool)


def test_change_and_mce_by_hand() -> None:
    before = CorruptionTrial(
        "original",
        a_cell(1, 1, 1, 0),
        {("fog", 1): a_cell(1, 1, 0, 0), ("fog", 2): a_cell(1, 0, 0, 0), ("blur", 1): a_cell(1, 1, 1, 0)},
    )
    after = CorruptionTrial(
        "simplified",
        a_cell(1, 1, 0, 0),
        {("fog", 1): a_cell(1, 1, 1, 0), ("fog", 2): a_cell(0, 1, 1, 0), ("blur", 1): a_cell(1, 0, 1, 0)},
    )
    change = corruption_change(before, after)
    assert change.mce == pytest.approx(100 * (3 / 5 + 2 / 1) / 2)
    assert change.mean_change_pp == pytest.approx((62.5 + 50) / 2 - (37.5 + 75) / 2)
    assert (change.clean.before, change.clean.after, change.clean.change_pp) == (75.0, 50.0, -25.0)
    assert [(cell.name, cell.severity, cell.change_pp) for cell in change.cells] == [
        ("fog", 1, 25.0),
        ("fog", 2, 25.0),
        ("blur", 1, -25.0),
    ]
    assert (change.images_better, change.images_worse) == (1, 1)
    assert change.sign_p == 1.0
    assert all(cell.mcnemar_p == 1.0 for cell in change.cells)
    assert scores(before.cells)[0].top1 == (50.0, 25.0)
    same = corruption_change(before, before)
    assert (same.mce, same.mean_change_pp, same.images_better, same.sign_p) == (100.0, 0.0, 0, 1.0)


def test_mce_is_null_where_the_original_makes_no_error() -> None:
    assert relative_mce({("fog", 1): a_cell(1, 1)}, {("fog", 1): a_cell(1, 0)}) is None


def test_networks_that_saw_different_corruptions_are_not_compared() -> None:
    one = CorruptionTrial("a", a_cell(1), {("fog", 1): a_cell(1)})
    other = CorruptionTrial("b", a_cell(1), {("fog", 2): a_cell(1)})
    words = "a and b saw different corruptions; expected the same"
    assert refusal(lambda: corruption_change(one, other)) == words


def test_every_network_sees_the_same_corrupted_pictures() -> None:
    split = noise_images(20)
    models = {"one": brightness_net(), "two": brightness_net()}
    cells = measure_corrupted(models, style_suite(split, 0, ["gaussian_noise", "brightness"]), BENCH)
    assert list(cells["one"]) == [(n, s) for n in ("gaussian_noise", "brightness") for s in range(1, 6)]
    assert all(np.array_equal(cells["one"][cell], cells["two"][cell]) for cell in cells["one"])
    bright = cells["one"]["brightness", 5]  # + 0.3: everything is above one half now
    assert bright.tolist() == (split.labels == 1).tolist()
    assert refusal(lambda: measure_corrupted(models, [], BENCH)) == (
        "no corruption to measure under; expected at least one"
    )


# --- everything together


def test_the_gap_is_train_minus_test() -> None:
    train = split_of(torch.ones(30, 1, 1, 1), torch.ones(30).long())
    model = Linear(torch.ones(1, 1, 1), 0.0)
    gap = train_test_gap(model, train, Outcome(a_cell(1, 0, 0, 0), 0.0), BENCH)
    assert gap is not None
    assert (gap.train_top1, gap.test_top1, gap.gap_pp, gap.images) == (100.0, 25.0, 75.0, 4)
    assert train_test_gap(model, train.subset([]), Outcome(a_cell(1), 0.0), BENCH) is None


def test_a_sample_is_seeded_and_in_order() -> None:
    split = noise_images(30)
    part = sample(split, 10, 1)
    assert len(part) == 10
    assert part.places.tolist() == sorted(set(part.places.tolist()))
    assert part.places.tolist() == sample(split, 10, 1).places.tolist()
    assert part.places.tolist() != sample(split, 10, 2).places.tolist()
    assert sample(split, 0, 1) is split
    assert sample(split, 31, 1) is split
    assert refusal(lambda: sample(split, -1, 0)) == "-1 images for robustness; expected 0 for all, or more"


def test_the_whole_report_is_json_and_agrees_with_its_parts() -> None:
    test = noise_images(24)
    data = Data("x", noise_images(50), test.subset([]), test, 2)
    settings = RobustnessSettings(images=20, corruptions=("fog", "brightness"), noise_draws=1, pgd_steps=2)
    worse = brightness_net()
    worse.bias = -52.0
    report = assess({"original": brightness_net(), "simplified": worse}, data, BENCH, settings)
    assert report.suite == "CIFAR-10-C style"
    assert report.images == 20
    plain = json.loads(json.dumps(asdict(report)))
    assert set(plain["models"]) == {"original", "simplified"}
    original, simplified = report.models["original"], report.models["simplified"]
    part = sample(test, 20, 0)
    assert original.clean_top1 == measure(brightness_net(), BENCH.batches(part)).top1 == 100.0
    assert simplified.clean_top1 == measure(worse, BENCH.batches(part)).top1 < 100.0
    (change,) = report.changes
    assert (change.before, change.after) == ("original", "simplified")
    assert change.clean.change_pp == pytest.approx(simplified.clean_top1 - 100.0)
    assert change.mean_change_pp == pytest.approx(
        simplified.mean_corrupted_top1 - original.mean_corrupted_top1
    )
    assert [len(row.top1) for row in original.corruptions] == [5, 5]
    assert [row.radius for row in original.adversarial[::2]] == [0.5 / 255, 1 / 255, 2 / 255]
    assert original.gap is not None
    assert refusal(lambda: assess({}, data, BENCH)) == "no network to try; expected at least one"
