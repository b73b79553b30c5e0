"""The gate: ten kinds of damage are caught, each figure is bounded on its side, baselines are kept."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reports
import torch
from torch import Tensor

from kernelsimp.check import USUAL, Subject, baseline_from, check, with_max
from kernelsimp.check.rules import limits_from
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome
from kernelsimp.records.limits import Baseline, Limits, baseline_of
from kernelsimp.records.verdict import Verdict
from kernelsimp.report.baselines import baseline_text, read_baseline, write_baseline
from kernelsimp.report.plain import json_text
from kernelsimp.report.store import report_json

LAYER = "layer1.0.conv1"
FINGERPRINT = "cd" * 32


def tensors() -> dict[str, Tensor]:
    return {f"{name}.weight": kernels.clone() for name, kernels in reports.before_and_after()[1].items()}


def baseline() -> Baseline:
    return baseline_of(reports.report())


def outcome(correct: int) -> Outcome:
    right = np.zeros(reports.TOTAL, dtype=bool)
    right[np.random.default_rng(2).permutation(reports.TOTAL)[:correct]] = True
    return Outcome(right, 0.3)


def only(rule: str, **bounds: object) -> Limits:
    limit = limits_from({rule: bounds}).of(rule)
    assert limit is not None
    return Limits((limit,))


# ---------------------------------------------------------------- ten damaged checkpoints


def at(structure: int) -> tuple[int, int]:
    out, into = np.argwhere(reports.before_and_after()[2].layer(LAYER).choice == structure)[0]
    return int(out), int(into)


def flip(values: dict[str, Tensor]) -> None:
    values[f"{LAYER}.weight"][at(1)].view(torch.int32)[0, 0] ^= 1


def swap(values: dict[str, Tensor]) -> None:
    values[f"{LAYER}.weight"] = values[f"{LAYER}.weight"].flip(0)


def add_noise(values: dict[str, Tensor]) -> None:
    values[f"{LAYER}.weight"] += 1e-3


def scale(values: dict[str, Tensor]) -> None:
    values["conv1.weight"] *= 1.01


def poison(values: dict[str, Tensor]) -> None:
    values[f"{LAYER}.weight"][at(0)][1, 1] = torch.nan


def lose(values: dict[str, Tensor]) -> None:
    del values["layer2.0.conv1.weight"]


def reshape(values: dict[str, Tensor]) -> None:
    values["conv1.weight"] = values["conv1.weight"][:, :, :2]


def add(values: dict[str, Tensor]) -> None:
    values["extra.weight"] = torch.ones(2, 2, 3, 3)


def halve(values: dict[str, Tensor]) -> None:
    values["conv1.weight"] = values["conv1.weight"].half()


def revive(values: dict[str, Tensor]) -> None:
    values[f"{LAYER}.weight"][at(3)] = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))


FROZEN, BROKEN, NAN, LAYERS = (
    "kernels.frozen_changed",
    "kernels.structure_broken",
    "kernels.nan",
    "layers.changed",
)

DAMAGED: list[tuple[Callable[[dict[str, Tensor]], None], set[str]]] = [
    (flip, {FROZEN, BROKEN}),
    (swap, {FROZEN, BROKEN}),
    (add_noise, {FROZEN, BROKEN}),
    (scale, {FROZEN}),
    (poison, {NAN}),
    (lose, {LAYERS}),
    (reshape, {LAYERS}),
    (add, {LAYERS}),
    (halve, {FROZEN}),
    (revive, {FROZEN, BROKEN}),
]


@pytest.mark.parametrize(("damage", "rules"), DAMAGED, ids=lambda item: getattr(item, "__name__", ""))
def test_a_damaged_checkpoint_fails_by_the_right_rules(
    damage: Callable[[dict[str, Tensor]], None], rules: set[str]
) -> None:
    values = tensors()
    damage(values)
    verdict = check(baseline(), Subject(values))
    assert {finding.rule for finding in verdict.findings} == rules
    assert verdict.exit_code == 1
    assert all("\n" not in finding.message for finding in verdict.findings)


def test_an_undamaged_checkpoint_passes_and_says_what_it_did_not_measure() -> None:
    verdict = check(baseline(), Subject(tensors()))
    assert verdict.findings == ()
    assert verdict.exit_code == 0
    assert {measure.rule: measure.outcome for measure in verdict.measures} == {
        "accuracy.drop_pp": "skip",
        "kernels.frozen_changed": "pass",
        "kernels.structure_broken": "pass",
        "kernels.nan": "pass",
        "weights.nan": "pass",
        "layers.changed": "pass",
        "layers.zeroed": "pass",
    }


def test_a_tolerated_number_of_damaged_kernels_passes() -> None:
    values = tensors()
    flip(values)
    limits = with_max(with_max(USUAL, FROZEN, 1), BROKEN, 1)
    assert check(baseline(), Subject(values), limits).findings == ()
    assert check(baseline(), Subject(values), with_max(limits, BROKEN, 0)).exit_code == 1


def test_a_warning_does_not_fail() -> None:
    values = tensors()
    poison(values)
    limits = limits_from({NAN: {"max": 0, "level": "warn"}})
    verdict = check(baseline(), Subject(values), limits)
    assert [finding.level for finding in verdict.findings] == ["warn"]
    assert verdict.exit_code == 0


# ---------------------------------------------------------------- figures


def figure(rule: str, values: dict[str, Tensor] | None = None) -> float:
    (measure,) = check(baseline(), Subject(values or tensors()), only(rule, max=1e9)).measures
    assert measure.measured is not None
    return measure.measured


def test_figures_of_an_undamaged_network_are_those_of_its_report() -> None:
    report = reports.report()
    assert figure("kernels.simplified_share") == report.kernels.simplified / report.kernels.total
    assert figure("dof.fraction") == report.dof.fraction
    assert figure("bits.per_kernel") == pytest.approx(report.bits["after"] / report.kernels.total)
    bare = replace(baseline(), coefficient_bits=None)
    (measure,) = check(bare, Subject(tensors()), only("bits.per_kernel", max=1)).measures
    assert measure.measured == pytest.approx((report.dof.after * 32 + 900) / report.kernels.total)


def test_a_kernel_out_of_its_structure_counts_in_full() -> None:
    values, report = tensors(), reports.report()
    flip(values)
    assert (
        figure("kernels.simplified_share", values) == (report.kernels.simplified - 1) / report.kernels.total
    )
    assert figure("dof.fraction", values) == (report.dof.after + 9 - 6) / report.dof.before


def test_dead_kernels_are_counted_as_a_bank_counts_them() -> None:
    from kernelsimp.models.layers import bank_from_tensors

    bank = bank_from_tensors(tensors())
    dead = sum(int(layer.dead().sum()) for layer in bank.spatial)
    assert dead > 0
    assert figure("kernels.dead_share") == dead / sum(layer.count for layer in bank.spatial)


@pytest.mark.parametrize(
    ("bounds", "passes"),
    [
        ({"max": 0.6}, True),
        ({"max": 0.5}, False),
        ({"min": 0.5}, True),
        ({"min": 0.6}, False),
        ({"max_delta": 0.0}, True),
        ({"max_delta": -0.01}, False),
        ({"min_delta": 0.0}, True),
        ({"min_delta": 0.01}, False),
    ],
)
def test_each_bound_bounds_its_side(bounds: dict[str, float], passes: bool) -> None:
    verdict = check(baseline(), Subject(tensors()), only("dof.fraction", **bounds))
    assert (verdict.exit_code == 0) is passes


def test_a_crossed_figure_says_what_it_is_and_was() -> None:
    (finding,) = check(baseline(), Subject(tensors()), only("dof.fraction", max=0.5)).findings
    fraction = reports.report().dof.fraction
    assert finding.message == f"dof.fraction is {fraction:.6g}, was {fraction:.6g}; allowed: max 0.5"
    assert (finding.where, finding.limit) == ("", 0.5)


def test_a_change_that_the_baseline_cannot_tell_is_crossed() -> None:
    bare = replace(baseline(), measured={})
    verdict = check(bare, Subject(tensors()), only("dof.fraction", max_delta=0.1))
    assert verdict.exit_code == 1
    assert verdict.findings[0].message == (
        "dof.fraction: the baseline does not say what it was, so max_delta 0.1 cannot be judged; "
        "make the baseline again"
    )


def test_accuracy_is_gated_with_data_and_against_either_stage() -> None:
    def gate(correct: int, against: str = "last", **bounds: float) -> Verdict:
        subject = Subject(tensors(), outcome(correct), FINGERPRINT, against)
        return check(baseline(), subject, only("accuracy.drop_pp", **(bounds or {"max": 0.5})))

    assert gate(924).exit_code == 0
    assert gate(923).exit_code == 1
    assert gate(926, "original").exit_code == 1
    (finding,) = gate(900).findings
    assert "McNemar p 3.7e-09" in finding.message
    assert finding.message.endswith("; allowed drop in pp: max 0.5")
    with pytest.raises(KernelsimpError, match="--against is 'first'; expected last or original"):
        gate(924, "first")


def test_top1_has_the_baselines_stage_beside_it() -> None:
    subject = Subject(tensors(), outcome(900), FINGERPRINT)
    (measure,) = check(baseline(), subject, only("accuracy.top1", min=90)).measures
    assert (measure.measured, measure.baseline, measure.outcome) == (90.0, 92.9, "pass")
    assert check(baseline(), subject, only("accuracy.top1", min_delta=-2)).exit_code == 1


# ---------------------------------------------------------------- baselines


def test_a_baseline_file_is_read_back_and_stable_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(baseline(), path)
    back = read_baseline(path)
    assert back.layers == baseline().layers
    assert baseline_text(back) == path.read_text()
    turned = replace(baseline(), layers=baseline().layers[::-1])
    assert baseline_text(turned) == path.read_text()
    assert check(back, Subject(tensors())).exit_code == 0


def test_a_baseline_file_does_not_depend_on_the_order_of_keys() -> None:
    turned = dict(reversed(baseline().measured.items()))
    assert list(turned) != list(baseline().measured)
    assert baseline_text(replace(baseline(), measured=turned)) == baseline_text(baseline())
    data = json.loads(baseline_text(baseline()))
    assert list(data) == sorted(data)


def test_a_reports_file_and_its_run_serve_as_a_baseline(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json_text(report_json(reports.report())))
    assert read_baseline(path) == read_baseline(tmp_path) == baseline()


def test_a_missing_baseline_says_the_line_that_makes_one(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    with pytest.raises(KernelsimpError) as caught:
        read_baseline(path)
    assert str(caught.value) == (
        f"{path}: there is no baseline; make one: kernelsimp check MODEL --baseline {path} --update-baseline"
    )


def test_a_newer_a_foreign_and_a_cut_baseline_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    cases = {
        '{"schema": "kernelsimp.baseline/2"}': "is newer than 'kernelsimp.baseline/1', the newest",
        '{"schema": "kernelsimp.scan/1"}': "schema is 'kernelsimp.scan/1'; expected 'kernelsimp.baseline/1'",
        "{}": "foreign JSON without a schema",
        baseline_text(baseline())[:-50]: "not whole JSON",
        '{"schema": "kernelsimp.baseline/1"}': "key 'structures' is missing; the file is damaged",
    }
    for text, expected in cases.items():
        path.write_text(text)
        with pytest.raises(KernelsimpError, match=expected):
            read_baseline(path)


def test_a_network_without_a_run_makes_its_own_baseline() -> None:
    subject = Subject(tensors(), outcome(930), FINGERPRINT)
    made = baseline_from(subject)
    assert [stage.correct for stage in made.stages] == [930]
    assert check(made, subject).exit_code == 0
    damaged = tensors()
    lose(damaged)
    assert {finding.rule for finding in check(made, Subject(damaged)).findings} == {LAYERS}
    worse = Subject(tensors(), outcome(920), FINGERPRINT)
    assert {finding.rule for finding in check(made, worse).findings} == {"accuracy.drop_pp"}


def test_updating_a_baseline_keeps_what_is_held() -> None:
    subject = Subject(tensors(), outcome(935), FINGERPRINT)
    made = baseline_from(subject, baseline())
    assert made.layers == baseline().layers
    assert made.stages[-1].correct == 935
    values = tensors()
    flip(values)
    assert check(made, Subject(values)).exit_code == 1


@pytest.mark.parametrize(("damage", "rules"), DAMAGED, ids=lambda item: getattr(item, "__name__", ""))
def test_a_network_passes_the_baseline_that_was_made_of_it(
    damage: Callable[[dict[str, Tensor]], None], rules: set[str]
) -> None:
    values = tensors()
    damage(values)
    made = baseline_from(Subject(values), baseline())
    assert {finding.rule for finding in check(made, Subject(values)).findings} <= {NAN}
    again = baseline_from(Subject(values), made)
    assert baseline_text(again) == baseline_text(made)


def test_a_renewed_baseline_still_holds_the_kernels_that_kept_their_structure() -> None:
    values = tensors()
    flip(values)
    made = baseline_from(Subject(values), baseline())
    moved = {name: value.clone() for name, value in values.items()}
    moved[f"{LAYER}.weight"][at(2)][0, 0] += 1
    found = {finding.rule: finding.measured for finding in check(made, Subject(moved)).findings}
    assert found == {FROZEN: 1, BROKEN: 1}


def test_a_zeroed_layer_is_seen_unless_it_was_so() -> None:
    values = tensors()
    values["conv1.weight"].zero_()
    plain = baseline_from(Subject(tensors()))
    (finding,) = check(plain, Subject(values)).findings
    assert (finding.rule, finding.message) == ("layers.zeroed", "conv1: every one of 24 kernels is zero")
    assert check(baseline_from(Subject(values)), Subject(values)).exit_code == 0


def others() -> dict[str, Tensor]:
    head = {"fc.weight": torch.ones(5, 6), "fc.bias": torch.ones(5), "mask": torch.full((3,), -torch.inf)}
    return {**tensors(), **head, "bn.num_batches_tracked": torch.tensor(3)}


OTHER: list[tuple[dict[str, Tensor | None], str, str]] = [
    ({"fc.weight": None}, LAYERS, "fc.weight: the tensor is missing"),
    ({"fc.weight": None, "fc.bias": None}, LAYERS, "fc.bias, fc.weight: 2 tensors are missing"),
    ({"new": torch.ones(1)}, LAYERS, "new: the tensor is not in the baseline"),
    (
        {"fc.weight": torch.ones(5, 3)},
        LAYERS,
        "fc.weight: the tensor is 5x3 float32, in the baseline 5x6 float32",
    ),
    (
        {"fc.bias": torch.ones(5).double()},
        LAYERS,
        "fc.bias: the tensor is of float64, in the baseline of float32",
    ),
    (
        {"fc.bias": torch.tensor([1, torch.nan, 1, torch.inf, -torch.inf])},
        "weights.nan",
        "fc.bias: 2 of 5 numbers are NaN or infinity",
    ),
]


@pytest.mark.parametrize(("change", "rule", "words"), OTHER)
def test_damage_beside_the_kernels_is_seen(
    change: dict[str, Tensor | None], rule: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(baseline_from(Subject(others())), path)
    assert check(read_baseline(path), Subject(others())).findings == ()
    values = {name: value for name, value in {**others(), **change}.items() if value is not None}
    (finding,) = check(read_baseline(path), Subject(values)).findings
    assert (finding.rule, finding.message) == (rule, words)


def test_a_counter_may_come_and_go() -> None:
    values = others()
    del values["bn.num_batches_tracked"]
    assert check(baseline_from(Subject(others())), Subject(values)).findings == ()


def test_a_renamed_layer_is_named_beside_its_new_name() -> None:
    values = tensors()
    values["stem.weight"] = values.pop("conv1.weight")
    messages = [finding.message for finding in check(baseline(), Subject(values)).findings]
    assert messages == [
        "conv1: the layer is missing",
        "stem: the baseline does not have this layer; 'conv1' of the same shape is missing: was it renamed?",
    ]
