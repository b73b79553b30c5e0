"""The action's and the hook's own shell lines, run as a runner would run them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import reports
from safetensors.torch import save_file

from kernelsimp.report import json_text, report_json

ROOT = Path(__file__).resolve().parents[1]
INPUTS = ("MODEL", "BASELINE", "LIMITS", "DATA", "ARCH", "JUNIT", "OPTIONS")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is absent")


def parsed(name: str) -> Any:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def step() -> dict[str, Any]:
    return dict(parsed("action.yml")["runs"]["steps"][-1])


def run(folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run the last step as a runner does: bash -e -o pipefail, inputs in the environment."""
    script = folder / "step.sh"
    script.write_text(step()["run"], encoding="utf-8")
    paths = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment = os.environ | dict.fromkeys(INPUTS, "") | inputs | paths
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def pretend(folder: Path, code: int = 0) -> None:
    """Put a `kernelsimp` on the path that says its arguments and exits with `code`."""
    fake = folder / "kernelsimp"
    lines = ["import json, sys", "print(json.dumps(sys.argv[1:]))", f"sys.exit({code})"]
    fake.write_text(f"#!{sys.executable}\n" + "\n".join(lines) + "\n")
    fake.chmod(0o755)


ROWS = [
    ({"MODEL": "a.pt", "BASELINE": "b.json"}, ["check", "--baseline", "b.json", "--", "a.pt"]),
    (
        {"MODEL": "a.pt\nb c.pt\n", "BASELINE": "b.json"},
        ["check", "--baseline", "b.json", "--", "a.pt", "b c.pt"],
    ),
    (
        {
            "MODEL": "a.pt",
            "BASELINE": "b.json",
            "LIMITS": "l.toml",
            "DATA": "npz:x",
            "ARCH": "zoo:r",
            "JUNIT": "j",
        },
        [
            *("check", "--baseline", "b.json", "--limits", "l.toml", "--data", "npz:x", "--arch", "zoo:r"),
            *("--junit", "j", "--", "a.pt"),
        ],
    ),
    (
        {"MODEL": "-x $(touch owned) 'y'.pt", "BASELINE": 'a "b".json', "OPTIONS": "--against\noriginal\n"},
        ["check", "--baseline", 'a "b".json', "--against", "original", "--", "-x $(touch owned) 'y'.pt"],
    ),
]


@pytest.mark.parametrize(("inputs", "expected"), ROWS)
def test_inputs_become_words(tmp_path: Path, inputs: dict[str, str], expected: list[str]) -> None:
    pretend(tmp_path)
    done = run(tmp_path, **inputs)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_is_passed_on(tmp_path: Path, code: int) -> None:
    pretend(tmp_path, code)
    assert run(tmp_path, MODEL="a", BASELINE="b").returncode == code


def test_every_input_reaches_the_step_through_the_environment() -> None:
    action = parsed("action.yml")
    environment = step()["env"]
    assert tuple(environment) == INPUTS
    wanted = {f"${{{{ inputs.{name} }}}}" for name in action["inputs"] if name != "install"}
    assert set(environment.values()) == wanted
    for item in action["runs"]["steps"]:  # an expression in a script would be text of the script
        assert "${{" not in item["run"]
        assert item["shell"] == "bash"


def test_the_real_command_gates_a_checkpoint(tmp_path: Path) -> None:
    _, after, _ = reports.before_and_after()
    weights = {f"{name}.weight": kernels.clone().contiguous() for name, kernels in after.items()}
    (tmp_path / "report.json").write_text(json_text(report_json(reports.report())))
    (tmp_path / "kernelsimp").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kernelsimp "$@"\n')
    (tmp_path / "kernelsimp").chmod(0o755)
    save_file(weights, tmp_path / "good.safetensors")
    done = run(tmp_path, MODEL="good.safetensors", BASELINE="report.json")
    assert done.returncode == 0, done.stderr
    weights["conv1.weight"] *= 2
    save_file(weights, tmp_path / "bad.safetensors")
    done = run(tmp_path, MODEL="bad.safetensors", BASELINE="report.json")
    assert done.returncode == 1, done.stderr
    assert "kernels.frozen_changed" in done.stdout


def test_the_hook_is_the_command_and_matches_checkpoints() -> None:
    (hook,) = parsed(".pre-commit-hooks.yaml")
    assert hook["entry"] == "kernelsimp check"
    for name in ("a.pt", "b.pth.tar", "c.safetensors", "d.th", "e.kspack"):
        assert re.search(hook["files"], name), name
    assert not re.search(hook["files"], "a.py")
