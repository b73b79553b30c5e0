"""Any number of runs in one report, and RUN folders where a model is taken."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import reports
from builders import NET, SMALL
from saying import fails

from kernelsimp.cli.main import run
from kernelsimp.commands.scan_sources import checkpoints_in
from kernelsimp.files import write_text
from kernelsimp.records.report import Report
from kernelsimp.report import json_text, report_json


def put(folder: Path, report: Report) -> Path:
    write_text(folder / "report.json", json_text(report_json(report)))
    return folder


@pytest.fixture
def three(tmp_path) -> list[Path]:
    base = reports.report()
    shares = (("b", 0.6), ("a", 0.2), ("c", 0.4))
    return [put(tmp_path / n, replace(base, dof=replace(base.dof, fraction=f))) for n, f in shares]


def test_any_number_of_runs_stand_in_one_sorted_table_with_two_charts(three, tmp_path, capsys):
    assert run(["report", *map(str, three), "--out", str(tmp_path / "all")]) == 0
    said = capsys.readouterr()
    assert "warning" not in said.err
    assert "runs.html" in said.out.splitlines()[-1]
    text = (tmp_path / "all" / "runs.md").read_text()
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:]
    assert [name for name in names if name in "abc"] == ["a", "c", "b"]
    page = (tmp_path / "all" / "runs.html").read_text()
    assert page.count('<svg class="chart"') == 2
    assert "degrees of freedom left" in page
    assert "<script src" not in page


def test_runs_of_other_networks_or_images_are_warned_of(three, tmp_path, capsys):
    report = reports.report()
    for key, words in (("input_sha256", "different networks"), ("data_fingerprint", "different test images")):
        put(tmp_path / "a", replace(report, provenance={**report.provenance, key: "another"}))
        assert run(["report", *map(str, three), "--out", str(tmp_path / "all")]) == 0
        assert words in capsys.readouterr().err
        assert words in (tmp_path / "all" / "runs.md").read_text()
        assert words in (tmp_path / "all" / "runs.html").read_text()


def test_a_run_without_images_is_not_called_one_of_other_images(three, tmp_path, capsys):
    report = reports.report()
    known = {key: item for key, item in report.provenance.items() if key != "data_fingerprint"}
    put(tmp_path / "a", replace(report, accuracy=None, provenance=known))
    assert run(["report", *map(str, three), "--out", str(tmp_path / "all")]) == 0
    assert "different test images" not in capsys.readouterr().err


def test_one_run_is_one_run(three, tmp_path, capsys):
    assert run(["report", str(three[0]), "--out", str(tmp_path / "one")]) == 0
    assert "done: 1 run, 1 within budget; see" in capsys.readouterr().out


def test_what_cannot_be_put_together_is_said(three, tmp_path, capsys):
    fails(["report", *map(str, three)], capsys, "pass --out DIR")
    fails(
        ["report", str(three[0]), str(three[0]), str(three[1]), "--out", str(tmp_path / "x")], capsys, "twice"
    )
    twice = [str(three[0]), str(three[0] / "report.json")]
    fails(["report", *twice, "--out", str(tmp_path / "x")], capsys, "twice")
    assert not (tmp_path / "x").exists()
    fails(["report", str(tmp_path / "nowhere")], capsys, "there is no report")


@pytest.mark.parametrize(
    "arguments", [["report", "nowhere"], ["export", "nowhere"], ["export", ".", "--to", "x"]]
)
def test_a_mistake_is_said_before_torch_is_imported(arguments):
    code = (
        "import sys\nfrom kernelsimp.cli.main import run\n"
        f"code = run({arguments})\nprint(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


def test_a_run_stands_for_its_network(model, images, tmp_path, capsys):
    out = tmp_path / "run"
    given = ["--data", images, "--dof", "0.6", "--cost", "absolute"]
    assert run(["simplify", str(model), *given, "--out", str(out), *SMALL]) == 0
    assert run(["check", str(out), "--baseline", str(out), "-q"]) == 0
    capsys.readouterr()
    figures = []
    for place in (out, out / "tiny.pt"):
        asked = ["evaluate", str(place), "--arch", NET, "--data", images, "--json", "-"]
        assert run(asked) == 0
        figures.append(json.loads(capsys.readouterr().out)["accuracy"]["top1"])
    assert figures[0] == figures[1]
    asked = ["compare", str(out), str(model), "--arch", NET, "--data", images, "--json", "-"]
    assert run(asked) == 0
    assert json.loads(capsys.readouterr().out)["a"]["path"] == str(out / "tiny.pt")
    assert [path.name for path in checkpoints_in(out)] == ["tiny.pt"]
    (out / "tiny.kscode").write_text("")
    assert [path.name for path in checkpoints_in(out)] == ["tiny.kscode", "tiny.pt"]
    assert [path.name for path in checkpoints_in(tmp_path)].count("tiny.pt") == 2


def test_states_to_go_on_from_are_no_checkpoints(tmp_path):
    for name in ("run/tiny.pt", "run/resume/finetune.pt", "run/settings.toml", "resume/other.pt"):
        write_text(tmp_path / name, "")
    assert [path.relative_to(tmp_path).as_posix() for path in checkpoints_in(tmp_path)] == [
        "resume/other.pt",
        "run/tiny.pt",
    ]
