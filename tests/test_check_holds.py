"""Held kernels are verified bit for bit and structure by structure, and accuracy pair by pair."""

from dataclasses import replace

import numpy as np
import pytest
import reports
import torch
from gates import LAYER, at, outcome
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome
from kernelsimp.gate import from_tensors, verify_accuracy, verify_holds
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.records.held import HeldLayer, encode_assignment
from kernelsimp.records.limits import Baseline, BaselineLayer, baseline_of
from kernelsimp.records.report import Report
from kernelsimp.records.verdict import Finding, Verdict


def kernels() -> dict[str, Tensor]:
    return {name: value.clone() for name, value in reports.before_and_after()[1].items()}


@pytest.mark.parametrize("hold", ["freeze", "tie", "none"])
def test_an_untouched_network_has_no_findings(hold: str) -> None:
    assert verify_holds(reports.report(hold=hold), kernels()) == ()


def test_a_bank_is_verified_as_a_mapping_is() -> None:
    layers = tuple(LayerKernels(name, "dense", value) for name, value in kernels().items())
    assert verify_holds(reports.report(), KernelBank(layers)) == ()


def test_one_changed_bit_in_a_frozen_kernel_is_named() -> None:
    changed, (out, into) = kernels(), at(1)
    changed[LAYER][out, into].view(torch.int32)[0, 1] ^= 1
    findings = verify_holds(reports.report(), changed)
    frozen = [item for item in findings if item.rule == "kernels.frozen_changed"]
    total = int((reports.before_and_after()[2].layer(LAYER).choice != 0).sum())
    name = f"{LAYER}[{out},{into}]"
    message = f"{LAYER}: 1 of {total} frozen kernels changed: {name}"
    assert frozen == [Finding("kernels.frozen_changed", "error", LAYER, 1, 0, message, (name,))]


def test_the_sign_of_zero_is_a_change_of_bits_but_not_of_structure() -> None:
    changed, (out, into) = kernels(), at(3)
    changed[LAYER][out, into] = -0.0
    assert [item.rule for item in verify_holds(reports.report(), changed)] == ["kernels.frozen_changed"]


def test_a_free_kernel_may_change() -> None:
    changed, (out, into) = kernels(), at(0)
    changed[LAYER][out, into] += 1
    assert verify_holds(reports.report(), changed) == ()


def test_a_tied_kernel_may_move_inside_its_structure_only() -> None:
    report, inside, outside = reports.report(hold="tie"), kernels(), kernels()
    out, into = at(1)
    inside[LAYER][out, into] *= 1.5
    assert verify_holds(report, inside) == ()
    outside[LAYER][out, into, 0, 0] += 0.25
    (finding,) = verify_holds(report, outside)
    assert finding.rule == "kernels.structure_broken"
    assert finding.message == f"{LAYER}: 1 of 128 kernels have left their structure: {LAYER}[{out},{into}]"


def test_a_zeroed_kernel_must_stay_zero() -> None:
    changed, (out, into) = kernels(), at(3)
    changed[LAYER][out, into, 1, 1] = 1e-30
    (finding,) = verify_holds(reports.report(hold="tie"), changed)
    assert finding.kernels == (f"{LAYER}[{out},{into}]",)


def test_trained_and_unheld_kernels_may_leave_their_structure() -> None:
    changed, (out, into) = kernels(), at(1)
    changed[LAYER][out, into, 0, 0] += 0.25
    assert verify_holds(reports.report(hold="none"), changed) == ()
    untrained = replace(reports.report(hold="none"), training=())
    assert [item.rule for item in verify_holds(untrained, changed)] == ["kernels.structure_broken"]


def test_nan_is_found_in_free_kernels_too_and_is_no_broken_structure() -> None:
    changed = kernels()
    free, tied = at(0), at(1)
    changed[LAYER][free][0, 0] = torch.nan
    changed[LAYER][tied][2, 2] = torch.inf
    (finding,) = verify_holds(reports.report(hold="tie"), changed)
    assert (finding.rule, finding.measured) == ("kernels.nan", 2)
    assert set(finding.kernels) == {f"{LAYER}[{o},{i}]" for o, i in (free, tied)}


