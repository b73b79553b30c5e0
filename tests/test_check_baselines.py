"""Baselines: read back, made, renewed, refused, and what they see beside the kernels."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import reports
import torch
from gates import (
    BROKEN,
    DAMAGED,
    FINGERPRINT,
    FROZEN,
    LAYER,
    LAYERS,
    NAN,
    at,
    baseline,
    flip,
    lose,
    outcome,
    tensors,
)
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.gate import CheckedNetwork, baseline_from, check
from kernelsimp.records.serialise import json_text
from kernelsimp.report.baselines import baseline_text, read_baseline, write_baseline
from kernelsimp.report.store import report_json


def test_a_baseline_file_is_read_back_and_stable_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(baseline(), path)
    back = read_baseline(path)
    assert back.layers == baseline().layers
    assert baseline_text(back) == path.read_text()
    turned = replace(baseline(), layers=baseline().layers[::-1])
    assert baseline_text(turned) == path.read_text()
    assert check(back, CheckedNetwork(tensors())).exit_code == 0


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
        '{"schema": "kernelsimp.scan/1"}': "expected 'kernelsimp.baseline/1' or a run's report",
        "{}": "foreign JSON without a schema; expected 'kernelsimp.baseline/1' or a run's report",
        baseline_text(baseline())[:-50]: "not whole JSON",
        '{"schema": "kernelsimp.baseline/1"}': "key 'structures' is missing; the file is damaged",
    }
    for text, expected in cases.items():
        path.write_text(text)
        with pytest.raises(KernelsimpError, match=expected):
            read_baseline(path)


def test_a_network_without_a_run_makes_its_own_baseline() -> None:
    subject = CheckedNetwork(tensors(), outcome(930), FINGERPRINT)
    made = baseline_from(subject)
    assert [stage.correct for stage in made.stages] == [930]
    assert check(made, subject).exit_code == 0
    damaged = tensors()
    lose(damaged)
    assert {finding.rule for finding in check(made, CheckedNetwork(damaged)).findings} == {LAYERS}
    worse = CheckedNetwork(tensors(), outcome(920), FINGERPRINT)
    assert {finding.rule for finding in check(made, worse).findings} == {"accuracy.drop_pp"}


def test_updating_a_baseline_keeps_what_is_held() -> None:
    subject = CheckedNetwork(tensors(), outcome(935), FINGERPRINT)
    made = baseline_from(subject, baseline())
    assert made.layers == baseline().layers
    assert made.stages[-1].correct == 935
    values = tensors()
    flip(values)
    assert check(made, CheckedNetwork(values)).exit_code == 1


@pytest.mark.parametrize(("damage", "rules"), DAMAGED, ids=lambda item: getattr(item, "__name__", ""))
def test_a_network_passes_the_baseline_that_was_made_of_it(
    damage: Callable[[dict[str, Tensor]], None], rules: set[str]
) -> None:
    values = tensors()
    damage(values)
    made = baseline_from(CheckedNetwork(values), baseline())
    assert {finding.rule for finding in check(made, CheckedNetwork(values)).findings} <= {NAN}
    again = baseline_from(CheckedNetwork(values), made)
    assert baseline_text(again) == baseline_text(made)


def test_a_renewed_baseline_still_holds_the_kernels_that_kept_their_structure() -> None:
    values = tensors()
    flip(values)
    made = baseline_from(CheckedNetwork(values), baseline())
    moved = {name: value.clone() for name, value in values.items()}
    moved[f"{LAYER}.weight"][at(2)][0, 0] += 1
    found = {finding.rule: finding.measured for finding in check(made, CheckedNetwork(moved)).findings}
    assert found == {FROZEN: 1, BROKEN: 1}


def test_a_zeroed_layer_is_seen_unless_it_was_so() -> None:
    values = tensors()
    values["conv1.weight"].zero_()
    plain = baseline_from(CheckedNetwork(tensors()))
    (finding,) = check(plain, CheckedNetwork(values)).findings
    assert (finding.rule, finding.message) == ("layers.zeroed", "conv1: every one of 24 kernels is zero")
    assert check(baseline_from(CheckedNetwork(values)), CheckedNetwork(values)).exit_code == 0


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
    write_baseline(baseline_from(CheckedNetwork(others())), path)
    assert check(read_baseline(path), CheckedNetwork(others())).findings == ()
    values = {name: value for name, value in {**others(), **change}.items() if value is not None}
    (finding,) = check(read_baseline(path), CheckedNetwork(values)).findings
    assert (finding.rule, finding.message) == (rule, words)


def test_a_counter_may_come_and_go() -> None:
    values = others()
    del values["bn.num_batches_tracked"]
    assert check(baseline_from(CheckedNetwork(others())), CheckedNetwork(values)).findings == ()


def test_a_renamed_layer_is_named_beside_its_new_name() -> None:
    values = tensors()
    values["stem.weight"] = values.pop("conv1.weight")
    messages = [finding.message for finding in check(baseline(), CheckedNetwork(values)).findings]
    assert messages == [
        "conv1: the layer is missing",
        "stem: the baseline does not have this layer; 'conv1' of the same shape is missing: was it renamed?",
    ]
