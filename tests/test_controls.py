"""Control arms keep the budget and the solution and change one thing each."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import network, smooth_images
from solving import FAMILIES, HALF, error_of
from torch import Tensor

from kernelsimp.kernels.families import find
from kernelsimp.models.layers import bank_from_model
from kernelsimp.solver.controls import CONTROLS, Arm, ControlCase, Masked, run_controls
from kernelsimp.solver.plan_builder import chooser
from kernelsimp.solver.solve import calibrated_network, solve_at_budget, survey_layers


@pytest.fixture(scope="module")
def case() -> ControlCase:
    model = network()
    surveyed = survey_layers(
        calibrated_network(model, bank_from_model(model), smooth_images(48).split(16), 0), HALF
    )
    return ControlCase(surveyed, solve_at_budget(surveyed, chooser(HALF), "absolute").best)


@pytest.fixture(scope="module")
def arms(case: ControlCase) -> dict[str, Arm]:
    return {arm.name: arm for arm in run_controls(case, seed=3)}


def kernels_of(arm: Arm) -> dict[str, Tensor]:
    return {layer.name: layer.kernels.double() for layer in bank_from_model(arm.model).spatial}


def test_every_arm_leaves_the_budget_of_the_kept_plan(case: ControlCase, arms: dict[str, Arm]) -> None:
    assert list(arms) == list(CONTROLS)
    assert all(case.share - 0.03 <= arm.dof <= case.share for arm in arms.values())


def test_every_arm_still_gives_an_answer_and_a_worse_one_than_the_original(
    case: ControlCase, arms: dict[str, Arm]
) -> None:
    errors = {
        name: error_of(arm.model, case.calibrated.model, smooth_images(30, 8)) for name, arm in arms.items()
    }
    assert all(0 < error < math.inf for error in errors.values())
    kept = error_of(case.kept.reconstruction.model, case.calibrated.model, smooth_images(30, 8))
    assert errors["permuted labels"] > kept


def test_permuted_labels_keep_each_layers_numbers(case: ControlCase, arms: dict[str, Arm]) -> None:
    kernels = kernels_of(arms["permuted labels"])
    for layer in case.kept.plan.layers:
        zeros = (kernels[layer.name] == 0).flatten(2).all(2).sum()
        assert int(zeros) == int((layer.choice == case.kept.plan.structures.index("zero")).sum())


def test_zeroed_kernels_are_zero_and_only_that(case: ControlCase, arms: dict[str, Arm]) -> None:
    kernels = torch.cat([k.reshape(-1, 9) for k in kernels_of(arms["whole kernels zeroed"]).values()])
    zero = (kernels == 0).all(1)
    assert float((~zero).double().mean()) == pytest.approx(arms["whole kernels zeroed"].dof)
    assert not any(
        find(name, (3, 3)).holds(kernels[~zero].float().reshape(-1, 3, 3)).any() for name in FAMILIES
    )


def test_cell_masks_leave_as_many_cells_as_they_say(arms: dict[str, Arm]) -> None:
    kernels = torch.cat([k.reshape(-1, 9) for k in kernels_of(arms["cell masks"]).values()])
    assert float((kernels != 0).double().mean()) == pytest.approx(arms["cell masks"].dof)
    assert len(set((kernels != 0).sum(1).tolist())) > 4


def test_a_mask_keeps_the_largest_cells() -> None:
    kernels = torch.tensor([[0.5, -3.0, 1.0, 0.1], [4.0, 3.0, -2.0, 1.0]], dtype=torch.float64)
    masked = Masked("2 cells", 2, None)
    assert masked.masks(kernels).tolist() == [[False, True, True, False], [True, True, False, False]]
    expected = torch.tensor([[0.5, 0, 0, 0.1], [0, 0, -2, 1]], dtype=torch.float64)
    assert torch.equal(masked.errors(kernels), expected)


def test_random_subspaces_have_the_dimensions_and_not_the_symmetries(
    case: ControlCase, arms: dict[str, Arm]
) -> None:
    exact = 0
    for layer in bank_from_model(arms["random subspaces"].model).spatial:
        flat = layer.kernels.reshape(-1, 3, 3)
        alive = flat[(flat != 0).flatten(1).any(1)]
        exact += sum(int((find(name, (3, 3)).residual(alive) < 1e-5).sum()) for name in FAMILIES[:-1])
    assert exact == 0


def test_noise_has_the_norm_of_what_simplifying_takes_away(case: ControlCase, arms: dict[str, Arm]) -> None:
    noisy = kernels_of(arms["equal-norm noise"])
    for layer in case.calibrated.bank.spatial:
        plan = case.kept.plan.layer(layer.name)
        moved = (noisy[layer.name] - layer.kernels.double()).flatten(2).norm(dim=2).numpy()
        expected = plan.residual * layer.kernels.double().flatten(2).norm(dim=2).numpy()
        assert np.allclose(moved[plan.changed], expected[plan.changed], rtol=1e-4, atol=1e-6)


def test_arms_can_be_named_and_are_the_same_for_the_same_seed(case: ControlCase) -> None:
    first, second, other = (run_controls(case, ["random subspaces"], seed)[0] for seed in (1, 1, 2))
    one, two, three = (kernels_of(arm)["conv1"] for arm in (first, second, other))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


@pytest.fixture(scope="module")
def bent() -> ControlCase:
    """A case whose structures pick: kernels of two values, whose partition follows the fit."""
    model, settings = network(), replace(HALF, families=("few-values-2", "few-values-3", "zero"))
    surveyed = survey_layers(
        calibrated_network(model, bank_from_model(model), smooth_images(48).split(16), 0), settings
    )
    return ControlCase(surveyed, solve_at_budget(surveyed, chooser(settings), "absolute").best)


@pytest.mark.parametrize("name", ["random subspaces", "cell masks"])
def test_rivals_of_structures_that_pick_again_do_so_too(
    bent: ControlCase, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(arm: Arm) -> float:
        return error_of(arm.model, bent.calibrated.model, smooth_images(30, 8))

    (again,) = run_controls(bent, [name])
    with monkeypatch.context() as patch:
        patch.setattr(ControlCase, "bent", False)
        (once,) = run_controls(bent, [name])
    assert again.dof == once.dof
    assert error(again) < error(once)


def test_rivals_of_subspaces_pick_once(case: ControlCase, bent: ControlCase) -> None:
    assert (case.bent, bent.bent) == (False, True)


@pytest.mark.parametrize("name", ["permuted labels", "random subspaces", "cell masks"])
def test_what_holds_an_arm_goes_through_its_own_kernels(bent: ControlCase, name: str) -> None:
    (arm,) = run_controls(bent, [name])
    kernels = kernels_of(arm)
    assert arm.constraints
    for layer, constraint in arm.constraints.items():
        moved = constraint.project(kernels[layer]) - kernels[layer]
        assert float(moved.norm() / kernels[layer].norm()) < 1e-5