def test_a_missing_layer_and_another_shape() -> None:
    changed = kernels()
    del changed["conv1"]
    changed[LAYER] = changed[LAYER][:, :4]
    findings = verify_holds(reports.report(), changed)
    assert [item.rule for item in findings] == ["layers.changed", "layers.changed"]
    assert [item.message for item in findings] == [
        "conv1: the layer is missing",
        f"{LAYER}: kernels are (16, 4, 3, 3), the baseline has (16, 8, 3, 3)",
    ]


def test_all_changed_is_hinted_and_long_lists_are_cut() -> None:
    changed = {name: value.to(torch.float16) for name, value in kernels().items()}
    finding = next(item for item in verify_holds(reports.report(), changed) if item.where == LAYER)
    assert finding.message.endswith("; every one: a checkpoint of another run, or in another dtype?")
    assert " and 91 more" in finding.message
    assert len(finding.kernels) == finding.measured == 99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_is_verified_over_its_stored_bytes(dtype: torch.dtype) -> None:
    _, after, plan = reports.before_and_after(dtype)
    layers = tuple(reports.layer_report(layer, after[layer.name]) for layer in plan.layers)
    report = replace(reports.report(), layers=layers)
    assert verify_holds(report, after) == ()
    out, into = at(1)
    after[LAYER][out, into] *= 2
    assert [item.rule for item in verify_holds(report, after)] == ["kernels.frozen_changed"]


def test_a_layer_with_one_checksum_says_that_it_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelsimp.records.held.CRC_PER_KERNEL_UP_TO", 100)
    monkeypatch.setattr("kernelsimp.gate.kernels.CRC_PER_KERNEL_UP_TO", 100)
    report = reports.report()
    assert [len(layer.hold.frozen_crc32) for layer in report.layers][1] == 1
    assert verify_holds(report, kernels()) == ()
    changed, (out, into) = kernels(), at(1)
    changed[LAYER][out, into] *= 2
    (finding,) = verify_holds(report, changed)
    assert finding.message == f"{LAYER}: at least one of 99 frozen kernels changed (SHA-256 differs)"


def test_a_transposed_layer_is_turned_before_it_is_compared() -> None:
    stored = torch.randn((6, 2, 3, 3), generator=torch.Generator().manual_seed(1))  # (in, out / groups)
    stored[4, 1] = 0  # input 4 is the second of group 1 of 2... output 3, input 1 of the group
    choice = np.zeros((4, 3), dtype=np.int16)
    choice[3, 1] = 1
    layer = BaselineLayer("up", "transposed", 2, (6, 2, 3, 3), HeldLayer(encode_assignment(choice), (), ""))
    baseline = Baseline(("free", "zero"), (layer,), held=True)
    assert verify_holds(baseline, from_tensors(baseline, {"up.weight": stored})) == ()
    moved = stored.clone()
    moved[4, 1, 0, 0] = 1
    (finding,) = verify_holds(baseline, from_tensors(baseline, {"up.weight": moved}))
    assert finding.kernels == ("up[3,1]",)


def test_a_network_of_other_names_is_refused() -> None:
    with pytest.raises(KernelsimpError) as caught:
        verify_holds(reports.report(), {"features.0": torch.zeros(1, 1, 3, 3)})
    assert str(caught.value) == (
        "the baseline is of another network: none of its 3 layers (conv1...) is here; "
        "name the baseline that was made from this one"
    )


def damaged(**changes: object) -> Report:
    report = reports.report()
    first = replace(report.layers[0], hold=replace(report.layers[0].hold, **changes))
    return replace(report, layers=(first, *report.layers[1:]))


