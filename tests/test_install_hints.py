"""What an error says to install is what the project itself asks for, under a name that an index knows."""

import re
import tomllib
from pathlib import Path

import pytest

from kernelsimp.errors import EXTRAS, did_you_mean, how_to_install

ROOT = Path(__file__).parents[1]


def test_each_hint_installs_the_package_of_its_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"test"}
    for extra, package in EXTRAS.items():
        assert [re.split("[<>=]", need)[0] for need in extras[extra]] == package.split()
        assert how_to_install(extra) == f"pip install {package}"


def test_no_hint_names_this_program_on_an_index() -> None:
    for path in (ROOT / "kernelsimp").rglob("*.py"):
        assert not re.search(r"pip install '?kernelsimp", path.read_text()), path


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("resnet21", ["resnet110", "resnet32", "resnet20"], "resnet20"),
        ("resnet31", ["resnet110", "resnet32", "resnet20"], "resnet32"),
        ("resnet81", ["resnet101", "resnet18", "resnet50"], "resnet18"),
        ("toleranse", ["tolerance", "dof"], "tolerance"),
    ],
)
def test_of_names_alike_the_nearer_number_is_meant(name: str, known: list[str], near: str) -> None:
    assert did_you_mean(name, known) == f"; did you mean '{near}'?"
