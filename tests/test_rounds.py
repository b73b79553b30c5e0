"""Progressive rounds: the way, its back-offs, kappa, and labels that stay those of the first network."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_road import FAMILIES, network, smooth_images

from kernelsimp.models.layers import bank_from_model
from kernelsimp.settings import PlanSettings
from kernelsimp.simplify.lagrangian import choose_for_dof
from kernelsimp.simplify.rounds import HARMLESS, MOST_HALVINGS, Way, following, go, relabelled
from kernelsimp.simplify.solve import ground_of, look, travel


@dataclass
class Simulated:
    """A guide whose network is the place it has reached; losses are laws of the step."""

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
            predicted=losses, distance=distance, walked=SimpleNamespace(buffers_changed=())
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

    def remember(self, legs: Any, records: Any) -> None:
        self.written.append((tuple(legs), tuple(records)))


def way_of(guide: Simulated, count: int, most_drop: float | None = None) -> Way:
    return go(0.0, guide, count, most_drop)  # type: ignore[arg-type]


def test_a_smooth_way_is_gone_in_equal_steps_and_knows_its_kappa() -> None:
    guide = Simulated()
    way = way_of(guide, 4)
    assert guide.tried == guide.trained == [0.25, 0.5, 0.75, 1.0]
    assert [item.dof for item in way.records] == pytest.approx([0.75, 0.5, 0.25, 0.0])
    assert all(item.kept and item.kappa == pytest.approx(3) for item in way.records)
    assert way.met
    assert len(way.legs) == 4


def test_one_round_goes_straight_to_the_budget() -> None:
    guide = Simulated()
    assert len(way_of(guide, 1).legs) == 1
    assert guide.tried == [1.0]


def test_a_round_that_loses_twice_what_kappa_says_is_taken_again_at_half_the_step() -> None:
    guide = Simulated(excess=lambda place, step: 5.0 if place > 0.45 and step > 0.2 else 1.0)
    way = way_of(guide, 4)
    assert guide.tried == [0.25, 0.5, 0.375, 0.625, 0.5, 0.75, 0.625, 0.875, 0.75, 1.0, 0.875, 1.0]
    assert [item.kept for item in way.records[:3]] == [True, False, True]
    assert way.records[1].surprising
    assert 0.5 not in guide.trained[:1]
    assert guide.trained[-1] == 1.0
    kept = [item.kappa for item in way.records if item.kept]
    assert kept == pytest.approx([3.0] * len(kept))


def test_the_factor_of_surprise_is_two() -> None:
    under, over = (Simulated(excess=lambda p, s, f=f: f if p > 0.3 else 1.0) for f in (1.99, 2.01))
    assert not any(item.surprising for item in way_of(under, 4).records)
    assert way_of(over, 4).records[1].surprising


def test_losses_too_small_to_matter_surprise_nobody() -> None:
    tiny = HARMLESS / 10
    guide = Simulated(excess=lambda place, step: tiny * (100 if place > 0.3 else 1) / 300)
    assert all(item.kept and not item.surprising for item in way_of(guide, 4).records)


def test_a_way_without_an_accuracy_budget_always_arrives() -> None:
    guide = Simulated(excess=lambda place, step: 50.0**place)
    way = way_of(guide, 2)
    assert guide.tried[-1] == 1.0
    assert way.met
    assert way.records[-1].kept
    assert len(way.records) <= 2 * 2**MOST_HALVINGS * (MOST_HALVINGS + 1)


def test_a_loss_that_is_not_a_number_is_a_surprise_at_once() -> None:
    guide = Simulated(excess=lambda place, step: float("nan") if step > 0.3 else 1.0)
    assert [item.kept for item in way_of(guide, 2).records][:2] == [False, True]
    assert 0.5 not in guide.trained[:1]


@pytest.mark.parametrize(
    ("guide", "count", "most_drop"),
    [
        (lambda: Simulated(excess=lambda p, step: 5.0 if p > 0.45 and step > 0.2 else 1.0), 4, None),
        (lambda: Simulated(lost=lambda place: 10 * place), 4, 6.0),
    ],
)
def test_a_way_that_is_stopped_after_any_round_goes_on_to_the_same_end(
    guide: Any, count: int, most_drop: float | None
) -> None:
    whole = guide()
    expected = way_of(whole, count, most_drop)
    assert len(whole.written) == len(expected.records)
    for legs, records in whole.written:
        if legs:
            later = guide()
            later.known = (legs, records)
            way = way_of(later, count, most_drop)
            assert way.records == expected.records
            assert [leg.tuned for leg in way.legs] == [leg.tuned for leg in expected.legs]
            assert len(later.tried) == len(expected.records) - len(records)


def test_an_accuracy_budget_ends_the_way_at_the_last_round_within_it() -> None:
    guide = Simulated(lost=lambda place: 10 * place)
    way = way_of(guide, 4, most_drop=6.0)
    assert way.met
    reached = way.legs[-1].tuned
    assert 0.56 <= reached <= 0.6  # type: ignore[operator]
    assert not way.records[-1].kept
    assert all(item.drop <= 6 for item in way.records if item.kept and item.drop is not None)


def test_a_budget_that_no_round_meets_is_said() -> None:
    way = way_of(Simulated(lost=lambda place: 50.0), 2, most_drop=1.0)
    assert not way.met
    assert len(way.legs) == 1
    assert [item.kept for item in way.records] == [False] * (MOST_HALVINGS + 1)


def test_labels_of_a_later_round_are_those_of_the_first_network() -> None:
    settings = PlanSettings(families=FAMILIES, cost="absolute")
    model, images = network(), torch.split(smooth_images(48), 16)
    first = look(ground_of(model, bank_from_model(model), images, 0), settings)
    early = travel(first, lambda menus: choose_for_dof(menus, 0.7), "absolute")
    made = early.best.walked.model
    again = look(ground_of(made, bank_from_model(made), images, 0), settings)
    assert sum(int(item.sum()) for item in again.prepared.found.values()) > 50  # exact structures
    bound = following(again.prepared, first.prepared)
    assert all(np.array_equal(bound.found[name], first.prepared.found[name]) for name in bound.found)
    later = travel(replace(again, prepared=bound), lambda menus: choose_for_dof(menus, 0.5), "absolute")
    plan = relabelled(later.plan, first.prepared)
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
    early = travel(
        look(ground_of(model, bank_from_model(model), images, 0), settings),
        lambda menus: choose_for_dof(menus, 0.7),
        "absolute",
    )
    made = early.best.walked.model
    again = look(ground_of(made, bank_from_model(made), images, 0), settings)
    later = travel(again, lambda menus: choose_for_dof(menus, 0.5), "absolute")
    before = np.concatenate([layer.changed.ravel() for layer in early.plan.layers])
    after = np.concatenate([layer.changed.ravel() for layer in later.plan.layers])
    assert before.sum() > 20
    assert (before & ~after).sum() == 0
    assert torch.isfinite(torch.tensor(later.best.distance.divergence))
