"""The demo: its network comes along, something is found in it, and it ends in a sentence that says so."""

from dataclasses import replace
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import pytest
import reports
import torch

from kernelsimp.cli.main import run
from kernelsimp.commands.demo import NETWORK
from kernelsimp.models.zoo import DigitsDepthwise
from kernelsimp.report import read_report
from kernelsimp.report.tables.story import story_words

WEIGHTS = files("kernelsimp.models") / "weights" / NETWORK


def test_the_network_that_comes_along_is_small_and_loads_strictly() -> None:
    data = WEIGHTS.read_bytes()
    assert len(data) < 200_000
    state = torch.load(BytesIO(data), weights_only=True)["state_dict"]
    DigitsDepthwise().load_state_dict(state, strict=True)


def test_the_demo_finds_something_and_says_it_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    assert run(["demo", "--out", str(tmp_path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    report = read_report(tmp_path / "run")
    assert last.startswith("done: of 96 kernels ")
    assert f"({report.kernels.found} of them found" in last
    assert last.endswith(f"; see {tmp_path}/run/report.html")
    assert report.kernels.found >= 5
    assert report.accuracy is not None
    assert report.accuracy.change_ci95[1] >= 0  # no loss beyond chance


def test_the_sentence_says_where_nothing_was_found_and_where_nothing_was_measured() -> None:
    scan = reports.scan()
    none = replace(scan, layers=tuple(replace(item, found=item.found & False) for item in scan.layers))
    blind = replace(reports.report(), accuracy=None)
    assert story_words(scan, blind).startswith(
        "of 24 kernels 4 have a structure that chance does not explain; "
    )
    said = story_words(none, blind)
    assert said.startswith("no structure beyond chance in 24 kernels; ")
    assert "accuracy was not measured" in said
