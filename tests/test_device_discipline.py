"""Everything that runs on a GPU, on a device that is none: the same answers, and no tensor left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
WORK = (
    "survey, choose, re-solve",
    "coding",
    "freeze",
    "tie",
    "scale",
    "fine-tuning, freeze",
    "fine-tuning, scale",
    "accuracy",
    "robustness",
    "comparison",
)


def said_by(script: str) -> dict[str, Any]:
    """Return what a script of this folder prints, in a process of its own."""
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    return said_by("device_work.py")


@pytest.mark.parametrize("name", WORK)
def test_another_device_gives_the_same_answer(outcome: dict[str, Any], name: str) -> None:
    assert list(outcome["same"]) == list(WORK)
    assert outcome["same"][name]


def test_a_tensor_on_the_wrong_device_is_found(outcome: dict[str, Any]) -> None:
    said = outcome["said"]
    assert said["places, on the CPU"] == ""
    assert "tensors on pretend:0 and cpu" in said["places"]
    assert "tensors on pretend:0 and cpu" in said["a network"]


@pytest.mark.parametrize(
    "name",
    ["freeze, taught", "freeze, not taught", "scale, taught", "scale, not taught", "tie, penalties"],
)
def test_a_training_step_waits_for_nothing(outcome: dict[str, Any], name: str) -> None:
    assert outcome["waits"][name] == {}


def test_a_step_that_waits_is_found(outcome: dict[str, Any]) -> None:
    once = dict.fromkeys(("item", "truth", "copy", "copy there", "number there", "mask", "places"), 2)
    assert outcome["planted"] == once, "two steps, one wait in each"


def test_commands_run_to_their_end_there() -> None:
    ended = said_by("device_commands.py")
    assert list(ended) == ["train", "simplify", "evaluate", "compare", "prune"]
    for name, end in ended.items():
        assert end == {"code": 0, "ran there": True}, name
