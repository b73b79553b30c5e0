"""What judges a budget: holdouts, metrics, output errors, layers alone, layers set free again."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import network, smooth_images
from solving import FAMILIES, all_exact
from torch import Tensor, nn

from kernelsimp.commands.planner import judge_memorised
from kernelsimp.data.holdout import holdout_split
from kernelsimp.data.sources import load_data
from kernelsimp.data.splits import Data
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome
from kernelsimp.evaluation.metric import UserMetric, load_metric
from kernelsimp.models.layers import bank_from_model
from kernelsimp.records.plan import Plan
from kernelsimp.settings import DataSettings, PlanSettings, Settings
from kernelsimp.solver.chosen import Chosen
from kernelsimp.solver.controls import ControlCase, held_arm, run_controls
from kernelsimp.solver.distance import DistanceJudge, relative_error
from kernelsimp.solver.lagrangian import choose_for_dof
from kernelsimp.solver.search import BudgetJudge, revert_worst, search
from kernelsimp.solver.sensitivity import layer_losses
from kernelsimp.solver.solve import PlanTrial, Surveyed, calibrated_network, solve_at_budget, survey_layers

# ---------------------------------------------------------------- other images


def write_images(path: Path, seed: int, **counts: int) -> Path:
    draw = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for split, count in counts.items():
        arrays[f"{split}_images"] = draw.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 3
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.fixture
def data(tmp_path: Path) -> tuple[Data, DataSettings]:
    path = write_images(tmp_path / "own.npz", 0, train=12, val=6, test=9)
    settings = DataSettings(data=f"npz:{path}")
    return load_data(settings, 0), settings


def test_a_holdout_is_a_split_of_the_data_or_the_test_split_of_other_data(
    data: tuple[Data, DataSettings], tmp_path: Path
) -> None:
    own, settings = data
    assert holdout_split(own, settings, "train", 0) is own.train
    assert holdout_split(own, settings, "val", 0) is own.val
    other = write_images(tmp_path / "other.npz", 1, test=7)
    assert len(holdout_split(own, settings, f"npz:{other}", 0)) == 7


def test_the_test_split_is_no_holdout_under_any_name(data: tuple[Data, DataSettings], tmp_path: Path) -> None:
    own, settings = data
    with pytest.raises(KernelsimpError) as caught:
        holdout_split(own, settings, "test", 0)
    words = "--holdout test: the test split is reported and chooses nothing; name train, val or other data"
    assert str(caught.value) == words
    with np.load(str(settings.data).removeprefix("npz:")) as arrays:
        copied = {"test_images": arrays["test_images"][2:5], "test_labels": arrays["test_labels"][2:5]}
    np.savez(tmp_path / "copy.npz", **copied)
    with pytest.raises(KernelsimpError) as caught:
        holdout_split(own, settings, f"npz:{tmp_path / 'copy.npz'}", 0)
    assert str(caught.value).endswith(
        "copy.npz: 3 of its 3 images are in the test split, which chooses nothing; name others"
    )


def test_an_unknown_holdout_and_one_of_other_classes_are_refused(
    data: tuple[Data, DataSettings], tmp_path: Path
) -> None:
    own, settings = data
    with pytest.raises(KernelsimpError, match="--holdout is 'vall'; did you mean 'val'"):
        holdout_split(own, settings, "vall", 0)
    images = np.zeros((2, 6, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "many.npz", test_images=images, test_labels=np.array([0, 9]))
    with pytest.raises(KernelsimpError, match=r"has label 9, the data classes 0\.\.2"):
        holdout_split(own, settings, f"npz:{tmp_path / 'many.npz'}", 0)


# ---------------------------------------------------------------- metrics

CODE = """
import torch
def brightness(model, batches):
    assert not model.training and not torch.is_grad_enabled()
    return -sum(float((model(images) ** 2).mean()) for images, _ in batches)
def words(model, batches):
    return "good"
def nothing(model, batches):
    return float("nan")
def raises(model, batches):
    raise ValueError("no such thing")
number = 3
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def test_a_metric_is_called_with_the_network_and_its_batches(code: Path) -> None:
    model = nn.Conv2d(3, 2, 1)
    metric = load_metric(f"{code}:brightness")
    assert metric(model, [(torch.zeros(2, 3, 4, 4), torch.zeros(2))]) < 0
    assert model.training


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("words", r"returned a str; expected a number"),
        ("nothing", "returned nan; expected a finite number"),
        ("raises", "ValueError: no such thing; mend the function"),
    ],
)
def test_a_metric_that_gives_no_number_is_one_line(code: Path, name: str, words: str) -> None:
    with pytest.raises(KernelsimpError, match=words):
        load_metric(f"{code}:{name}")(nn.Identity(), [])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mine", r"--metric is 'mine'; expected file\.py:callable"),
        ("absent.py:f", r"absent\.py: no such file; expected file\.py:callable"),
        ("{code}:brightnes", "no function 'brightnes'; did you mean 'brightness'"),
        ("{code}:number", "no function 'number'"),
    ],
)
def test_a_metric_that_is_not_there_is_one_line(code: Path, spec: str, words: str) -> None:
    with pytest.raises(KernelsimpError, match=words):
        load_metric(spec.format(code=code))


