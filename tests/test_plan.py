from dataclasses import replace

import numpy as np
import pytest
import torch

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.families import find
from kernelsimp.records.plan_file import read_plan, save_plan
from kernelsimp.settings import PlanSettings
from kernelsimp.solver.apply import apply_plan
from kernelsimp.solver.tolerance import weight_plan
from kernelsimp.training.survival import outside


def planted_bank(dtype: torch.dtype = torch.float32, noise: float = 0.02) -> KernelBank:
    """Two layers; in the first, kernels [0, :3] are planted near mirror-h, equal-rows and constant."""
    generator = torch.Generator().manual_seed(7)
    first = torch.randn(4, 6, 3, 3, generator=generator)
    for place, name in enumerate(("mirror-h", "equal-rows", "constant")):
        exact = find(name, (3, 3)).snap(first[0, place])
        exact *= 3 / exact.norm()
        first[0, place] = exact + noise * exact.norm() / 3 * torch.randn(3, 3, generator=generator)
    second = torch.randn(3, 4, 5, 5, generator=generator)
    second[1, 1] = 0
    layers = (
        LayerKernels("a", "dense", first.to(dtype)),
        LayerKernels("b", "dense", second.to(dtype)),
        LayerKernels("point", "dense", torch.randn(2, 2, 1, 1, generator=generator).to(dtype)),
    )
    return KernelBank(layers)


def test_a_tolerance_takes_the_planted_kernels_and_the_least_dimension():
    plan = weight_plan(planted_bank(), PlanSettings(tolerance=0.05))
    names = [plan.structures[i] for i in plan.layer("a").choice[0, :3]]
    assert names == ["mirror-h", "equal-rows", "constant"]
    assert plan.simplified == 3
    assert plan.dof_before == 24 * 9 + 12 * 25
    assert plan.dof_after == plan.dof_before - (9 - 6) - (9 - 3) - (9 - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_applied_kernels_are_bitwise_in_their_family_and_the_others_keep_their_bits(dtype):
    kernels = planted_bank(dtype)
    plan = weight_plan(kernels, PlanSettings(dof=0.6))
    changed = apply_plan(kernels, plan)
    for layer in plan.layers:
        weight = changed[f"{layer.name}.weight"]
        before = next(item.kernels for item in kernels.layers if item.name == layer.name)
        assert weight.dtype == dtype
        assert not outside(weight, layer, plan.structures).any()
        free = torch.from_numpy(~layer.changed)
        assert torch.equal(weight[free], before[free])
    assert outside(planted_bank(dtype).layers[0].kernels, plan.layers[0], plan.structures).any()


@pytest.mark.parametrize("share", [0.9, 0.6, 0.49])
def test_a_budget_is_met_and_hardly_overshot(share):
    plan = weight_plan(planted_bank(), PlanSettings(dof=share))
    left = plan.dof_after / plan.dof_before
    assert share - 0.06 < left <= share


def test_a_plan_without_a_match_changes_nothing():
    kernels = planted_bank()
    plan = weight_plan(kernels, PlanSettings(tolerance=0.0))
    assert plan.simplified == 0
    assert apply_plan(kernels, plan) == {}
    assert plan.choice_bits == 0


def test_a_plan_survives_its_file(tmp_path):
    plan = weight_plan(planted_bank(), PlanSettings(dof=0.6))
    save_plan(plan, tmp_path / "plan.safetensors")
    again = read_plan(tmp_path / "plan.safetensors")
    assert again.structures == plan.structures
    assert dict(again.rule) == dict(plan.rule)
    for old, new in zip(plan.layers, again.layers, strict=True):
        assert (old.name, old.kind, old.groups, tuple(old.grid)) == (new.name, new.kind, new.groups, new.grid)
        for array in ("choice", "found", "dead", "residual", "dims"):
            assert np.array_equal(getattr(old, array), getattr(new, array))


def test_a_file_that_is_no_plan_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"nonsense")
    with pytest.raises(KernelsimpError, match="not a readable plan"):
        read_plan(tmp_path / "x")


def test_a_plan_for_another_network_is_refused():
    plan = weight_plan(planted_bank(), PlanSettings(tolerance=0.05))
    other = KernelBank((LayerKernels("a", "dense", torch.zeros(4, 6, 5, 5)),))
    with pytest.raises(KernelsimpError, match=r"a: the plan is for kernels \(4, 6, 3, 3\), this network has"):
        apply_plan(other, plan)
    with pytest.raises(KernelsimpError, match="names layer 'a'"):
        apply_plan(KernelBank(()), plan)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (PlanSettings(tolerance=1.5), "--tolerance is 1.5; expected a number from 0 to 1"),
        (PlanSettings(dof=-1.0), "--dof is -1; expected a number from 0 to 1"),
        (PlanSettings(dof=0.01), "--dof 0.01 is out of reach: these families leave"),
        (
            PlanSettings(tolerance=0.1, families=("miror-h",)),
            "unknown family 'miror-h'; did you mean 'mirror-h'",
        ),
    ],
)
def test_impossible_settings_are_one_line(settings, words):
    with pytest.raises(KernelsimpError) as caught:
        weight_plan(planted_bank(), settings)
    assert words in str(caught.value)


@pytest.mark.parametrize("budget", [{"tolerance": 0.9}, {"dof": 0.8}])
def test_the_simple_rule_changes_only_what_it_may(budget: dict[str, float]) -> None:
    bank, settings = planted_bank(), PlanSettings(**budget)  # type: ignore[arg-type]
    whole = weight_plan(bank, settings)
    assert whole.layer("a").changed.any()
    assert whole.layer("b").changed.any()
    for some in (
        PlanSettings(keep_first=True),
        PlanSettings(skip_layers=("a",)),
        PlanSettings(layers=("b",)),
    ):
        plan = weight_plan(bank, replace(some, **budget))
        assert not plan.layer("a").changed.any()
        assert plan.layer("b").changed.any()
    found = weight_plan(bank, PlanSettings(tolerance=0.9, only_found=True)).layer("a")
    assert found.changed.any()
    assert (found.changed == whole.layer("a").found).all()
    with pytest.raises(KernelsimpError, match="no layer matches 'nowhere'"):
        weight_plan(bank, PlanSettings(tolerance=0.9, layers=("nowhere",)))


@pytest.mark.parametrize("name", ["rank-one", "template-gabor", "prototypes-8", "prototypes-4"])
def test_the_simple_rule_knows_no_structure_that_bends(name: str) -> None:
    settings = PlanSettings(tolerance=0.2, families=("mirror-h", name))
    with pytest.raises(KernelsimpError, match=f"linear families alone; leave '{name}' out of --families"):
        weight_plan(planted_bank(), settings)


def test_a_plan_that_is_not_there_is_called_that(tmp_path):
    with pytest.raises(KernelsimpError, match=r"no\.safetensors: there is no plan; 'kernelsimp simplify"):
        read_plan(tmp_path / "no.safetensors")
