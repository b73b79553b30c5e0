"""`kernelsimp doctor`, and the metadata of the package that it speaks for."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from kernelsimp.cli.main import run
from kernelsimp.commands import doctor

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def names(lines: list[str]) -> set[str]:
    return {re.split(r"[>=<\[]", line)[0] for line in lines}


def test_the_doctor_looks_at_what_the_package_needs_and_its_extras():
    assert set(doctor.NEEDED) == names(PROJECT["dependencies"])
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name != "test"}
    assert {name: set(row[0].split()) for name, row in doctor.EXTRAS.items()} == {
        k: names(v) for k, v in extras.items()
    }


def test_the_doctor_says_what_is_here(capsys):
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("torch", "CPU", "GB of memory free", "extra onnx"))
    assert "all that is needed is here" in text.splitlines()[-1]


@pytest.mark.parametrize(("package", "code"), [("timm", 0), ("scipy", 2)])
def test_the_doctor_says_what_is_missing_and_how_to_get_it(package, code, capsys, monkeypatch):
    known = doctor.version

    def without(name: str) -> str:
        if name == package:
            raise PackageNotFoundError
        return known(name)

    monkeypatch.setattr(doctor, "version", without)
    assert run(["doctor"]) == code
    text = " ".join(capsys.readouterr().out.split())
    assert ("pip install timm" if package == "timm" else "MISSING missing; pip install scipy") in text


def test_the_package_says_what_it_is():
    assert PROJECT["authors"]
    assert len(PROJECT["keywords"]) > 4
    assert any(line.startswith("Topic ::") for line in PROJECT["classifiers"])
