"""Magnitude pruning: known answers, a slow twin, holds that hold, and the command line."""

import json
import shlex

import numpy as np
import pytest
import torch
from builders import NET, tiny_net, tiny_state, weights_in, write_zip

from kernelsimp.cli.main import run
from kernelsimp.commands.prune import settle_for_pruning
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import masks
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.structures import find
from kernelsimp.models.layers import bank_from_model
from kernelsimp.settings import PruneSettings
from kernelsimp.solver.apply import apply_plan
from kernelsimp.solver.magnitude import check_pruning, magnitude_plan, shares_left

CELLS = 16 * 9  # of the stem (12 kernels) and the depthwise layer (4)


def tiny_bank() -> KernelBank:
    return bank_from_model(tiny_net())


def applied(settings: PruneSettings, share: float, of: KernelBank | None = None) -> dict[str, torch.Tensor]:
    source = of or tiny_bank()
    return apply_plan(source, magnitude_plan(source, settings, share))


# --- the structure


def test_a_mask_is_a_structure_with_a_name():
    kept = np.array([True, False, True, True, False, False])
    name = masks.name_of(kept)
    assert name == "cells-101100"
    subspace = find(name, (2, 3))
    assert subspace.dim == 3
    kernel = torch.arange(1.0, 7).reshape(1, 2, 3)
    snapped = subspace.snap(kernel)
    assert snapped.flatten().tolist() == [1, 0, 3, 4, 0, 0]
    assert subspace.holds(snapped).all()
    assert not subspace.holds(kernel).any()
    assert (masks.kind_of(name), masks.kind_of("mirror-h")) == ("3 of 6 cells", "mirror-h")


@pytest.mark.parametrize("name", ["cells-1011", "cells-10110x"])
def test_a_name_that_is_no_mask_is_refused(name):
    words = f"structure '{name}' is no mask of 6 cells; expected 6 digits 0 or 1"
    with pytest.raises(KernelsimpError, match=words):
        find(name, (2, 3))


# --- what is removed


def test_weights_are_removed_from_the_smallest_on_like_a_sort_by_hand():
    before = tiny_state()
    names = ("stem.weight", "depthwise.weight")
    every = torch.cat([before[name].flatten() for name in names]).abs().sort().values
    limit = every[round(0.3 * CELLS)]
    after = applied(PruneSettings(), 0.7)
    for name in names:
        expected = torch.where(before[name].abs() < limit, 0, before[name])
        assert torch.equal(after[name], expected)
    assert sum(int((after[name] == 0).sum()) for name in names) == round(0.3 * CELLS)


def test_each_layer_by_itself_loses_its_own_share():
    after = applied(PruneSettings(scope="layer"), 0.5)
    assert {name: int((value == 0).sum()) for name, value in after.items()} == {
        "stem.weight": 54,
        "depthwise.weight": 18,
    }


@pytest.mark.parametrize(("granularity", "axes"), [("kernels", (2, 3)), ("filters", (1, 2, 3))])
def test_kernels_and_filters_go_as_one_by_mean_magnitude(granularity, axes):
    before = tiny_state()
    after = applied(PruneSettings(granularity=granularity, scope="layer"), 0.5)
    for name, value in after.items():
        score = before[name].abs().mean(axes).flatten()
        gone = (value == 0).all(3).all(2)
        gone = gone.all(1) if granularity == "filters" else gone.flatten()
        assert gone.sum() == len(score) // 2
        assert score[gone].max() < score[~gone].min()
        untouched = value != 0
        assert torch.equal(value[untouched], before[name][untouched])


def test_every_layer_keeps_its_largest_unit():
    state = tiny_state()
    small = LayerKernels("small", "dense", state["stem.weight"] * 1e-6)
    large = LayerKernels("large", "dense", state["depthwise.weight"])
    for granularity in ("weights", "kernels", "filters"):
        after = applied(PruneSettings(granularity=granularity), 0.2, KernelBank((small, large)))
        assert (after["small.weight"] != 0).any(), granularity


