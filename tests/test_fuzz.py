"""Two thousand mutants through every door: each is read, or refused in one printable line."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import reports
from fuzz.doors import DOORS
from fuzz.mutants import INSIDE, mutant
from fuzz.run import fuzz
from safetensors.numpy import load_file, save_file

from kernelsimp.cli.main import run
from kernelsimp.errors import KernelsimpError
from kernelsimp.records.plan_file import read_plan, save_plan
from kernelsimp.records.serialise import json_text
from kernelsimp.report.store import report_json

pytestmark = pytest.mark.filterwarnings("ignore")

EACH = {"pt2": 56}
"""Fewer mutants of what takes long to read."""

USUAL = 162


def test_the_mutants_are_two_thousand() -> None:
    assert sum(EACH.get(name, USUAL) for name in DOORS) == 2_000


@pytest.mark.parametrize("name", DOORS)
def test_mutants_are_read_or_refused_in_one_line(name: str) -> None:
    tally = fuzz([name], EACH.get(name, USUAL), seed=24)[name]
    assert tally.faults == []
    assert tally.refused > tally.read / 8
    assert tally.refused + tally.read == EACH.get(name, USUAL)


def test_a_seed_makes_the_same_mutants_and_another_seed_others(tmp_path: Path) -> None:
    door = DOORS["baseline"]
    door.write(tmp_path / "a")
    sound = (tmp_path / "a").read_bytes()

    def made(seed: int) -> list[bytes]:
        return [mutant(door.kind, sound, random.Random(f"{seed} {number}")) for number in range(20)]

    assert made(1) == made(1) != made(2)
    assert {door.kind for door in DOORS.values()} == {*INSIDE, "bytes"}


@pytest.mark.parametrize(
    ("array", "value", "said"),
    [
        ("choice", np.zeros((8, 3), np.float32), "choice is float32 (8, 3), expected int16 (8, 3)"),
        ("choice", np.full((8, 3), 9, np.int16), "a choice that is none of its 4 structures"),
        ("found", np.zeros((8, 2), np.bool_), "found is bool (8, 2), expected bool (8, 3)"),
        ("dims", np.zeros(3, np.int16), "dims is int16 (3,), expected int16 (4,)"),
        ("choice", np.zeros((8, 3), np.int64), "is of dtype I64; expected one of BOOL, I16, F32"),
    ],
)
def test_arrays_of_a_plan_fit_each_other(array, value, said, tmp_path: Path) -> None:
    path = tmp_path / "plan.safetensors"
    save_plan(reports.before_and_after()[2], path)
    arrays = load_file(path)
    head = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    metadata = {key: item for key, item in head["__metadata__"].items() if key != "sha256"}
    save_file({**arrays, f"conv1/{array}": value}, path, metadata)
    with pytest.raises(KernelsimpError) as caught:
        read_plan(path)
    assert said in str(caught.value)


def test_an_altered_report_is_refused_when_it_is_drawn(tmp_path: Path, capsys) -> None:
    data = report_json(reports.report())
    data["pictures"] = {"chance": {"mirror-h": [1]}}
    (tmp_path / "report.json").write_text(json_text(data))
    assert run(["report", str(tmp_path)]) == 2
    assert "cannot be drawn (AttributeError: 'list' object has no attribute 'get')" in capsys.readouterr().err
