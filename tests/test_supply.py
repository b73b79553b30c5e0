"""What is installed, and what an import reaches for."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from processes import run_fresh

ROOT = Path(__file__).resolve().parents[1]

OFFLINE = """
import socket, sys

def refuse(*_, **__):
    raise SystemExit(f"an import reaches for the network: {_}")

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse
if REACH:
    socket.create_connection(("localhost", 9))
import importlib, pkgutil
import kernelsimp
for item in pkgutil.walk_packages(kernelsimp.__path__, "kernelsimp."):
    if not item.name.endswith("__main__"):
        importlib.import_module(item.name)
print(len([name for name in sys.modules if name.startswith("kernelsimp")]))
"""


def test_no_import_reaches_for_the_network() -> None:
    done = run_fresh("-c", OFFLINE.replace("REACH", "False"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 250


def test_that_test_would_see_it() -> None:
    done = run_fresh("-c", OFFLINE.replace("REACH", "True"))
    assert done.returncode == 1
    assert "reaches for the network" in done.stderr


def test_every_dependency_has_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: rows for name, rows in project["optional-dependencies"].items() if name != "test"}
    rows = [*project["dependencies"], *(row for some in extras.values() for row in some)]
    assert [row for row in rows if not re.fullmatch(r"[a-z0-9-]+>=[\d.]+", row)] == []


@pytest.mark.slow
def test_a_source_distribution_installs_and_runs() -> None:
    """It builds with hatchling, which is fetched."""
    command = [str(ROOT / "scripts" / "check_sdist")]
    environment = {"KERNELSIMP_PYTHON": sys.executable}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "built, installed and run: kernelsimp-" in done.stdout
