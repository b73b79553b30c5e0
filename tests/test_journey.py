"""Whole runs on a tiny network: rounds, the kept survey, a plan again, trained controls, no classifier."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_state
from saying import Heard

from kernelsimp.commands import simplify
from kernelsimp.errors import KernelsimpError
from kernelsimp.settings_file import settle
from kernelsimp.solver import solve as solution

TESTS = Path(__file__).parent


@pytest.fixture
def place(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 120), ("val", 40), ("test", 40)):
        arrays[f"{split}_images"] = draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = draw.integers(0, 5, count)
    np.savez(tmp_path / "images.npz", **arrays)  # type: ignore[arg-type]
    torch.save(tiny_state(), tmp_path / "tiny.pt")
    (tmp_path / "dense.py").write_text(
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\nimport builders, torch\n"
        "class Dense(builders.TinyNet):\n"
        "    def forward(self, x):\n        return torch.relu(self.norm(self.stem(x)))\n"
        "def mean(model, batches):\n    return sum(float(model(i).mean()) for i, _ in batches)\n"
    )
    return tmp_path


def run(
    place: Path, arch: str = f"{TESTS}/builders.py:tiny_net", **plan: Any
) -> tuple[dict[str, Any], Heard]:
    heard, finetune = Heard(), plan.pop("finetune", {})
    settings = settle(
        {
            "model": {"arch": arch},
            "data": {"data": f"npz:{place / 'images.npz'}"},
            "plan": {"cost": "absolute", **plan},
            "finetune": {"epochs": 1, **finetune},
        }
    )
    simplify.simplify(place / "tiny.pt", settings, place / "run", heard)
    return json.loads((place / "run" / "report.json").read_text()), heard


def test_rounds_end_at_the_budget_with_a_stage_and_a_row_each(place: Path) -> None:
    report, heard = run(place, dof=0.4, rounds=2)
    assert [item["stage"] for item in report["accuracy"]["stages"]] == [
        "original",
        *(f"round {item['round']}" for item in report["rounds"] if item["kept"]),
        "simplified",
    ]
    assert report["dof"]["fraction"] <= 0.4
    assert report["rounds"][-1]["dof"] == pytest.approx(report["dof"]["fraction"])
    assert sum(note.startswith("round ") for note in heard.notes) == len(report["rounds"])
    assert "## Rounds" in (place / "run" / "report.md").read_text()


def test_the_second_run_reads_the_survey_of_the_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run(place, dof=0.5)
    monkeypatch.setattr(solution, "survey", None)  # must not be called again
    second, heard = run(place, dof=0.5)
    assert any(note.startswith("what each layer sees was measured before") for note in heard.notes)
    assert second["layers"] == first["layers"]
    with pytest.raises(TypeError):
        run(place, dof=0.5, arch=f"{place}/dense.py:Dense")  # another network: another survey


def test_layers_have_predicted_and_measured_losses(place: Path) -> None:
    report, _ = run(place, dof=0.5)
    changed = [layer for layer in report["layers"] if layer["simplified"]]
    assert changed
    assert all(layer["measured_loss"] >= 0 and layer["predicted_loss"] > 0 for layer in changed)
    assert "## Sensitivity of layers" in (place / "run" / "report.md").read_text()


def test_a_plan_that_is_carried_out_again_tells_its_output_errors(place: Path) -> None:
    first, _ = run(place, dof=0.5)
    (place / "run" / "plan.safetensors").rename(place / "plan.safetensors")
    again, _ = run(place, plan=str(place / "plan.safetensors"), cost="auto")
    errors = [layer["output_error"] for layer in again["layers"]]
    assert errors == pytest.approx([layer["output_error"] for layer in first["layers"]], rel=1e-4)
    assert again["buffers_changed"] == first["buffers_changed"] != []


@pytest.mark.parametrize("hold", ["freeze", "tie"])
def test_controls_are_trained_on_the_same_schedule(place: Path, hold: str) -> None:
    report, _ = run(place, dof=0.5, controls=True, finetune={"finetune": True, "hold": hold})
    names = [item["name"] for item in report["controls"]]
    before = [name for name in names if "fine-tuned" not in name]
    after = [f"{name}, fine-tuned alike" for name in (*before, "untouched")]
    assert names == before + after
    assert "cell masks" in before


def test_a_network_that_is_no_classifier_is_measured_by_its_output_or_a_metric(place: Path) -> None:
    dense = f"{place}/dense.py:Dense"
    report, _ = run(place, arch=dense, dof=0.5)
    assert report["accuracy"] is None
    assert report["metric"]["name"] == "relative output error"
    assert [item["value"] > 0 for item in report["metric"]["stages"]] == [False, True]
    report, _ = run(place, arch=dense, dof=0.5, metric=f"{place}/dense.py:mean")
    assert report["metric"]["higher_is_better"]
    assert len({item["value"] for item in report["metric"]["stages"]}) == 2


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"dof": 0.5, "rounds": 0}, "--rounds is 0; expected 1 or more"),
        ({"dof": 0.5, "rounds": 2, "round_epochs": 0}, "--round-epochs is 0; expected 1 or more"),
        (
            {"tolerance": 0.1, "rounds": 2},
            "--rounds goes to a budget: pass --dof, --simplified or --max-drop",
        ),
    ],
)
def test_rounds_that_cannot_be_gone_are_refused(place: Path, plan: dict[str, Any], words: str) -> None:
    with pytest.raises(KernelsimpError) as caught:
        run(place, **plan)
    assert str(caught.value) == words


def test_what_needs_classes_is_refused_for_other_networks(place: Path) -> None:
    with pytest.raises(KernelsimpError, match="--finetune is not there for a network that is no classifier"):
        run(place, arch=f"{place}/dense.py:Dense", dof=0.5, finetune={"finetune": True})


def test_labels_beyond_the_networks_classes_are_one_line(place: Path) -> None:
    with np.load(place / "images.npz") as arrays:
        np.savez(place / "images.npz", **{**arrays, "test_labels": np.full(40, 7)})
    with pytest.raises(KernelsimpError, match="the network has 5 outputs, the data label 7"):
        run(place, dof=0.5)


def test_batch_norm_is_taken_afresh_only_where_validation_is_better(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {}
    for better in (True, False):
        # the figures are asked for twice: to decide and to tell
        marks = iter([0.5, 1.0, 1.0, 0.5] if better else [2.0, 1.0, 1.0, 2.0])
        monkeypatch.setattr("kernelsimp.commands.tune.EpochJudge.score", lambda *_, marks=marks: next(marks))
        report, _ = run(place, dof=0.5, finetune={"batch_norm": "re-estimate"})
        said[better] = report
    assert "norm.running_var" in said[True]["buffers_changed"]
    assert "norm.running_var" not in said[False]["buffers_changed"]
    assert any("re-estimated: kept" in note for note in said[True]["notes"])
    assert any("re-estimated: not kept" in note for note in said[False]["notes"])
