"""Processes of their own, forked from one that has imported torch already: torch alone costs seconds."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATHS = os.pathsep.join([str(HERE.parent), str(HERE)])


def environment() -> dict[str, str]:
    """What a command meets on a user's machine: no settings of ours, no GPU, one thread."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("KERNELSIMP")}
    return {**ours, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@cache
def warm() -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "ignore", str(HERE / "warm.py")]
    process = subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(process.communicate)  # it ends where its questions end
    return process


def run_warm(
    what: str | Path, *arguments: str, folder: Path | None = None, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run a module (`python -m`) or a script (a path that ends in .py), and return what it said."""
    process = warm()
    assert process.stdin is not None
    assert process.stdout is not None
    with tempfile.TemporaryDirectory() as place:
        said = {name: str(Path(place) / name) for name in ("stdout", "stderr")}
        question = {"what": str(what), "arguments": arguments, "folder": str(folder or Path.cwd())}
        process.stdin.write(json.dumps({**question, **said, "environment": environment() | variables}) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        heard = {name: Path(path).read_text() for name, path in said.items()}
    return subprocess.CompletedProcess([str(what), *arguments], code, **heard)


def run_fresh(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run python anew, where a fresh interpreter is the point."""
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, env=environment() | variables, capture_output=True, text=True, check=False)
