"""The search for an accuracy budget: its steps, its record, and what judges it."""

import json
from pathlib import Path

import pytest
import torch
from networks import network, smooth_images
from saying import Heard
from solving import FAMILIES
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.files import read_sealed, write_sealed_text
from kernelsimp.models.layers import bank_from_model
from kernelsimp.settings import PlanSettings
from kernelsimp.solver.search import MOST_TRIALS, BudgetJudge, Trial, best_trial, next_share, search
from kernelsimp.solver.solve import Surveyed, calibrated_network, survey_layers
from kernelsimp.training.validation import EpochJudge


def trial(share: float, drop: float) -> Trial:
    return Trial(share, drop, 0.0, 0.0, "absolute")


def simulated(threshold: float) -> list[Trial]:
    """Search a network that meets the budget of 1 pp at shares of `threshold` and above."""
    trials: list[Trial] = []
    while (share := next_share(trials, 1.0, memorised=False)) is not None:
        trials.append(trial(share, 0.5 if share >= threshold else 2.0))
    return trials


@pytest.mark.parametrize("threshold", [0.03, 0.1, 0.24, 0.33, 0.5, 0.51, 0.777, 0.97])
def test_the_search_ends_within_a_step_of_the_least_share_that_meets_the_budget(threshold: float) -> None:
    trials = simulated(threshold)
    best = best_trial(trials, 1.0, memorised=False)
    assert threshold <= best.share <= threshold + 0.03
    assert len(trials) <= 12


def test_the_step_halves_when_the_direction_flips() -> None:
    shares = [item.share for item in simulated(0.24)]
    assert shares[:6] == pytest.approx([0.5, 0.34, 0.18, 0.26, 0.22, 0.24])


def test_nothing_is_tried_twice_for_ever() -> None:
    trials = [trial(0.5, 0.5)] * MOST_TRIALS
    assert next_share(trials, 1.0, memorised=False) is None


def test_where_no_trial_meets_the_budget_the_one_that_drops_least_is_best() -> None:
    trials = [trial(0.5, 3.0), trial(0.66, 2.0), trial(0.82, 2.5)]
    assert best_trial(trials, 1.0, memorised=False).share == 0.66


def test_on_memorised_images_changed_answers_and_kl_count_too() -> None:
    item = Trial(0.5, 0.1, 1.5, 0.02, "absolute")
    assert item.drop(memorised=False) == 0.1
    assert item.drop(memorised=True) == 2.0
    assert Trial(0.5, 3.0, 1.5, 0.02, "absolute").drop(memorised=True) == 3.0


# ---------------------------------------------------------------- on a network


@pytest.fixture(scope="module")
def surveyed() -> Surveyed:
    model = network()
    settings = PlanSettings(families=FAMILIES, cost="absolute")
    return survey_layers(
        calibrated_network(model, bank_from_model(model), smooth_images(48).split(16), 0), settings
    )


