"""Choosing with one multiplier: budgets are met, bits count, and what is exact costs nothing."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.families import SEVENTEEN, find
from kernelsimp.records.plan import Plan
from kernelsimp.settings import PlanSettings
from kernelsimp.solver.candidates import candidates_for, chosen_layers, rows_of_layer
from kernelsimp.solver.costs import BY_KIND, COSTS, DAMPING, cost_of, cost_table, costs_to_try, predicted_loss
from kernelsimp.solver.fisher import Sensitivity
from kernelsimp.solver.lagrangian import (
    CostTable,
    choice_bits,
    choices_at,
    choose_for_count,
    choose_for_dof,
    dof_share,
    simplified_share,
)
from kernelsimp.solver.plan_builder import cost_tables, data_free_plan, plan_of, prepare

FAMILIES = (*SEVENTEEN, "zero")


def layer_of(name: str, shape: tuple[int, ...], seed: int, groups: int = 1) -> LayerKernels:
    generator = torch.Generator().manual_seed(seed)
    kind = "dense" if groups == 1 else "depthwise"
    return LayerKernels(name, kind, torch.randn(*shape, generator=generator) * 0.1, groups)


def bank_of_two() -> KernelBank:
    return KernelBank((layer_of("first", (8, 3, 3, 3), 0), layer_of("second", (12, 8, 5, 5), 1)))


def menus_of(bank: KernelBank, **settings: object) -> tuple[CostTable, ...]:
    return cost_tables(prepare(bank, PlanSettings(families=FAMILIES, **settings)), "absolute")  # type: ignore[arg-type]


def error_of(plan: Plan, bank: KernelBank) -> float:
    """The sum of ||w - Pw||^2 over all kernels."""
    layers = zip(plan.layers, bank.layers, strict=True)
    return sum(
        float((torch.from_numpy(plan.residual).flatten() * rows_of_layer(layer).norm(dim=1)).square().sum())
        for plan, layer in layers
    )


@pytest.mark.parametrize("share", [0.9, 0.5, 0.24, 0.05, 0.0])
def test_a_dof_budget_is_met_and_hardly_more_than_met(share: float) -> None:
    tables = menus_of(bank_of_two())
    found = dof_share(tables, choose_for_dof(tables, share))
    assert share - 0.02 <= found <= share


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99, 1.0])
def test_a_share_of_kernels_is_met_and_hardly_more_than_met(share: float) -> None:
    tables = menus_of(bank_of_two())
    assert share <= simplified_share(tables, choose_for_count(tables, share)) <= share + 0.05


def test_more_multiplier_never_leaves_more_degrees_of_freedom_by_much() -> None:
    tables = menus_of(bank_of_two())
    shares = [dof_share(tables, choices_at(tables, 10.0**power)) for power in range(-8, 2)]
    assert all(later <= earlier + 0.01 for earlier, later in pairwise(shares))
    assert shares[0] == 1
    assert shares[-1] == 0


def test_kernels_that_are_exactly_in_a_family_are_the_first_to_take_it() -> None:
    layer = layer_of("planted", (10, 10, 3, 3), 2)
    planted = torch.zeros(10, 10, dtype=torch.bool)
    planted.view(-1)[::7] = True
    space = find("mirror-h", (3, 3))
    layer.kernels[planted] = space.snap(layer.kernels[planted])
    tables = menus_of(KernelBank((layer,)))
    chosen = choose_for_count(tables, 0.15).structures[0]
    assert torch.equal(chosen != 0, planted.view(-1))
    names = [item.name for item in candidates_for(layer, FAMILIES)]
    assert {names[i] for i in chosen[chosen != 0].tolist()} == {"mirror-h"}


def test_a_structure_that_is_often_chosen_becomes_cheaper_to_name() -> None:
    # two structures of equal dimension: kernels 0..8 clearly want the first, kernel 9 the second by a hair
    costs = torch.full((10, 3), 5.0)
    costs[:, 0] = 0
    costs[:9, 1], costs[9, 1], costs[9, 2] = 0.0, 0.11, 0.1
    dims, none = torch.tensor([9, 3, 3]), torch.zeros(3)
    table = CostTable("one", costs, dims, none, none, 3.5, 9, torch.ones(10, dtype=torch.bool))
    assert choices_at([table], 0.1).structures[0].tolist() == [1] * 10
    costs[9, 1] = 2.0
    assert choices_at([table], 0.1).structures[0].tolist() == [1] * 9 + [2]


def test_side_bits_are_paid() -> None:
    costs = torch.tensor([[0.0, 0.1, 0.1]])
    dims, bits = torch.tensor([9, 3, 3]), torch.tensor([0.0, 8.0, 0.0])
    table = CostTable("one", costs, dims, bits, torch.zeros(3), 3.5, 9, torch.ones(1, dtype=torch.bool))
    assert choices_at([table], 1.0).structures[0].tolist() == [2]


@pytest.mark.parametrize(("weight", "chosen"), [(1.0, 2), (0.1, 1)])
def test_side_bits_count_by_the_weight_of_the_choice(weight: float, chosen: int) -> None:
    # two numbers and eight side bits, or four numbers: 15 bits or 14; 7.8 or 14 where a choice weighs little
    costs = torch.tensor([[0.0, 0.1, 0.1]])
    dims, bits = torch.tensor([9, 2, 4]), torch.tensor([0.0, 8.0, 0.0])
    table = CostTable(
        "one",
        costs,
        dims,
        bits,
        torch.zeros(3),
        3.5,
        9,
        torch.ones(1, dtype=torch.bool),
        choice_weight=weight,
    )
    assert choices_at([table], 1.0).structures[0].tolist() == [chosen]


def test_light_choices_leave_less_error_at_the_same_degrees_of_freedom_and_take_longer_to_name() -> None:
    bank = bank_of_two()
    settings = PlanSettings(dof=0.3, families=("all",))
    heavy = data_free_plan(bank, settings)
    light = data_free_plan(bank, replace(settings, choice_weight=0.0))
    assert max(heavy.dof_after, light.dof_after) <= 0.3 * heavy.dof_before
    assert error_of(light, bank) < 0.95 * error_of(heavy, bank)
    assert light.choice_bits > heavy.choice_bits
    assert light.rule["choice_weight"] == 0.0


def test_numbers_that_kernels_share_are_counted_once_and_paid_by_those_who_share_them() -> None:
    # three numbers a kernel, or two and thirty for all: dear for ten kernels, cheap for a hundred
    dims, none = torch.tensor([9, 3, 2]), torch.zeros(3)
    shared = torch.tensor([0, 0, 30])
    for count, chosen in ((10, 1), (100, 2)):
        costs = torch.tensor([[0.0, 0.1, 0.1]]).expand(count, 3)
        table = CostTable("one", costs, dims, none, shared, 3.5, 9, torch.ones(count, dtype=torch.bool))
        choices = choices_at([table], 1.0)
        assert choices.structures[0].tolist() == [chosen] * count
        assert table.dof_left(choices.structures[0]) == {1: 3 * count, 2: 2 * count + 30}[chosen]


def test_choice_bits_are_the_entropy_of_the_choices() -> None:
    dims = torch.tensor([9, 3, 0])
    table = CostTable(
        "one",
        torch.zeros(8, 3),
        dims,
        torch.tensor([0.0, 2.0, 0.0]),
        torch.zeros(3),
        3.5,
        9,
        torch.ones(8) > 0,
    )
    from kernelsimp.solver.lagrangian import Choices

    chosen = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    assert choice_bits([table], Choices(1.0, (chosen,))) == pytest.approx(4 * 1 + 2 * 2 + 2 * 2 + 2 * 2.0)


def test_a_plan_counts_what_its_choices_leave() -> None:
    bank = bank_of_two()
    plan = data_free_plan(bank, PlanSettings(dof=0.4, families=FAMILIES))
    assert plan.dof_before == 8 * 3 * 9 + 12 * 8 * 25
    assert plan.dof_after <= 0.4 * plan.dof_before
    for layer in plan.layers:
        for index in np.unique(layer.choice):
            name = plan.structures[index]
            expected = np.prod(layer.grid) if name == "free" else find(name, layer.grid).dim
            assert layer.dims[index] == expected
    assert plan.equivalent_dof == pytest.approx(
        (plan.dof_after * plan.coefficient_bits + plan.choice_bits) / plan.coefficient_bits
    )
    assert plan.equivalent_dof > plan.dof_after


def test_the_residual_of_a_plan_is_the_relative_error_of_each_choice() -> None:
    bank = bank_of_two()
    plan = data_free_plan(bank, PlanSettings(dof=0.4, families=FAMILIES))
    for layer, kernels in zip(plan.layers, bank.layers, strict=True):
        for out, into in np.ndindex(*layer.choice.shape):
            name = plan.structures[layer.choice[out, into]]
            expected = (
                0.0 if name == "free" else float(find(name, layer.grid).residual(kernels.kernels[out, into]))
            )
            assert layer.residual[out, into] == pytest.approx(expected, abs=1e-5)


def test_layers_can_be_picked_passed_over_and_kept() -> None:
    bank = bank_of_two()
    assert chosen_layers(bank, PlanSettings(layers=("sec*",))) == {"second"}
    assert chosen_layers(bank, PlanSettings(skip_layers=("sec*",))) == {"first"}
    assert chosen_layers(bank, PlanSettings(keep_first=True)) == {"second"}
    plan = data_free_plan(bank, PlanSettings(dof=0.5, families=FAMILIES, keep_first=True))
    assert not plan.layer("first").changed.any()
    assert plan.layer("second").changed.any()


def test_a_glob_that_matches_nothing_is_an_error_in_these_words() -> None:
    with pytest.raises(KernelsimpError) as caught:
        chosen_layers(bank_of_two(), PlanSettings(skip_layers=("secnd",)))
    assert str(caught.value) == "--skip-layers: no layer matches 'secnd'; did you mean 'second'?"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dof": 1.5}, "--dof is 1.5; expected a number from 0 to 1"),
        ({"dof": 0.5, "choice_weight": -0.5}, "--choice-weight is -0.5; expected a number from 0 to 1"),
        ({"simplified": -1.0}, "--simplified is -1; expected a number from 0 to 1"),
        (
            {"dof": 0.1, "families": ("mirror-h",)},
            "--dof 0.1 is out of reach: these structures leave 0.606 at least",
        ),
        (
            {"simplified": 0.9, "keep_first": True, "layers": ("first",)},
            "--simplified 0.9 is out of reach: at most 0.000 can be",
        ),
        ({"dof": 0.5, "cost": "fitler"}, "--cost is 'fitler'; did you mean 'filter'?"),
        ({"dof": 0.5, "cost": "layer"}, "--cost layer needs images and the network: pass --data and --arch"),
        ({}, "no budget was given; pass --dof, --simplified or --max-drop"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused_in_these_words(
    settings: dict[str, object], words: str
) -> None:
    with pytest.raises(KernelsimpError) as caught:
        data_free_plan(bank_of_two(), PlanSettings(**settings))  # type: ignore[arg-type]
    assert str(caught.value) == words


def test_only_found_leaves_the_rest_free() -> None:
    layer = layer_of("planted", (20, 20, 5, 5), 3)
    planted = torch.zeros(20, 20, dtype=torch.bool)
    planted.view(-1)[::20] = True
    layer.kernels[planted] = find("mirror-v", (5, 5)).snap(layer.kernels[planted])
    settings = PlanSettings(simplified=0.04, families=FAMILIES, only_found=True)
    plan = data_free_plan(KernelBank((layer,)), settings)
    assert plan.layers[0].changed.sum() >= 16
    assert not (plan.layers[0].changed & ~planted.numpy()).sum() > 2
    assert plan.layers[0].found[plan.layers[0].changed].all()


# ---------------------------------------------------------------- costs


def sensitivity(layer: LayerKernels, seed: int = 0) -> Sensitivity:
    generator = torch.Generator().manual_seed(seed)
    inputs, cells = layer.kernels.shape[1] * layer.groups, layer.kernels[0, 0].numel()
    root = torch.randn(inputs, cells, cells, dtype=torch.float64, generator=generator)
    return Sensitivity(
        root.mT @ root, torch.rand(len(layer.kernels), dtype=torch.float64, generator=generator)
    )


def test_a_depthwise_kernel_costs_what_the_best_member_of_its_structure_does() -> None:
    layer = layer_of("one", (6, 1, 3, 3), 4, 6)
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(6, 9, 9, dtype=torch.float64, generator=generator)
    seen = replace(sensitivity(layer), kernels=root.mT @ root)
    offer = candidates_for(layer, ("mirror-h", "constant", "zero", "rank-one"))
    table = cost_table(layer, offer, seen, cost_of(layer, "kind"))
    damped = seen.kernels + DAMPING * seen.kernels.diagonal(dim1=1, dim2=2).mean() * torch.eye(9)
    kernels = layer.kernels.double().reshape(6, 9)
    for place, candidate in enumerate(offer):
        flats = candidate.projectors(kernels)
        for number, w in enumerate(kernels):
            flat = (
                torch.eye(9, dtype=torch.float64)
                if flats is None
                else flats
                if flats.ndim == 2
                else flats[number]
            )
            basis = torch.linalg.svd(flat)[0][:, : round(float(flat.trace()))]
            root = torch.linalg.cholesky(damped[number]).mT
            nearest = (
                torch.linalg.lstsq(root @ basis, root @ w).solution if basis.shape[1] else w.new_zeros(0)
            )
            assert float(table[number, place]) == pytest.approx(
                float((root @ (w - basis @ nearest)).square().sum()), rel=1e-4, abs=1e-6
            )


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("cost", COSTS)
def test_costs_are_what_their_formulas_say(cost: str, groups: int) -> None:
    layer = layer_of("one", (6, 12 // groups, 3, 3), 4, groups)
    seen = sensitivity(layer)
    offer = candidates_for(layer, ("mirror-h", "constant", "zero"))
    table = cost_table(layer, offer, seen, cost).reshape(6, 12 // groups, len(offer))
    for out, into, place in np.ndindex(6, 12 // groups, len(offer)):
        w = layer.kernels[out, into].double().reshape(-1)
        projector = offer[place].projector
        e = w - projector @ w if projector is not None else w - w
        channel = out // (6 // groups) * (12 // groups) + into
        weighted = e @ seen.blocks[channel] @ e
        expected = {
            "absolute": e @ e,
            "layer": seen.fisher.mean() * weighted,
            "filter": seen.fisher[out] * weighted,
            "mixed": (e @ e * seen.fisher.mean() * weighted).sqrt(),
        }[cost]
        assert float(table[out, into, place]) == pytest.approx(float(expected), rel=1e-4, abs=1e-9)


def test_the_predicted_loss_is_half_the_filter_cost() -> None:
    layer = layer_of("one", (6, 4, 3, 3), 5)
    seen = sensitivity(layer)
    offer = candidates_for(layer, ("constant",))
    errors = offer[1].errors(layer.kernels.double().reshape(24, 9))
    expected = 0.5 * float(cost_table(layer, offer, seen, "filter")[:, 1].double().sum())
    assert predicted_loss(layer, errors, seen) == pytest.approx(expected, rel=1e-5)


def test_without_images_inputs_count_as_white() -> None:
    layer = layer_of("one", (4, 4, 3, 3), 6)
    offer = candidates_for(layer, ("mirror-h", "zero"))
    first, *others = (cost_table(layer, offer, None, cost) for cost in COSTS)
    assert all(torch.allclose(first, other, atol=1e-7) for other in others)


def test_a_plan_of_choices_predicts_their_loss() -> None:
    bank = KernelBank((layer_of("one", (6, 4, 3, 3), 5),))
    seen = {"one": sensitivity(bank.layers[0])}
    prepared = prepare(bank, PlanSettings(families=FAMILIES), seen)
    tables = cost_tables(prepared, "filter")
    choices = choose_for_dof(tables, 0.3)
    _, predicted = plan_of(prepared, tables, choices, "filter")
    paid = tables[0].costs[torch.arange(24), choices.structures[0]].double().sum()
    assert predicted == pytest.approx({"one": float(paid) / 2}, rel=1e-5)


def test_the_cost_by_kind_is_the_filters_where_depthwise_and_absolute_elsewhere_in_one_unit() -> None:
    bank = KernelBank((layer_of("dense", (6, 4, 3, 3), 5), layer_of("deep", (8, 1, 3, 3), 6, groups=8)))
    seen = {layer.name: sensitivity(layer) for layer in bank.layers}
    prepared = prepare(bank, PlanSettings(families=FAMILIES), seen)
    dense, deep = cost_tables(prepared, BY_KIND)
    offers = prepared.offers
    assert torch.equal(deep.costs, cost_table(bank.layers[1], offers["deep"], seen["deep"], "filter"))
    absolute = cost_table(bank.layers[0], offers["dense"], seen["dense"], "absolute")
    informed = cost_table(bank.layers[0], offers["dense"], seen["dense"], "filter")
    zero = [item.name for item in offers["dense"]].index("zero")
    rate = float(informed[:, zero].double().sum() / absolute[:, zero].double().sum())
    assert torch.allclose(dense.costs, rate * absolute, rtol=1e-4)
    assert float(dense.costs[:, zero].sum()) == pytest.approx(float(informed[:, zero].sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["dense", "dense"], tuple(COSTS)),
        (["depthwise", "depthwise"], tuple(COSTS)),
        (["dense", "depthwise"], ("kind", "filter", "mixed")),
    ],
)
def test_auto_tries_the_cost_by_kind_where_there_are_several(
    kinds: list[str], expected: tuple[str, ...]
) -> None:
    assert costs_to_try(kinds) == expected


def test_a_share_of_kernels_is_reached_at_one_price_of_a_bit() -> None:
    tables = menus_of(bank_of_two())
    found = choose_for_count(tables, 0.6)
    again = choices_at(tables, found.multiplier)
    assert all(torch.equal(a, b) for a, b in zip(found.structures, again.structures, strict=True))
    assert dof_share(tables, found) < 0.75  # simplified kernels are as short as the price makes them
