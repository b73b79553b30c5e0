"""What is measured beside a result comes after a whole report, so that stopping it loses nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import SMALL
from test_simplify_cli import HALF

from kernelsimp.cli.main import run

BEFORE = "written before these were measured, and lacks them: "


@pytest.fixture
def base(model: Path, images: str) -> list[str]:
    return ["simplify", str(model), "--data", images, *SMALL, "--quiet"]


def stop(*_args: object, **_options: object) -> None:
    raise KeyboardInterrupt


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())  # type: ignore[no-any-return]


PARTS = {
    "controls": "controls_beside",
    "robustness": "robustness_of",
    "similarity": "similarity_of",
    "selectivity": "explain_channels",
}


@pytest.mark.parametrize("at", PARTS)
def test_an_interrupt_leaves_the_report_with_what_was_done(
    at: str, base, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(f"kernelsimp.commands.simplify.{PARTS[at]}", stop)
    out, names = tmp_path / "run", list(PARTS)
    options = ["--controls", "--robustness", "--similarity", "--explain"]
    assert run([*base, *HALF, *options, "--out", str(out)]) == 130
    made, missing = report(out), names[names.index(at) :]
    assert made["notes"][-1] == BEFORE + ", ".join(missing)
    assert [bool(made[name]) for name in names] == [name not in missing for name in names]
    assert made["accuracy"]["stages"][-1]["stage"] == "simplified"
    assert BEFORE in (out / "report.md").read_text()
    assert run(["report", str(out)]) == 0
    assert run(["check", str(out / "tiny.pt"), "--baseline", str(out), "-q"]) == 0
    assert not list(out.glob(".*.partial"))


def test_a_whole_run_says_nothing_of_it(base, tmp_path: Path) -> None:
    plain, out = tmp_path / "plain", tmp_path / "run"
    assert run([*base, *HALF, "--out", str(plain)]) == 0
    assert run([*base, *HALF, "--controls", "--out", str(out)]) == 0
    first, second = report(plain), report(out)
    assert second["controls"]
    assert not any(BEFORE in note for note in second["notes"])
    for key in ("size", "tensors", "beside", "dof", "layers", "accuracy", "kernels"):
        assert first[key] == second[key]


def test_a_run_says_what_channels_answer_to_before_and_after(base, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert run([*base, *HALF, "--explain", "--out", str(out)]) == 0
    made = report(out)["selectivity"]
    assert list(made) == ["original", "simplified"]
    before, after = ([layer["named"] for layer in made[stage]["layers"]] for stage in made)
    assert sum(after) > sum(before)  # what was simplified has a name
    for page in ("report.md", "report.html"):
        text = (out / page).read_text()
        assert all(f"explained, {stage}" in text for stage in made)
    capsys.readouterr()
    weights = [base[0], base[1], "--tolerance", "0.1", "--explain", "--out", str(tmp_path / "none")]
    assert run(weights) == 2
    assert "--explain needs a network and images" in capsys.readouterr().err