def test_a_damaged_assignment_is_refused() -> None:
    with pytest.raises(KernelsimpError, match=r"conv1: the baseline's assignment is damaged \(.*; write the"):
        verify_holds(damaged(assignment="AAAA"), kernels())
    beyond = encode_assignment(np.full((8, 3), 9, dtype=np.int16))
    with pytest.raises(
        KernelsimpError, match="conv1: the baseline's assignment names structure 9 of 4; write"
    ):
        verify_holds(damaged(assignment=beyond), kernels())


def test_checksums_that_do_not_count_are_refused() -> None:
    with pytest.raises(
        KernelsimpError, match="conv1: the baseline has 1 checksums for 15 frozen kernels; write"
    ):
        verify_holds(damaged(frozen_crc32=(1,)), kernels())


def test_a_hostile_layer_name_is_shown_harmless() -> None:
    report = reports.renamed(reports.report(), {"conv1": "a\x1b[2J\nb"})
    (finding,) = verify_holds(
        report, {LAYER: kernels()[LAYER], "layer2.0.conv1": kernels()["layer2.0.conv1"]}
    )
    assert finding.message == r"a\x1b[2J\nb: the layer is missing"


# ---------------------------------------------------------------- accuracy


FINGERPRINT = "cd" * 32


@pytest.mark.parametrize(
    ("correct", "max_drop", "against", "passes"),
    [
        (929, 0.5, "last", True),
        (924, 0.5, "last", True),
        (923, 0.5, "last", False),
        (927, 0.5, "original", True),
        (926, 0.5, "original", False),
        (940, 0.0, "last", True),
        (928, 0.1, "last", True),
        (928, 0.0, "last", False),
    ],
)
def test_accuracy_is_within_the_drop_or_not(
    correct: int, max_drop: float, against: str, passes: bool
) -> None:
    found = verify_accuracy(
        reports.report(),
        outcome(correct),
        fingerprint=FINGERPRINT,
        max_drop=max_drop,
        against=against,  # type: ignore[arg-type]
    )
    assert (found == ()) is passes


def test_a_drop_says_its_interval_and_its_paired_p() -> None:
    (finding,) = verify_accuracy(reports.report(), outcome(900), fingerprint=FINGERPRINT)
    assert (finding.rule, finding.limit) == ("accuracy.drop_pp", 0.5)
    assert finding.measured == pytest.approx(2.9)
    assert finding.message.startswith(
        "accuracy 90.00 % (900 of 1,000) is -2.90 pp from the baseline's stage 'finetuned' at 92.90 % (95 % -"
    )
    assert finding.message.endswith("McNemar p 3.7e-09); at most 0.5 pp is allowed")  # 29 lost, none gained


def test_other_images_are_refused() -> None:
    with pytest.raises(KernelsimpError) as caught:
        verify_accuracy(reports.report(), outcome(900), fingerprint="0" * 64)
    assert str(caught.value) == (
        "these test images have fingerprint 000000000000, the baseline was measured on cdcdcdcdcdcd; "
        "give the same --data and split"
    )


def test_another_number_of_images_is_refused() -> None:
    short = Outcome(outcome(900).correct[:500], 0.1)
    with pytest.raises(
        KernelsimpError, match="500 images were measured, the baseline's stage 'finetuned' has 1000;"
    ):
        verify_accuracy(reports.report(), short, fingerprint=FINGERPRINT)


def test_a_baseline_without_accuracy_is_refused() -> None:
    bare = replace(reports.report(), accuracy=None)
    with pytest.raises(
        KernelsimpError, match="the baseline has no accuracy, it was made without data; make one"
    ):
        verify_accuracy(bare, outcome(900), fingerprint=FINGERPRINT)


def test_a_verdict_fails_on_errors_only() -> None:
    warn = Finding("kernels.nan", "warn", "", 1, 0, "x")
    assert Verdict(()).exit_code == 0
    assert Verdict((warn,)).exit_code == 0
    assert Verdict((warn, replace(warn, level="error"))).exit_code == 1


def test_a_baseline_of_a_report_is_sorted_by_layer() -> None:
    report = reports.report()
    turned = replace(report, layers=report.layers[::-1])
    assert baseline_of(turned) == baseline_of(report)