def batches_of(model: nn.Module, wrong: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Images labelled by the network itself, the first `wrong` of them wrongly."""
    images = smooth_images(60, 7)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % 4
    return [(images[:40], labels[:40]), (images[40:], labels[40:])]


def test_the_best_plan_within_the_budget_is_returned_and_every_trial_recorded(
    surveyed: Surveyed, tmp_path: Path
) -> None:
    judge = BudgetJudge(surveyed.calibrated.model, batches_of(surveyed.calibrated.model, wrong=6))
    assert not judge.memorised
    record = tmp_path / "search.json"
    found = search(surveyed, 5.0, judge, record=record)
    assert found.met
    assert found.notes == ()
    best = best_trial(found.trials, 5.0, memorised=False)
    assert best.accuracy_drop <= 5
    assert found.solution.plan.dof_after <= best.share * found.solution.plan.dof_before
    assert judge.trial(found.solution.best.reconstruction.model, best.share, "absolute") == best
    assert [item["share"] for item in json.loads(read_sealed(record))] == [
        item.share for item in found.trials
    ]


def test_a_budget_is_met_where_no_structure_reaches_the_first_share() -> None:
    model = network()
    bank = bank_from_model(model)
    settings = PlanSettings(families=("mirror-h",), cost="absolute")  # leaves 2 / 3 of a 3 x 3 kernel
    images = smooth_images(48).split(16)
    few = survey_layers(calibrated_network(model, bank, images, 0), settings)
    heard = Heard()
    found = search(few, 100.0, BudgetJudge(model, batches_of(model, wrong=6)), heard)
    assert found.met
    assert len(found.trials) == 1
    assert all(layer.changed.all() for layer in found.solution.plan.layers)
    left = found.solution.plan.dof_after / found.solution.plan.dof_before
    assert left > 0.5
    assert f"at {100 * left:.0f} % of the degrees of freedom: " in heard.notes[-1]


def test_a_share_is_measured_once_however_often_the_steps_lead_there(surveyed: Surveyed) -> None:
    measured: list[float] = []

    class Counting(BudgetJudge):
        def trial(self, model: nn.Module, share: float, cost: str) -> Trial:
            measured.append(share)
            return Trial(share, 0.0 if share >= 0.3 else 9.0, 0.0, 0.0, cost)

    model = surveyed.calibrated.model
    found = search(surveyed, 1.0, Counting(model, batches_of(model, wrong=6)))
    assert sorted(measured) == sorted({item.share for item in found.trials})
    assert len(measured) < len(found.trials)


def test_a_stopped_search_goes_on_where_it_was(surveyed: Surveyed, tmp_path: Path) -> None:
    judge = BudgetJudge(surveyed.calibrated.model, batches_of(surveyed.calibrated.model, wrong=6))
    whole, part = tmp_path / "whole.json", tmp_path / "part.json"
    first = search(surveyed, 5.0, judge, record=whole)
    write_sealed_text(part, json.dumps(json.loads(read_sealed(whole))[:2]))
    second = search(surveyed, 5.0, judge, record=part)
    assert second.trials == first.trials
    assert all(
        torch.equal(first.solution.tensors[name], second.solution.tensors[name])
        for name in first.solution.tensors
    )


def test_a_budget_that_nothing_meets_is_said_and_the_nearest_returned(surveyed: Surveyed) -> None:
    model = surveyed.calibrated.model

    class Broken(BudgetJudge):
        def trial(self, model: nn.Module, share: float, cost: str) -> Trial:
            return Trial(share, 9.0 - share, 0.0, 0.0, cost)

    found = search(surveyed, 0.0, Broken(model, batches_of(model, wrong=6)))
    assert not found.met
    assert found.solution.plan.dof_after / found.solution.plan.dof_before == pytest.approx(
        max(item.share for item in found.trials), abs=0.02
    )


def test_memorised_validation_images_are_warned_of_in_these_words(surveyed: Surveyed) -> None:
    judge = BudgetJudge(surveyed.calibrated.model, batches_of(surveyed.calibrated.model))
    assert judge.memorised
    found = search(surveyed, 60.0, judge)
    assert found.notes == (
        "the original network has 100.0 % right on validation images, as if trained on them: the budget also "
        "counts changed answers and KL; name other images with --holdout",
    )


@pytest.mark.parametrize(("wrong", "memorised"), [(0, True), (1, True), (2, False)])
def test_images_are_memorised_from_99_percent_on_for_a_budget_and_for_epochs(
    wrong: int, memorised: bool
) -> None:
    scores = torch.eye(4).repeat(25, 1)
    labels = scores.argmax(1)
    labels[:wrong] += 1
    batches = [(scores[:40], labels[:40]), (scores[40:], labels[40:])]
    assert BudgetJudge(nn.Identity(), batches).memorised == memorised
    rule = EpochJudge(batches, nn.Identity(), torch.device("cpu")).rule
    assert (rule == "divergence from the original on validation images") == memorised


@pytest.mark.parametrize(
    ("budget", "words"), [(-1.0, "--max-drop is -1"), (101.0, "--max-drop is 101"), (float("nan"), "nan")]
)
def test_a_budget_that_is_none_is_refused(surveyed: Surveyed, budget: float, words: str) -> None:
    judge = BudgetJudge(surveyed.calibrated.model, batches_of(surveyed.calibrated.model))
    with pytest.raises(KernelsimpError, match=words):
        search(surveyed, budget, judge)


def test_a_damaged_record_is_refused_in_one_line(surveyed: Surveyed, tmp_path: Path) -> None:
    record = tmp_path / "search.json"
    record.write_text("{")
    judge = BudgetJudge(surveyed.calibrated.model, batches_of(surveyed.calibrated.model))
    with pytest.raises(KernelsimpError, match=r"no record of a search .*; delete it to start again"):
        search(surveyed, 1.0, judge, record=record)


def test_without_validation_images_the_search_says_what_to_do(surveyed: Surveyed) -> None:
    with pytest.raises(KernelsimpError) as caught:
        BudgetJudge(surveyed.calibrated.model, [])
    assert (
        str(caught.value)
        == "--max-drop needs validation images; give some with --split, or choose another budget"
    )
