"""The gate: ten kinds of damage are caught, each figure is bounded on its side, baselines are kept."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import reports
from gates import BROKEN, DAMAGED, FINGERPRINT, FROZEN, NAN, baseline, flip, outcome, poison, tensors
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.gate import USUAL, CheckedNetwork, check, with_max
from kernelsimp.gate.rules import limits_from
from kernelsimp.records.limits import Limits
from kernelsimp.records.verdict import Verdict


def only(rule: str, **bounds: object) -> Limits:
    limit = limits_from({rule: bounds}).of(rule)
    assert limit is not None
    return Limits((limit,))


# ---------------------------------------------------------------- ten damaged checkpoints


@pytest.mark.parametrize(("damage", "rules"), DAMAGED, ids=lambda item: getattr(item, "__name__", ""))
def test_a_damaged_checkpoint_fails_by_the_right_rules(
    damage: Callable[[dict[str, Tensor]], None], rules: set[str]
) -> None:
    values = tensors()
    damage(values)
    verdict = check(baseline(), CheckedNetwork(values))
    assert {finding.rule for finding in verdict.findings} == rules
    assert verdict.exit_code == 1
    assert all("\n" not in finding.message for finding in verdict.findings)


def test_an_undamaged_checkpoint_passes_and_says_what_it_did_not_measure() -> None:
    verdict = check(baseline(), CheckedNetwork(tensors()))
    assert verdict.findings == ()
    assert verdict.exit_code == 0
    assert {measure.rule: measure.outcome for measure in verdict.measures} == {
        "accuracy.drop_pp": "skip",
        "kernels.frozen_changed": "pass",
        "kernels.structure_broken": "pass",
        "kernels.nan": "pass",
        "weights.nan": "pass",
        "weights.unreal": "pass",
        "layers.changed": "pass",
        "tensors.extra": "pass",
        "layers.zeroed": "pass",
        "layers.unseen": "pass",
    }


def test_a_tolerated_number_of_damaged_kernels_passes() -> None:
    values = tensors()
    flip(values)
    limits = with_max(with_max(USUAL, FROZEN, 1), BROKEN, 1)
    assert check(baseline(), CheckedNetwork(values), limits).findings == ()
    assert check(baseline(), CheckedNetwork(values), with_max(limits, BROKEN, 0)).exit_code == 1


def test_a_warning_does_not_fail() -> None:
    values = tensors()
    poison(values)
    limits = limits_from({NAN: {"max": 0, "level": "warn"}})
    verdict = check(baseline(), CheckedNetwork(values), limits)
    assert [finding.level for finding in verdict.findings] == ["warn"]
    assert verdict.exit_code == 0


# ---------------------------------------------------------------- figures


def figure(rule: str, values: dict[str, Tensor] | None = None) -> float:
    (measure,) = check(baseline(), CheckedNetwork(values or tensors()), only(rule, max=1e9)).measures
    assert measure.measured is not None
    return measure.measured


def test_figures_of_an_undamaged_network_are_those_of_its_report() -> None:
    report = reports.report()
    assert figure("kernels.simplified_share") == report.kernels.simplified / report.kernels.total
    assert figure("dof.fraction") == report.dof.fraction
    assert figure("bits.per_kernel") == pytest.approx(report.bits["after"] / report.kernels.total)
    bare = replace(baseline(), coefficient_bits=None)
    (measure,) = check(bare, CheckedNetwork(tensors()), only("bits.per_kernel", max=1)).measures
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
    verdict = check(baseline(), CheckedNetwork(tensors()), only("dof.fraction", **bounds))
    assert (verdict.exit_code == 0) is passes


def test_a_crossed_figure_says_what_it_is_and_was() -> None:
    (finding,) = check(baseline(), CheckedNetwork(tensors()), only("dof.fraction", max=0.5)).findings
    fraction = reports.report().dof.fraction
    assert finding.message == f"dof.fraction is {fraction:.6g}, was {fraction:.6g}; allowed: max 0.5"
    assert (finding.where, finding.limit) == ("", 0.5)


def test_a_change_that_the_baseline_cannot_tell_is_crossed() -> None:
    bare = replace(baseline(), measured={})
    verdict = check(bare, CheckedNetwork(tensors()), only("dof.fraction", max_delta=0.1))
    assert verdict.exit_code == 1
    assert verdict.findings[0].message == (
        "dof.fraction: the baseline does not say what it was, so max_delta 0.1 cannot be judged; "
        "make the baseline again"
    )


def test_accuracy_is_gated_with_data_and_against_either_stage() -> None:
    def gate(correct: int, against: str = "last", **bounds: float) -> Verdict:
        subject = CheckedNetwork(tensors(), outcome(correct), FINGERPRINT, against)
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
    subject = CheckedNetwork(tensors(), outcome(900), FINGERPRINT)
    (measure,) = check(baseline(), subject, only("accuracy.top1", min=90)).measures
    assert (measure.measured, measure.baseline, measure.outcome) == (90.0, 92.9, "pass")
    assert check(baseline(), subject, only("accuracy.top1", min_delta=-2)).exit_code == 1
