"""Solving small networks: exact structures, nearer outputs, closed-form shifts, and every odd case."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import Twice, network, smooth_images
from solving import HALF, all_exact, calibrated, error_of, road_of, solve, with_tensors
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.models.layers import bank_from_model
from kernelsimp.solver.apply import apply_plan
from kernelsimp.solver.layerwise import reconstruct
from kernelsimp.solver.moments import Moments, pair_moments
from kernelsimp.solver.plan_builder import data_free_plan
from kernelsimp.solver.projected_cg import FilterConstraint, Solved, resolve
from kernelsimp.solver.solve import calibrated_network
from kernelsimp.solver.targets import targets_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_simplified_kernel_is_exactly_in_its_family_in_the_written_dtype(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    solution = road_of(model)
    assert solution.plan.simplified > 50
    weights = {name: value for name, value in solution.tensors.items() if name.endswith("weight")}
    assert {value.dtype for value in weights.values()} == {dtype}
    made = with_tensors(
        network().to(dtype), {name: value.to(dtype) for name, value in solution.tensors.items()}
    )
    assert all_exact(made, solution.plan)


def test_the_road_keeps_the_output_far_nearer_than_projection() -> None:
    model = network()
    solution = road_of(model)
    fresh = smooth_images(40, 5)
    made = error_of(with_tensors(network(), dict(solution.tensors)), model, fresh)
    projected = error_of(
        with_tensors(network(), apply_plan(bank_from_model(model), solution.plan)), model, fresh
    )
    assert made < 0.6 * projected


def test_the_tensors_are_the_walked_network() -> None:
    model = network()
    solution = road_of(model)
    made = with_tensors(network(), dict(solution.tensors))
    assert solution.best.reconstruction is not None
    images = smooth_images(4, 3)
    with torch.no_grad():
        assert torch.allclose(made(images), solution.best.reconstruction.model(images), atol=1e-5)
    weights = solution.best.reconstruction.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in made.state_dict().items())


def test_nothing_to_do_changes_no_tensor() -> None:
    solution = road_of(network(), replace(HALF, dof=1.0))
    assert solution.plan.simplified == 0
    assert dict(solution.tensors) == {}


def test_layers_before_the_first_change_keep_their_bits() -> None:
    solution = road_of(network(), replace(HALF, dof=0.9, layers=("conv2",)))
    assert set(solution.tensors) == {
        "conv2.weight",
        "conv2.bias",
        "deep.weight",
        "bn2.running_mean",
        "point.weight",
    }


def test_free_filters_on_unchanged_inputs_keep_their_bits() -> None:
    model = network()
    bank = bank_from_model(model)
    plan = data_free_plan(bank, replace(HALF, dof=0.99, layers=("stem",)))
    touched = plan.layer("stem").changed.any(1)
    assert 0 < touched.sum() < 8
    reconstruction = reconstruct(calibrated(model), targets_of(plan))
    same = (reconstruction.tensors["stem.weight"] == bank.layers[0].kernels).flatten(1).all(1).numpy()
    assert np.array_equal(same, ~touched)


def test_mean_outputs_are_kept_by_the_bias_or_the_running_mean() -> None:
    model = network()
    stood = calibrated(model)
    reconstruction = reconstruct(stood, targets_of(data_free_plan(stood.bank, HALF)))
    assert {"bn0.running_mean", "bn1.running_mean", "conv2.bias"} <= reconstruction.tensors.keys()
    after = {"bn0": "bn0", "conv1": "bn1", "conv2": "conv2"}
    for name in after.values():
        means = []
        for net in (model, reconstruction.model):
            seen: list[Tensor] = []
            handle = net.get_submodule(name).register_forward_hook(lambda _, __, y, seen=seen: seen.append(y))
            with torch.no_grad():
                for batch in stood.images:
                    net(batch)
            handle.remove()
            means.append(torch.cat(seen).mean((0, 2, 3)))
        assert torch.allclose(means[0], means[1], atol=1e-5), name


def test_the_output_error_of_a_layer_is_measured_on_its_outputs() -> None:
    model = network()
    stood = calibrated(model)
    reconstruction = reconstruct(
        stood, targets_of(data_free_plan(stood.bank, replace(HALF, dof=0.9, layers=("stem",))))
    )
    outputs = []
    for net in (model, reconstruction.model):
        with torch.no_grad():
            y = torch.cat([net.get_submodule("stem")(batch) for batch in stood.images])
        outputs.append(y - y.mean((0, 2, 3), keepdim=True))
    expected = (outputs[1] - outputs[0]).norm() / outputs[0].norm()
    assert reconstruction.fits["stem"].output_error == pytest.approx(float(expected), rel=1e-3)


def test_without_fitting_only_the_chosen_kernels_move() -> None:
    model = network()
    stood = calibrated(model)
    plan = data_free_plan(stood.bank, HALF)
    reconstruction = reconstruct(stood, targets_of(plan), fitted=False)
    projected = apply_plan(stood.bank, plan)
    assert reconstruction.tensors.keys() == projected.keys()
    assert all(torch.equal(reconstruction.tensors[name], projected[name]) for name in projected)


def test_auto_tries_every_cost_and_keeps_the_least_divergence() -> None:
    solution = road_of(network(), replace(HALF, cost="auto"))
    assert [item.cost for item in solution.tried] == ["kind", "filter", "mixed"]
    assert solution.best.distance.divergence == min(item.distance.divergence for item in solution.tried)
    assert all(item.plan.dof_after <= 0.5 * item.plan.dof_before for item in solution.tried)


def test_the_road_is_the_same_for_the_same_seed() -> None:
    first, second = road_of(network()), road_of(network())
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_the_original_network_is_left_as_it_was() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    road_of(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---------------------------------------------------------------- odd networks and poor images


def test_shared_layers_are_changed_once_and_unused_ones_only_projected() -> None:
    torch.manual_seed(1)
    model = Twice().eval()
    solution = road_of(model)
    assert solution.notes == ("unused: never run on calibration images: only projected",)
    assert {"again.weight", "left.weight", "unused.weight"} <= solution.tensors.keys()
    assert "again.bias" not in solution.tensors
    made = with_tensors(_twice(), {**solution.tensors, "right.weight": solution.tensors["left.weight"]})
    assert all_exact(made, solution.plan)
    fresh = smooth_images(30, 4)
    projected = apply_plan(bank_from_model(model), solution.plan)
    plain = with_tensors(_twice(), {**projected, "right.weight": projected["left.weight"]})
    assert error_of(made, model, fresh) < error_of(plain, model, fresh)


def _twice() -> nn.Module:
    torch.manual_seed(1)
    return Twice().eval()


OTHERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "transposed": lambda: (
        nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, stride=2)),
        smooth_images(40),
    ),
    "one-dimensional": lambda: (
        nn.Sequential(
            nn.Conv1d(3, 6, 5), nn.ReLU(), nn.Conv1d(6, 4, 5), nn.AdaptiveAvgPool1d(1), nn.Flatten()
        ),
        smooth_images(40, side=16).flatten(2),
    ),
    "grouped and dilated": lambda: (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2, dilation=2)),
        smooth_images(40),
    ),
    "reflecting": lambda: (
        nn.Sequential(nn.Conv2d(3, 6, 5, padding=2, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(6, 4, 3)),
        smooth_images(40),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_that_are_no_classifiers_come_out_nearer_too(name: str) -> None:
    torch.manual_seed(3)
    model, images = OTHERS[name]()
    bank = bank_from_model(model.eval())
    solution = solve(calibrated_network(model, bank, images.split(20), 0), replace(HALF, cost="auto"))
    assert solution.notes == ()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(images[:8])
    errors = []
    projected = reconstruct(
        calibrated_network(model, bank, images.split(20), 0), targets_of(solution.plan), fitted=False
    )
    for tensors in (solution.tensors, projected.tensors):
        made = with_tensors(model, {**before, **tensors})
        assert all_exact(made, solution.plan)
        with torch.no_grad():
            errors.append(float((made(images[:8]) - wanted).norm()))
    assert errors[0] < errors[1]


def test_too_few_images_fall_back_to_projection_and_say_so() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 3))
    solution = road_of(model.eval(), images=smooth_images(3, side=6))
    assert solution.notes == (
        "0: 32 windows for 27 cells; expected 135 at least; only projected",
        "2: 8 windows for 72 cells; expected 360 at least; only projected",
    )
    assert all_exact(with_tensors(model, dict(solution.tensors)), solution.plan)


def test_constant_images_fall_back_to_projection_and_say_so() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(3))
    images = torch.ones(40, 3, 12, 12)
    model(images)
    solution = road_of(model.eval(), images=images)
    assert (
        solution.notes[0]
        == "0: its inputs are always the same, so there is nothing to fit to; only projected"
    )
    assert all(bool(value.isfinite().all()) for value in solution.tensors.values())


def test_a_layer_that_never_activates_is_projected() -> None:
    torch.manual_seed(6)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(3))
    model(smooth_images(1))
    with torch.no_grad():
        model[0].bias.fill_(-1000)  # type: ignore[union-attr, operator]
    solution = road_of(model.eval())
    assert solution.notes == (
        "2: its inputs are always the same, so there is nothing to fit to; only projected",
    )
    assert all_exact(with_tensors(model, dict(solution.tensors)), solution.plan)


def test_one_image_is_not_enough_and_says_so() -> None:
    with pytest.raises(KernelsimpError) as caught:
        road_of(network(), images=smooth_images(1))
    assert str(caught.value) == "1 calibration images; expected 2 at least, see --calibration"


def test_a_device_without_memory_hands_the_layer_to_the_cpu_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stood = calibrated(network())
    targets = targets_of(data_free_plan(stood.bank, HALF))
    expected = reconstruct(stood, targets)
    tried: list[str] = []

    def cramped(original: Tensor, constraint: FilterConstraint, moments: Moments) -> Solved:
        tried.append(original.device.type)
        if original.device.type == "meta":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return resolve(original, constraint, moments)

    def away(moments: Moments) -> Moments:
        """Return moments on the meta device, which come back as they were."""
        own = {
            "to": lambda self, device: replace(moments) if device == "cpu" else self,
            "centred": lambda _: away(moments.centred()),
        }
        names = ("gram", "target", "mean", "level", "power")
        there = {name: getattr(moments, name).to("meta") for name in names}
        made = type("M", (Moments,), own)(**there, rows=moments.rows, same=moments.same)
        assert isinstance(made, Moments)
        return made

    def on_a_device(*args: object, **how: object) -> Moments | None:
        moments = pair_moments(*args, **how)  # type: ignore[arg-type]
        assert moments is not None
        return away(moments)

    monkeypatch.setattr("kernelsimp.solver.layerwise.resolve", cramped)
    monkeypatch.setattr("kernelsimp.solver.layerwise.pair_moments", on_a_device)
    reconstruction = reconstruct(stood, targets)
    assert tried[:2] == ["meta", "cpu"]
    assert reconstruction.fits["stem"].trouble == "meta ran out of memory, solved on the CPU"
    assert all(torch.equal(reconstruction.tensors[name], expected.tensors[name]) for name in expected.tensors)


def test_mirror_images_join_what_is_fitted_to_and_never_what_judges() -> None:
    model, images = network(), smooth_images(48)
    plain = calibrated(model, images)
    both = calibrated_network(model, plain.bank, images.split(16), 0, flip=True)
    fitted, joined = torch.cat(tuple(plain.images)), torch.cat(tuple(both.images))
    assert torch.equal(joined[::2], fitted)
    assert torch.equal(joined[1::2], fitted.flip(-1))
    assert torch.equal(torch.cat(tuple(both.held_back)), torch.cat(tuple(plain.held_back)))