# ---------------------------------------------------------------- the judge


@pytest.fixture(scope="module")
def surveyed() -> Surveyed:
    model = network()
    settings = PlanSettings(families=FAMILIES, cost="absolute")
    return survey_layers(
        calibrated_network(model, bank_from_model(model), torch.split(smooth_images(48), 16), 0), settings
    )


@pytest.fixture(scope="module")
def tried(surveyed: Surveyed) -> PlanTrial:
    return solve_at_budget(surveyed, lambda tables: choose_for_dof(tables, 0.4), "absolute").best


def labelled(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    images = smooth_images(40, 7)
    with torch.no_grad():
        return [(images, (model(images).argmax(1) + (torch.arange(40) < 4)) % 4)]


def test_a_metric_judges_in_place_of_accuracy(surveyed: Surveyed, tried: PlanTrial) -> None:
    seen: list[int] = []

    def figure(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        seen.append(len(list(batches)))
        return 7.0 if len(seen) == 1 else 4.5

    judge = BudgetJudge(
        surveyed.calibrated.model, labelled(surveyed.calibrated.model), UserMetric("mine", figure)
    )
    assert not judge.memorised
    assert judge.trial(tried.reconstruction.model, 0.4, "absolute").accuracy_drop == 2.5
    assert seen == [1, 1]


def test_a_network_that_is_no_classifier_is_judged_by_its_output(
    surveyed: Surveyed, tried: PlanTrial
) -> None:
    class Flat(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.inner(x)
            return made[:, :, None]

    original, changed = Flat(surveyed.calibrated.model), Flat(tried.reconstruction.model)
    batches = labelled(surveyed.calibrated.model)
    judge = BudgetJudge(original, batches)
    expected = relative_error(original, changed, [images for images, _ in batches])
    assert 0 < expected < 1
    assert judge.drop(changed) == pytest.approx(100 * expected)
    assert judge.drop(original) == 0


def test_the_search_takes_a_metric(surveyed: Surveyed) -> None:
    judge = DistanceJudge(surveyed.calibrated.model, [smooth_images(40, 7)])
    metric = UserMetric("nearness", lambda model, _: -judge.distance(model).divergence)
    found = search(
        surveyed, 3e-5, BudgetJudge(surveyed.calibrated.model, labelled(surveyed.calibrated.model), metric)
    )
    assert found.met
    kept = judge.distance(found.solution.best.reconstruction.model).divergence
    assert kept <= 3e-5
    assert any(item.accuracy_drop > 3e-5 for item in found.trials)


# ---------------------------------------------------------------- layers alone, and set free


def test_each_layers_loss_is_that_of_the_network_with_this_layer_alone(
    surveyed: Surveyed, tried: PlanTrial
) -> None:
    losses = layer_losses(surveyed.calibrated, tried)
    assert list(losses) == [layer.name for layer in tried.plan.layers if layer.changed.any()]
    model = network()
    state = model.state_dict()
    changed = {"conv1.weight", "bn1.running_mean"}
    model.load_state_dict(
        {
            name: tried.reconstruction.tensors.get(name, state[name]) if name in changed else state[name]
            for name in state
        }
    )
    expected = (
        DistanceJudge(surveyed.calibrated.model, surveyed.calibrated.held_back).distance(model).divergence
    )
    assert losses["conv1"] == pytest.approx((tried.predicted["conv1"], expected))
    assert all(measured > 0 for _, measured in losses.values())


def test_the_worst_layers_are_set_free_first_and_as_few_as_needed(
    surveyed: Surveyed, tried: PlanTrial
) -> None:
    losses = layer_losses(surveyed.calibrated, tried)
    worst = sorted(losses, key=lambda name: -losses[name][1])
    judged: list[nn.Module] = []

    def second(model: nn.Module) -> bool:
        judged.append(model)
        return len(judged) == 2

    saved = revert_worst(surveyed, tried, second)
    assert saved is not None
    free = {layer.name for layer in saved.plan.layers if not layer.changed.any()}
    assert free == set(worst[:2])
    assert all_exact(saved.reconstruction.model, saved.plan)
    assert revert_worst(surveyed, tried, lambda _: False) is None


# ---------------------------------------------------------------- arms under training


@pytest.mark.parametrize(("values", "half"), [(True, False), (False, False), (False, True)])
def test_a_held_arm_trains_only_what_its_control_leaves_free(
    surveyed: Surveyed, tried: PlanTrial, values: bool, half: bool
) -> None:
    case = ControlCase(surveyed, tried)
    for arm in run_controls(case, ["cell masks", "random subspaces", "equal-norm noise"], seed=1):
        before = {name: value.clone() for name, value in arm.model.state_dict().items()}
        with held_arm(arm, surveyed.calibrated.bank, values=values) as model:
            optimiser = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
            for _ in range(3):
                optimiser.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = model(smooth_images(8, 3)).float().square().sum()
                loss.backward()
                optimiser.step()
        after = arm.model.state_dict()
        assert sorted(after) == sorted(before)
        for name, constraint in arm.constraints.items():
            moved = (after[f"{name}.weight"] - before[f"{name}.weight"]).double()
            held = torch.cat([piece.index for piece in constraint.pieces])
            rows = moved.reshape(-1, constraint.cells)
            outside = rows - constraint.project(moved).reshape(rows.shape)
            assert float(outside.norm()) <= 1e-5 * max(1.0, float(rows.norm()))
            if values:
                assert not rows[held].any()
        assert any((after[name] != before[name]).any() for name in after)


def test_a_freed_layer_counts_nothing(surveyed: Surveyed, tried: PlanTrial) -> None:
    calls = iter([True])
    saved = revert_worst(surveyed, tried, lambda _: next(calls))
    assert saved is not None
    name = next(layer.name for layer in saved.plan.layers if not layer.changed.any())
    layer = saved.plan.layer(name)
    assert layer.dof_after == layer.dof_before
    assert not layer.found.any()
    assert saved.predicted[name] == 0
    assert replace(saved).plan.dof_after > tried.plan.dof_after


# ---------------------------------------------------------------- validation images known by heart


@dataclass(frozen=True)
class Made:
    """A network that is only its module."""

    model: nn.Module

    def module(self) -> nn.Module:
        return self.model


def judged(
    right: int, moved: float, budget: float | None, test_top1: float, total: int = 1000, **plan: str
) -> tuple[bool, str]:
    """Judge a run whose original has `right` of 40 validation images right; return (met, what was said)."""
    model = network()
    images = smooth_images(40)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[right:] = (labels[right:] + 1) % 4
    judge = BudgetJudge(model, [(images, labels)])
    other = copy.deepcopy(model)
    with torch.no_grad():
        weight = next(item for item in other.parameters() if item.ndim == 4)
        weight.add_(moved * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    chosen = Chosen(Plan(("free",), ()), Made(other), judge=judge)  # type: ignore[arg-type]
    settings = Settings(plan=PlanSettings(max_drop=budget, **plan))  # type: ignore[arg-type]
    correct = np.arange(total) < total * test_top1 / 100
    again, notes = judge_memorised(settings, Outcome(correct, 0.1), chosen)
    assert again.plan is chosen.plan
    assert again.network is chosen.network
    return again.met, " ".join(notes)


def test_a_budget_met_on_images_known_by_heart_is_judged_by_changed_answers_too() -> None:
    met, said = judged(38, 1.0, 0.5, test_top1=80.0)
    assert not met
    start = "the original network has 95.0 % right on validation images and 80.0 % on the test split"
    assert said.startswith(start)
    assert "beyond the budget; name other images with --holdout" in said
    met, said = judged(38, 0.0, 0.5, test_top1=80.0)
    assert met
    assert "0.00 % of the answers changed, KL 0.0000, within the budget" in said
    met, _ = judged(38, 0.001, 0.0, test_top1=80.0)
    assert not met
    met, said = judged(38, 0.001, None, test_top1=80.0)  # where none was named the usual one holds
    assert met, said


def test_a_small_gap_a_holdout_and_no_judge_leave_the_verdict_as_it_is() -> None:
    assert judged(38, 1.0, 0.5, test_top1=92.1) == (True, "")
    assert judged(38, 1.0, 0.5, test_top1=80.0, holdout="train") == (True, "")
    assert judged(9, 1.0, 0.5, test_top1=15.0, total=60) == (True, "")  # 22.5 % against 15.0 %: chance
    met, said = judged(40, 1.0, 0.5, test_top1=80.0)
    assert met  # the search has counted changed answers all along
    assert said.endswith("so it was probably trained on the former; name other images with --holdout")