def test_later_iterations_only_add_and_residuals_are_against_the_original():
    origin, settings = tiny_bank(), PruneSettings()
    first = magnitude_plan(origin, settings, 0.8)
    model = tiny_net()
    model.load_state_dict(apply_plan(origin, first), strict=False)
    now = bank_from_model(model)
    second = magnitude_plan(now, settings, 0.5, origin)
    after = apply_plan(now, second)
    for layer in origin.spatial:
        once, twice = apply_plan(origin, first)[f"{layer.name}.weight"], after[f"{layer.name}.weight"]
        assert ((once == 0) <= (twice == 0)).all()
        kernels, pruned = layer.kernels.double().flatten(2), twice.double().flatten(2)
        residual = (kernels - pruned).norm(dim=2) / kernels.norm(dim=2)
        assert np.allclose(second.layer(layer.name).residual, residual.numpy(), atol=1e-6)
    assert second.dof_after == CELLS // 2


def test_degrees_of_freedom_are_the_numbers_left():
    for granularity in ("weights", "kernels", "filters"):
        settings = PruneSettings(granularity=granularity)
        plan = magnitude_plan(tiny_bank(), settings, 0.6)
        after = apply_plan(tiny_bank(), plan)
        changed = sum(int((value != 0).sum()) for value in after.values())
        untouched = sum(layer.choice.size * 9 for layer in plan.layers if not layer.changed.any())
        assert plan.dof_after == changed + untouched
        assert plan.choice_bits > 0
        assert 0 < plan.coefficient_bits < 32


