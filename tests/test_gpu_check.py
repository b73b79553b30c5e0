"""`scripts/gpu_check` as far as it goes without a GPU."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from scripts import script

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_check"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    return script("gpu_check")


def test_one_card_is_said_to_be_one_and_two_plan_together(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, tuple[str, ...], str | None]] = []

    def simplify(_: object, name: str, *words: str, device: str | None = None) -> Path:
        asked.append((name, words[len(check.PLANNED) :], device))
        return tmp_path / name

    monkeypatch.setattr(check.Place, "simplify", simplify)
    monkeypatch.setattr(check, "alike", lambda place, runs: (True, " beside ".join(run.name for run in runs)))
    for count, said in ((1, "one card: not run"), (2, "two beside one")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert check.together(check.Place(tmp_path, "cuda:0")) == (True, said)
    assert asked == [("two", ("--devices", "2"), "cuda"), ("one", (), None)]


@pytest.mark.slow
def test_two_processes_on_a_cpu_stand_in_for_two_cards(tmp_path: Path) -> None:
    out = tmp_path / "gpu_check.json"
    words = ["--device", "cpu", "--no-speed", "--only", "plan,two cards", "--out", str(out)]
    ran = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    checks = {item["name"]: item for item in json.loads(out.read_text())["checks"]}
    assert list(checks) == ["train", "plan", "two cards"]
    assert checks["plan"]["figure"] == "100.00% of choices equal, +0.00 pp, KL 0.0e+00"
    assert checks["two cards"]["figure"].startswith("100.00% of choices equal, +0.00 pp, KL ")
