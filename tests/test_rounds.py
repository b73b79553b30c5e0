"""Progressive rounds: the schedule, its back-offs, kappa, and labels that stay those of the first network."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from networks import network, smooth_images
from solving import FAMILIES

from kernelsimp.models.layers import bank_from_model
from kernelsimp.settings import PlanSettings
from kernelsimp.solver.lagrangian import choose_for_dof
from kernelsimp.solver.rounds import (
    HARMLESS,
    MOST_HALVINGS,
    Schedule,
    relabel_plan,
    run_rounds,
    with_first_verdicts,
)
from kernelsimp.solver.solve import calibrated_network, solve_at_budget, survey_layers


@dataclass
class Simulated:
    """A runner whose network is the place it has reached; losses are laws of the step."""

    excess: Any = lambda place, step: 1.0
    lost: Any = lambda place: None
    tried: list[float] = field(default_factory=list)
    trained: list[float] = field(default_factory=list)
    known: Any = ((), ())
    written: list[Any] = field(default_factory=list)

    def simplify(self, network: Any, place: float) -> tuple[Any, Any]:
        self.tried.append(round(place, 6))
        step = place - network
        predicted = step
        distance = SimpleNamespace(divergence=3 * predicted * self.excess(place, step))
        losses = {"a": predicted / 2, "b": predicted / 2}
        best = SimpleNamespace(
            predicted=losses, distance=distance, reconstruction=SimpleNamespace(buffers_changed=())
        )
        plan = SimpleNamespace(dof_after=100 * (1 - place), dof_before=100)
        return SimpleNamespace(best=best, plan=plan, notes=()), place

    def tune(self, network: Any, plan: Any) -> Any:
        self.trained.append(round(network, 6))
        return network

    def drop(self, network: Any) -> float | None:
        return self.lost(network)  # type: ignore[no-any-return]

    def recall(self) -> Any:
        return self.known

    def remember(self, results: Any, records: Any) -> None:
        self.written.append((tuple(results), tuple(records)))


def way_of(runner: Simulated, count: int, most_drop: float | None = None) -> Schedule:
    return run_rounds(0.0, runner, count, most_drop)  # type: ignore[arg-type]


def test_a_smooth_way_is_gone_in_equal_steps_and_knows_its_kappa() -> None:
    runner = Simulated()
    schedule = way_of(runner, 4)
    assert runner.tried == runner.trained == [0.25, 0.5, 0.75, 1.0]
    assert [item.dof for item in schedule.records] == pytest.approx([0.75, 0.5, 0.25, 0.0])
    assert all(item.kept and item.kappa == pytest.approx(3) for item in schedule.records)
    assert schedule.met
    assert len(schedule.results) == 4


def test_one_round_goes_straight_to_the_budget() -> None:
    runner = Simulated()
    assert len(way_of(runner, 1).results) == 1
    assert runner.tried == [1.0]


def test_a_round_that_loses_twice_what_kappa_says_is_taken_again_at_half_the_step() -> None:
    runner = Simulated(excess=lambda place, step: 5.0 if place > 0.45 and step > 0.2 else 1.0)
    schedule = way_of(runner, 4)
    assert runner.tried == [0.25, 0.5, 0.375, 0.625, 0.5, 0.75, 0.625, 0.875, 0.75, 1.0, 0.875, 1.0]
    assert [item.kept for item in schedule.records[:3]] == [True, False, True]
    assert schedule.records[1].surprising
    assert 0.5 not in runner.trained[:1]
    assert runner.trained[-1] == 1.0
    kept = [item.kappa for item in schedule.records if item.kept]
    assert kept == pytest.approx([3.0] * len(kept))


def test_the_factor_of_surprise_is_two() -> None:
    under, over = (Simulated(excess=lambda p, s, f=f: f if p > 0.3 else 1.0) for f in (1.99, 2.01))
    assert not any(item.surprising for item in way_of(under, 4).records)
    assert way_of(over, 4).records[1].surprising


def test_losses_too_small_to_matter_surprise_nobody() -> None:
    tiny = HARMLESS / 10
    runner = Simulated(excess=lambda place, step: tiny * (100 if place > 0.3 else 1) / 300)
    assert all(item.kept and not item.surprising for item in way_of(runner, 4).records)


def test_a_way_without_an_accuracy_budget_always_arrives() -> None:
    runner = Simulated(excess=lambda place, step: 50.0**place)
    schedule = way_of(runner, 2)
    assert runner.tried[-1] == 1.0
    assert schedule.met
    assert schedule.records[-1].kept
    assert len(schedule.records) <= 2 * 2**MOST_HALVINGS * (MOST_HALVINGS + 1)


def test_a_loss_that_is_not_a_number_is_a_surprise_at_once() -> None:
    runner = Simulated(excess=lambda place, step: float("nan") if step > 0.3 else 1.0)
    assert [item.kept for item in way_of(runner, 2).records][:2] == [False, True]
    assert 0.5 not in runner.trained[:1]


@pytest.mark.parametrize(
    ("runner", "count", "most_drop"),
    [
        (lambda: Simulated(excess=lambda p, step: 5.0 if p > 0.45 and step > 0.2 else 1.0), 4, None),
        (lambda: Simulated(lost=lambda place: 10 * place), 4, 6.0),
    ],
)
def test_a_way_that_is_stopped_after_any_round_goes_on_to_the_same_end(
    runner: Any, count: int, most_drop: float | None
) -> None:
    whole = runner()
    expected = way_of(whole, count, most_drop)
    assert len(whole.written) == len(expected.records)
    for results, records in whole.written:
        if results:
            later = runner()
            later.known = (results, records)
            schedule = way_of(later, count, most_drop)
            assert schedule.records == expected.records
            assert [result.tuned for result in schedule.results] == [
                result.tuned for result in expected.results
            ]
            assert len(later.tried) == len(expected.records) - len(records)


def test_an_accuracy_budget_ends_the_way_at_the_last_round_within_it() -> None:
    runner = Simulated(lost=lambda place: 10 * place)
    schedule = way_of(runner, 4, most_drop=6.0)
    assert schedule.met
    reached = schedule.results[-1].tuned
    assert 0.56 <= reached <= 0.6  # type: ignore[operator]
    assert not schedule.records[-1].kept
    assert all(item.drop <= 6 for item in schedule.records if item.kept and item.drop is not None)


def test_a_budget_that_no_round_meets_is_said() -> None:
    schedule = way_of(Simulated(lost=lambda place: 50.0), 2, most_drop=1.0)
    assert not schedule.met
    assert len(schedule.results) == 1
    assert [item.kept for item in schedule.records] == [False] * (MOST_HALVINGS + 1)


def test_labels_of_a_later_round_are_those_of_the_first_network() -> None:
    settings = PlanSettings(families=FAMILIES, cost="absolute")
    model, images = network(), torch.split(smooth_images(48), 16)
    first = survey_layers(calibrated_network(model, bank_from_model(model), images, 0), settings)
    early = solve_at_budget(first, lambda tables: choose_for_dof(tables, 0.7), "absolute")
    made = early.best.reconstruction.model
    again = survey_layers(calibrated_network(made, bank_from_model(made), images, 0), settings)
    assert sum(int(item.sum()) for item in again.prepared.found.values()) > 50  # exact structures
    bound = with_first_verdicts(again.prepared, first.prepared)
    assert all(np.array_equal(bound.found[name], first.prepared.found[name]) for name in bound.found)
    later = solve_at_budget(
        replace(again, prepared=bound), lambda tables: choose_for_dof(tables, 0.5), "absolute"
    )
    plan = relabel_plan(later.plan, first.prepared)
    for layer in plan.layers:
        assert np.array_equal(layer.choice, later.plan.layer(layer.name).choice)
        known = first.prepared.found[layer.name].reshape(layer.choice.shape)
        assert not (layer.found & ~known).any()
    stem = plan.layer("stem")
    zero = plan.structures.index("zero")
    assert np.allclose(stem.residual[stem.choice == zero], 1.0)
    assert not stem.residual[~stem.changed].any()


def test_kernels_of_an_earlier_round_stay_simplified() -> None:
    settings = PlanSettings(families=FAMILIES, cost="absolute")
    model, images = network(), torch.split(smooth_images(48), 16)
    early = solve_at_budget(
        survey_layers(calibrated_network(model, bank_from_model(model), images, 0), settings),
        lambda tables: choose_for_dof(tables, 0.7),
        "absolute",
    )
    made = early.best.reconstruction.model
    again = survey_layers(calibrated_network(made, bank_from_model(made), images, 0), settings)
    later = solve_at_budget(again, lambda tables: choose_for_dof(tables, 0.5), "absolute")
    before = np.concatenate([layer.changed.ravel() for layer in early.plan.layers])
    after = np.concatenate([layer.changed.ravel() for layer in later.plan.layers])
    assert before.sum() > 20
    assert (before & ~after).sum() == 0
    assert torch.isfinite(torch.tensor(later.best.distance.divergence))
