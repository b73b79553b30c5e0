"""Templates, low rank, few values and denoised kernels: planned, written, tied, re-solved and checked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from held import OPTIMIZERS, kernels_of, plan_for, simplified, train
from networks import Mixed, Twice, network, settled, smooth_images
from solving import calibrated, road_of

from kernelsimp.errors import HoldError, KernelsimpError
from kernelsimp.gate.kernels import broken_kernels, held_layer
from kernelsimp.kernels.structures import BENT, TEMPLATED, Drawn, expand, find, kernel_sets, numbers_kept
from kernelsimp.kernels.templates import degrees_of_freedom, offered_templates
from kernelsimp.models.layers import bank_from_model, conv_modules
from kernelsimp.records.held import HeldLayer, decode_shapes, encode_assignment, encode_shapes
from kernelsimp.records.limits import Baseline, BaselineLayer
from kernelsimp.records.plan import STRENGTH
from kernelsimp.records.plan_file import read_plan, save_plan
from kernelsimp.settings import PlanSettings
from kernelsimp.solver.alternating import bend, objective
from kernelsimp.solver.apply import apply_plan, denoise_kernels, snap_layer
from kernelsimp.solver.denoise import (
    LEAST_KL,
    MORE_KL,
    denoise_by_weight,
    denoise_rest,
    denoising_of,
    everything_free,
)
from kernelsimp.solver.layerwise import reconstruct
from kernelsimp.solver.moments import Moments
from kernelsimp.solver.plan_builder import chooser, data_free_plan
from kernelsimp.solver.projected_cg import FilterConstraint, Piece, resolve
from kernelsimp.solver.solve import solve_at_budget, survey_layers
from kernelsimp.solver.targets import targets_of
from kernelsimp.training.hold import hold, projections, release, survival_in_model, verify
from kernelsimp.training.kernel_sets import Still
from kernelsimp.training.survival import outside

DRAWN = [item for shape in ((1, 5), (3, 3), (5, 5)) for item in kernel_sets(shape) if isinstance(item, Drawn)]
PROTOTYPES = PlanSettings(dof=0.5, cost="absolute", families=("prototypes-2", "zero"))
TEMPLATES = PlanSettings(dof=0.5, cost="absolute", families=("templates", "rank-one", "few-values-2", "zero"))
USED = (
    "free",
    "template-gabor",
    "template-sobel-x",
    "rank-one",
    "rank-two",
    "few-values-3",
    "prototypes-8",
    "denoised-median",
)


def some(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("item", DRAWN, ids=lambda item: f"{item.name} {item.shape}")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_template_is_written_exactly_with_its_shape_fixed(item: Drawn, dtype: torch.dtype) -> None:
    kernels = some(30, *item.shape).to(dtype)
    bound = replace(item, shapes=item.shapes_of(kernels))
    written = bound.snap(kernels)
    assert written.dtype == dtype
    assert bool(bound.holds(written).all())
    assert not bool(bound.holds(kernels).all())
    flats = bound.flats(kernels)
    assert torch.allclose(flats @ flats, flats, atol=1e-12)
    assert torch.allclose(flats.sum(2), torch.ones(()).double(), atol=1e-9)  # constants are inside
    near = (flats @ kernels.double().reshape(30, -1, 1)).reshape(kernels.shape)
    assert torch.equal(written, near.to(dtype)) or torch.allclose(
        written.double(), near, atol=4 * torch.finfo(dtype).eps * float(near.abs().max())
    )


def test_degrees_of_freedom_count_a_b_and_the_shape() -> None:
    known = {item.name: item.dim for item in kernel_sets((5, 5))}
    assert [known[f"template-{name}"] for name in ("sobel-x", "gaussian", "edge", "gabor")] == [2, 3, 4, 6]
    table = {f"template-{item.name}": degrees_of_freedom(item, (5, 5)) for item in offered_templates((5, 5))}
    assert {name: dim for name, dim in known.items() if name in TEMPLATED} == table


def test_groups_stand_for_their_members_and_unknown_names_are_refused() -> None:
    assert expand(("bent", "zero")) == (*BENT, "zero")
    assert set(TEMPLATED) < set(expand(("all",)))
    with pytest.raises(
        KernelsimpError, match="unknown family 'template-gabr'; did you mean 'template-gabor'"
    ):
        expand(("template-gabr",))


@pytest.mark.parametrize(
    ("settings", "names"),
    [(TEMPLATES, TEMPLATED), (PROTOTYPES, ("prototypes-2",))],
    ids=["templates", "prototypes"],
)
def test_a_plan_with_drawn_kernels_keeps_how_in_its_file(
    settings: PlanSettings, names: tuple[str, ...], tmp_path: Path
) -> None:
    bank = bank_from_model(network())
    plan = data_free_plan(bank, settings)
    used = {plan.structures[i] for layer in plan.layers for i in np.unique(layer.choice)}
    assert used & set(names)
    assert plan.dof_after <= 0.5 * plan.dof_before
    assert any(layer.prototypes for layer in plan.layers) == (settings is PROTOTYPES)
    save_plan(plan, tmp_path / "plan.safetensors")
    again = read_plan(tmp_path / "plan.safetensors")
    assert [layer.dof_after for layer in again.layers] == [layer.dof_after for layer in plan.layers]
    first, second = apply_plan(bank, plan), apply_plan(bank, again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for layer, kernels in ((item, bank) for item in again.layers):
        written = snap_layer(
            kernels.layers[[x.name for x in bank.layers].index(layer.name)].kernels, layer, again.structures
        )
        assert not outside(written, layer, again.structures).any()
        other = written * torch.linspace(0.9, 1.1, written[0, 0].numel()).reshape(layer.grid)
        changed = torch.from_numpy(layer.changed) & written.flatten(2).any(2)
        assert not changed.any() or outside(other, layer, again.structures)[changed].float().mean() > 0.9


@pytest.mark.parametrize("settings", [TEMPLATES, PROTOTYPES], ids=["templates", "prototypes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_road_writes_drawn_kernels_exactly(dtype: torch.dtype, settings: PlanSettings) -> None:
    model = network().to(dtype)
    solution = road_of(model, settings)
    weights = {name.removesuffix(".weight"): value for name, value in solution.tensors.items()}
    for layer in solution.plan.layers:
        if layer.changed.any():
            kernels = weights[layer.name]
            assert kernels.dtype == dtype
            assert not outside(kernels, layer, solution.plan.structures).any()


# ---------------------------------------------------------------- bends


def test_alternating_never_raises_a_filters_objective_and_lowers_some() -> None:
    rows = some(900, 36).double()
    mixed = rows @ some(36, 36).double()
    gram = mixed.mT @ mixed / 900
    zero = torch.zeros(1, 36, dtype=torch.float64)
    original = some(1, 12, 36).double() * 3
    target = original @ gram
    moments = Moments(
        gram[None], target, zero, torch.zeros(1, 12), (target * original).sum(-1), 900, same=True
    )
    rank = find("rank-one", (3, 3))

    def around(weights: torch.Tensor) -> FilterConstraint:
        return FilterConstraint(9, (Piece(torch.arange(48), rank.flats(weights.reshape(-1, 3, 3))),))

    first = resolve(original, around(original), moments)
    best = bend(first, original, around, moments)
    before, after = (objective(item.weights, original, moments) for item in (first, best))
    assert bool((after <= before).all())
    assert float((after < before - 1e-6 * before.abs()).float().mean()) > 0.5
    assert float(rank.residual(best.weights.reshape(-1, 3, 3)).max()) < 1e-9


# ---------------------------------------------------------------- holds


def held_network() -> tuple[torch.nn.Module, object]:
    torch.manual_seed(0)
    model = Mixed()
    plan = replace(plan_for(model, 0, structures=("free",), chosen=0), structures=USED)
    rng, layers = np.random.default_rng(0), []
    for layer in plan.layers:
        known = [0, *(i for i, name in enumerate(USED) if i and _offered(name, layer.grid))]
        choice = rng.choice(known, layer.choice.shape).astype(np.int16)
        strength = np.full(choice.shape, 0.2, np.float32)
        layers.append(
            replace(layer, choice=choice, parameters=_shapes(model, layer, choice) | {STRENGTH: strength})
        )
    plan = replace(plan, layers=tuple(layers))
    return simplified(model, plan), plan


def _offered(name: str, grid: tuple[int, ...]) -> bool:
    if name.startswith("denoised-"):
        return len(grid) == 2
    return name in {item.name for item in kernel_sets(grid)}


def _shapes(model, layer, choice):
    kernels = next(x.kernels for x in bank_from_model(model).layers if x.name == layer.name)
    shapes = np.zeros((*choice.shape, numbers_kept(USED, layer.grid)), np.float32)
    for index, name in enumerate(USED):
        mask = choice == index
        if name in (*TEMPLATED, "prototypes-8") and mask.any():
            found = find(name, layer.grid).shapes_of(kernels[torch.from_numpy(mask)])
            shapes[mask, : found.shape[1]] = found.numpy()
    return {"template": shapes}


@pytest.mark.filterwarnings("ignore:dropout")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_tied_sets_train_and_stay_what_they_are(optimizer: str) -> None:
    model, plan = held_network()
    before = {layer.name: kernels_of(model, plan, layer).clone() for layer in plan.layers}
    hold(model, plan, "tie")
    train(model, OPTIMIZERS[optimizer](model.parameters()))
    verify(model)
    release(model)
    moved = dict.fromkeys(USED, 0)
    for layer in plan.layers:
        kernels = kernels_of(model, plan, layer)
        assert not outside(kernels, layer, plan.structures).any(), layer.name
        far = (kernels - before[layer.name]).flatten(2).abs().amax(2) > 1e-5
        for index, name in enumerate(USED):
            moved[name] += int(far[torch.from_numpy(layer.choice == index)].sum())
    assert moved.pop("denoised-median") == 0
    assert all(moved.values()), moved


@pytest.mark.parametrize("mode", ["freeze", "tie", "scale"])
def test_a_held_weight_has_its_own_precision_under_autocast(mode: str) -> None:
    model, plan = held_network()
    hold(model, plan, mode)
    for module in conv_modules(model).values():
        expected = module.weight
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(module.weight, expected)
            assert module.weight.dtype == expected.dtype


@pytest.mark.parametrize("mode", ["freeze", "scale"])
def test_the_other_holds_keep_bent_sets_too(mode: str) -> None:
    model, plan = held_network()
    hold(model, plan, mode)
    train(model, OPTIMIZERS["sgd"](model.parameters()))
    verify(model)
    release(model)
    left = survival_in_model(model, plan)
    assert left.exact == left.total == plan.simplified
    assert not any(name.startswith("denoised") for name in left.families)


def test_a_step_on_a_tied_set_is_the_projected_gradient_step() -> None:
    model, plan = held_network()
    (_, tied), layer = projections(model, plan)[0], plan.layers[0]
    weight = model.dense.weight.detach().clone().requires_grad_()
    push = some(*weight.shape)
    (tied(weight) * push).sum().backward()
    for index, name in enumerate(USED):
        rows = torch.from_numpy(layer.choice == index)
        if not rows.any() or not (name in TEMPLATED or name == "few-values-3"):
            continue
        kernels, gradient = weight.detach()[rows].double(), push[rows].double().flatten(1)
        structure = find(name, layer.grid, layer.shapes(layer.choice == index))
        spread = (structure.flats(kernels) @ gradient[:, :, None])[:, :, 0]
        if name in TEMPLATED:
            assert torch.allclose(weight.grad[rows].double().flatten(1), spread, atol=1e-5)
        else:  # a representative gets the mean of its class; its copies follow
            labels = structure.partition(kernels)
            assert torch.allclose(weight.grad[rows].double().flatten(1)[:, 0], spread[:, 0], atol=1e-5)
            assert labels.shape == spread.shape


def test_a_denoised_kernel_that_moved_under_a_tie_is_named() -> None:
    model, plan = held_network()
    hold(model, plan, "tie")
    part = model.dense.parametrizations.weight[0]
    kept = next(held for held in part.sets if isinstance(held, Still))
    kept.values = kept.values + 1
    with pytest.raises(HoldError, match=r"dense: kernel \(\d+, \d+\), held as 'denoised-median'"):
        verify(model)


# ---------------------------------------------------------------- check


@pytest.mark.parametrize(("name", "width"), [("template-gabor", 4), ("prototypes-2", 25)])
def test_shape_parameters_survive_the_report_and_a_broken_kernel_is_seen(name: str, width: int) -> None:
    kernels = some(2, 3, 5, 5)
    choice = np.array([[0, 1, 1], [1, 0, 1]], np.int16)
    item = find(name, (5, 5))
    assert isinstance(item, Drawn)
    shapes = np.zeros((4, width), np.float32)
    shapes[:, : item.width] = item.shapes_of(kernels[torch.from_numpy(choice == 1)]).numpy()
    assert np.array_equal(decode_shapes(encode_shapes(shapes), 4, width), shapes)
    kernels[torch.from_numpy(choice == 1)] = find(name, (5, 5), shapes).snap(
        kernels[torch.from_numpy(choice == 1)]
    )
    record = HeldLayer(encode_assignment(choice), (), "", encode_shapes(shapes))
    layer = BaselineLayer("conv", "dense", 1, (2, 3, 5, 5), record)
    baseline = Baseline(("free", name), (layer,), held=True)
    assert not broken_kernels(held_layer(baseline, layer, kernels), baseline.structures).any()
    kernels[0, 1, 2, 2] += 0.1
    assert np.argwhere(
        broken_kernels(held_layer(baseline, layer, kernels), baseline.structures)
    ).tolist() == [[0, 1]]
    damaged = replace(layer, hold=replace(record, shapes=encode_shapes(shapes[:2])))
    with pytest.raises(KernelsimpError, match=r"draws kernels are damaged .numbers of 2 drawn kernels for 4"):
        held_layer(baseline, damaged, kernels)


# ---------------------------------------------------------------- denoise

MEDIAN = PlanSettings(dof=0.7, cost="absolute", families=("rank-one", "mirror-h"), denoise="median:0.2")


def test_what_fits_no_family_is_denoised_and_the_rest_fitted_around_it() -> None:
    model = network()
    stood = calibrated(model)
    plan = denoise_by_weight(data_free_plan(stood.bank, MEDIAN), stood.bank, MEDIAN)
    assert plan.denoised == sum(layer.count for layer in stood.bank.spatial) - plan.simplified > 0
    assert plan.dof_after == data_free_plan(stood.bank, MEDIAN).dof_after  # in no set: nothing is saved
    reconstruction = reconstruct(stood, targets_of(plan))
    for layer in plan.layers:
        original = next(item for item in stood.bank.layers if item.name == layer.name)
        mask = torch.from_numpy(plan.is_denoised(layer))
        if not mask.any():
            continue
        made = reconstruction.tensors[f"{layer.name}.weight"]
        assert not torch.equal(made[mask], original.kernels[mask])
        assert not outside(made, layer, plan.structures).any()
        expected = denoise_kernels(original.kernels, layer, plan.structures)
        assert torch.equal(snap_layer(original.kernels, layer, plan.structures)[mask], expected[mask])
        change = (expected[mask] - original.kernels[mask]).norm() / original.kernels[mask].norm()
        assert 0.15 < float(change) <= 0.2001


@pytest.mark.parametrize("accepted", [True, False])
def test_a_strength_is_found_by_outputs_and_held_back_images(accepted: bool) -> None:
    settings = replace(MEDIAN, denoise="gaussian")
    model = network()
    surveyed = survey_layers(calibrated(model), settings)
    plain = solve_at_budget(surveyed, chooser(settings), "absolute")
    solution = denoise_rest(surveyed, plain, accept=lambda _: accepted)
    assert plain.plan.denoised == 0
    if not accepted:
        assert solution.best is plain.best
        assert solution.notes[-1].endswith("nothing is denoised, or give a strength: gaussian:0.1")
        return
    before, after = plain.best.distance.divergence, solution.best.distance.divergence
    assert after <= before + max(MORE_KL * before, LEAST_KL)
    assert solution.plan.denoised > 0
    assert f"{before:.4f} before, {after:.4f} after" in solution.notes[-1]
    strengths = {
        float(layer.parameters["strength"].max()) for layer in solution.plan.layers if layer.parameters
    }
    assert len(strengths) > 1  # one aim for the outputs, so each layer has its own


@pytest.mark.parametrize("how", ["half", "twice"])
def test_half_precision_and_shared_weights_are_denoised_and_tied(how: str) -> None:
    torch.manual_seed(0)
    model = network().half() if how == "half" else settled(Twice(), smooth_images(16))
    stood = calibrated(model)
    settings = replace(TEMPLATES, dof=0.8, denoise="wiener:0.1")
    plan = denoise_by_weight(data_free_plan(stood.bank, settings), stood.bank, settings)
    reconstruction = reconstruct(stood, targets_of(plan))
    state = {**model.state_dict(), **reconstruction.tensors}
    model.load_state_dict({name: value.to(model.state_dict()[name].dtype) for name, value in state.items()})
    hold(model, plan, "tie")
    verify(model)
    release(model)
    layers = {layer.name: layer.kernels for layer in bank_from_model(model).layers}
    assert not any(outside(layers[item.name], item, plan.structures).any() for item in plan.layers)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (PlanSettings(denoise="gausian"), "unknown denoiser 'gausian'; did you mean 'gaussian'?"),
        (
            PlanSettings(denoise="median:2"),
            "denoiser 'median:2': strength '2'; expected a number from 0 to 1",
        ),
        (
            PlanSettings(denoise_all=True),
            "--denoise-all needs a denoiser; name one, such as --denoise gaussian",
        ),
    ],
)
def test_what_cannot_be_denoised_is_refused_in_these_words(settings: PlanSettings, words: str) -> None:
    with pytest.raises(KernelsimpError) as caught:
        denoising_of(settings)
    assert str(caught.value) == words


def test_everything_can_be_denoised_but_in_layers_that_are_kept() -> None:
    bank = bank_from_model(network())
    settings = PlanSettings(denoise="svd", denoise_all=True, keep_first=True)
    plan = denoise_by_weight(everything_free(bank), bank, settings)
    first, *others = plan.layers
    assert not first.changed.any()
    assert all(plan.is_denoised(layer).all() for layer in others)
    assert plan.rule["strength"] == 0.1