def test_shares_of_iterations():
    assert shares_left(tiny_bank(), PruneSettings(iterations=3)) == pytest.approx((0.8, 0.64, 0.512))
    steps = shares_left(tiny_bank(), PruneSettings(dof=0.25, iterations=2))
    assert steps == pytest.approx((0.5, 0.25))
    (share,) = shares_left(tiny_bank(), PruneSettings(dof=0.75, layers=("stem",)))
    assert share * 108 + 36 == pytest.approx(0.75 * CELLS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (PruneSettings(amount=1.0), "--amount is 1; expected a number between 0 and 1"),
        (PruneSettings(dof=0.0), "--dof is 0; expected a number between 0 and 1"),
        (PruneSettings(iterations=0), "--iterations is 0; expected 1 or more"),
        (PruneSettings(scope="globl"), "--scope is 'globl'; did you mean 'global'?"),
        (PruneSettings(granularity="filter"), "--granularity is 'filter'; did you mean 'filters'?"),
        (PruneSettings(rewind="weights"), "--rewind is 'weights'; known: lr, none"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(KernelsimpError) as caught:
        check_pruning(settings)
    assert str(caught.value) == words


def test_a_budget_out_of_reach_says_what_is_in_the_way():
    with pytest.raises(KernelsimpError) as caught:
        shares_left(tiny_bank(), PruneSettings(dof=0.2, skip_layers=("stem",)))
    assert str(caught.value) == "--dof 0.2 is out of reach: the other layers are 0.750 of all"


def test_too_many_masks_for_a_plan(monkeypatch):
    monkeypatch.setattr("kernelsimp.solver.magnitude.MOST_STRUCTURES", 3)
    with pytest.raises(
        KernelsimpError, match=r"different masks, more than a plan can name \(3\); pass --gra"
    ):
        magnitude_plan(tiny_bank(), PruneSettings(), 0.5)


# --- the command line


def test_the_story_from_the_command_line(model, images, tmp_path, capsys):
    out = tmp_path / "run"
    asked = ["prune", str(model), "--arch", NET, "--data", images, "--batch-size", "16", "--epochs", "2"]
    more = ["--amount", "0.25", "--iterations", "2", "--rewind", "lr", "--lr", "0.1", "--out", str(out)]
    assert run([*asked, *more]) == 0
    printed = capsys.readouterr().out
    assert "75.0 % left" in printed
    assert "iterations: 2, trained by the whole schedule after each" in printed
    report = json.loads((out / "report.json").read_text())
    stages = [stage["stage"] for stage in report["accuracy"]["stages"]]
    assert stages == ["original", "75.0 % left", "56.2 % left"]
    assert [epoch["epoch"] for epoch in report["training"]] == [1, 2, 3, 4]
    rates = [epoch["lr"] for epoch in report["training"]]
    assert rates[:2] == rates[2:]  # rewound
    assert rates[0] > rates[1]
    after = weights_in(out)
    zeros = sum(int((after[name] == 0).sum()) for name in ("stem.weight", "depthwise.weight"))
    assert report["dof"]["after"] == CELLS - zeros == 81
    assert not torch.equal(after["head.weight"], tiny_state()["head.weight"])
    assert report["hold"] == "tie"
    assert report["kernels"]["found"] == 0
    baseline = ["--baseline", str(out / "report.json"), "--quiet"]
    assert run(["check", str(out / "tiny.pt"), *baseline]) == 0
    after["stem.weight"][after["stem.weight"] == 0] = 0.5
    broken = write_zip({"state_dict": after}, tmp_path / "broken.pt")
    assert run(["check", str(broken), *baseline]) == 1


def test_a_run_repeats_from_its_settings(model, images, tmp_path):
    first, second = tmp_path / "run", tmp_path / "run-again"
    asked = [
        "prune",
        str(model),
        "--arch",
        NET,
        "--data",
        images,
        "--epochs",
        "1",
        "--granularity",
        "kernels",
    ]
    assert run([*asked, "--dof", "0.6", "--quiet", "--out", str(first)]) == 0
    command = json.loads((first / "report.json").read_text())["provenance"]["command"]
    assert run([*shlex.split(command)[1:], "--quiet"]) == 0
    one, other = weights_in(first), weights_in(second)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_rewind_none_trains_only_at_the_end(model, images, tmp_path):
    out = tmp_path / "run"
    asked = ["prune", str(model), "--arch", NET, "--data", images, "--epochs", "1", "--rewind", "none"]
    assert run([*asked, "--iterations", "3", "--quiet", "--out", str(out)]) == 0
    assert len(json.loads((out / "report.json").read_text())["training"]) == 1


def test_filters_without_images_say_that_shapes_stay(model, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(["prune", str(model), "--granularity", "filters", "--amount", "0.5", "--out", str(out)]) == 0
    assert "no images were given: nothing is trained after pruning" in capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert any(note.startswith("filters were set to zero and their tensors kept") for note in report["notes"])
    after, before = weights_in(out), tiny_state()
    assert {name: value.shape for name, value in after.items()} == {n: v.shape for n, v in before.items()}
    gone = (after["stem.weight"] == 0).flatten(1).all(1)
    assert 0 < gone.sum() < 4
    assert torch.equal(after["stem.weight"][~gone], before["stem.weight"][~gone])
    assert report["kernels"]["simplified"] == report["kernels"]["zeroed"] > 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--hold", "freeze"], "--hold, --free-scale and --soft are for simplify: prune keeps zeros at zero"),
        (["--soft", "0.1"], "--hold, --free-scale and --soft are for simplify: prune keeps zeros at zero"),
        (["--devices", "2"], "prune trains in one process; leave out --devices, --num-nodes and torchrun"),
        (["--amount", "0.3", "--dof", "0.5"], "choose one budget, not both --amount and --dof"),
        (["--amount", "0"], "--amount is 0; expected a number between 0 and 1"),
        (["--layers", "stm"], "--layers"),
        (["--robustness"], "--robustness needs a network and images: pass --arch and --data"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(model, tmp_path, more, words, capsys):
    out = tmp_path / "run"
    assert run(["prune", str(model), *more, "--quiet", "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not out.exists()


def test_a_place_to_write_is_needed(model, capsys):
    assert run(["prune", str(model)]) == 2
    assert "prune needs a place to write: pass --out RUN" in capsys.readouterr().err


def test_a_layer_that_is_all_but_gone_is_named(tmp_path):
    state = tiny_state()
    state["stem.weight"] = state["stem.weight"] * 1e-6
    small, notes = write_zip({"state_dict": state}, tmp_path / "tiny.pt"), {}
    for scope in ("global", "layer"):
        out = tmp_path / scope
        asked = ["prune", str(small), "--amount", "0.74", "--scope", scope, "--quiet", "--out", str(out)]
        assert run(asked) == 0
        notes[scope] = json.loads((out / "report.json").read_text())["notes"]
    words = "less than a tenth is left of stem; --scope layer takes as much from each"
    assert words in notes["global"]
    assert words not in notes["layer"]


def test_pruning_trains_unless_told_otherwise():
    assert settle_for_pruning({}, None).finetune.finetune
    assert not settle_for_pruning({"finetune": {"finetune": False}}, None).finetune.finetune
    assert settle_for_pruning({"model": {"arch": "zoo:resnet20"}}, None).data.augment == "cifar"
