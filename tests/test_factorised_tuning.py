"""`export --to factorised --finetune`, and the export in the report of its run."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reports
import torch
from factorising import far, make_place, measured_as, real, record, words
from saying import command_refusal

from kernelsimp.cli.main import run
from kernelsimp.records.serialise import json_text
from kernelsimp.report.html import factorised_html, report_html
from kernelsimp.report.markdown import factorised_markdown, report_markdown
from kernelsimp.report.store import read_report, report_json
from kernelsimp.report.tables.headline import headline
from kernelsimp.training import finetune

TRAINING = ["--finetune", "--epochs", "2", "--batch-size", "32", "--lr", "0.001"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose depthwise layer is of rank one but for one channel, its code, and images."""
    return make_place(tmp_path_factory.mktemp("factorised"))


@pytest.fixture
def quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every layer, and the network, measured to be twice as fast."""
    measured_as(monkeypatch)(2.0)


def stages(made: dict[str, Any]) -> list[str]:
    return [stage["stage"] for stage in made["accuracy"]["stages"]]


# ---------------------------------------------------------------- the tuned network


@pytest.mark.usefixtures("quicker")
def test_what_is_written_is_the_tuned_network(place: Path, tmp_path: Path) -> None:
    plain, tuned = tmp_path / "plain.pt2", tmp_path / "tuned.pt2"
    assert run([*words(place, plain, *real(place), "--macs", "0.6"), "-q"]) == 0
    assert run([*words(place, tuned, *real(place), "--macs", "0.6", *TRAINING), "-q"]) == 0
    made, images = record(tuned), torch.rand(4, 3, 12, 12)
    with torch.no_grad():
        before, after = (torch.export.load(file).module()(images) for file in (plain, tuned))
        assert far(after, before) > 1e-4
        namespace: dict[str, Any] = {"__file__": str(tmp_path / "tuned.py"), "__name__": "tuned"}
        exec(compile((tmp_path / "tuned.py").read_text(), "tuned.py", "exec"), namespace)
        assert far(namespace["build"]()(images), after) < 1e-5
    assert stages(made) == ["before", "factorised", "finetuned"]
    assert (
        made["accuracy"]["stages"][1]["correct_bits"]
        == record(plain)["accuracy"]["stages"][1]["correct_bits"]
    )
    assert made["macs"] == record(plain)["macs"]
    assert [epoch["epoch"] for epoch in made["training"]] == [1, 2]
    assert {item["against"] for item in made["outputs"]} == {"the fine-tuned network in memory"}
    assert any("timed before the training" in note for note in made["notes"])
    log = [json.loads(line) for line in (tmp_path / "tuned" / "log.jsonl").read_text().splitlines()]
    assert sum(line["event"] == "row" for line in log) == 2
    assert (tmp_path / "tuned" / "resume" / "factorised" / "finetune.pt").exists()
    kept = [epoch["epoch"] for epoch in made["training"] if epoch["kept"]]
    assert f"| {kept[0]}, kept |" in (tmp_path / "tuned.md").read_text()


@pytest.mark.usefixtures("quicker")
def test_an_interrupted_training_goes_on_to_the_same_bits(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "net.pt2"
    command = [*words(place, out, *real(place), "--macs", "0.6", *TRAINING), "-q"]
    assert run(command) == 0
    whole = out.with_suffix(".safetensors").read_bytes()
    for path in filter(Path.is_file, tmp_path.glob("net.*")):
        path.unlink()
    usual = finetune._Finetuning._epoch

    def stop(self: Any, interrupts: Any) -> bool:
        if self.progress.epoch == 2:
            raise KeyboardInterrupt
        return usual(self, interrupts)

    with monkeypatch.context() as patch:
        patch.setattr(finetune._Finetuning, "_epoch", stop)
        assert run(command) == 130
    assert "--resume" in capsys.readouterr().err
    assert not list(tmp_path.glob("net.*"))
    assert not list(tmp_path.glob(".factorised-*"))
    assert run([*command, "--resume"]) == 0
    assert "going on in epoch 2" in (tmp_path / "net" / "log.jsonl").read_text()
    assert out.with_suffix(".safetensors").read_bytes() == whole


@pytest.mark.parametrize("code", ["Branching", "Reused", "Shared"])
@pytest.mark.usefixtures("quicker")
def test_odd_networks_are_tuned_too(code: str, place: Path, tmp_path: Path) -> None:
    """One that cannot be traced, one whose layer runs twice, one whose weight another layer has too."""
    out = tmp_path / "odd.pt2"
    assert run([*words(place, out, *real(place), *TRAINING, code=code), "-q"]) == 0
    made = record(out)
    assert stages(made) == ["before", "factorised", "finetuned"]
    assert out.exists() == (code != "Branching")
    assert out.with_suffix(".safetensors").exists()
    if code == "Branching":
        assert sum("torch.export cannot trace" in note for note in made["notes"]) == 1
    if code == "Shared":
        rows = {layer["name"]: layer for layer in made["layers"]}
        assert "shared with another layer" in rows["stem"]["why"]
        assert rows["stem"]["parameters_before"] == rows["stem"]["parameters_after"] > 0
        assert rows["deep"]["rank"] == 1


@pytest.mark.parametrize(("layers", "network"), [(0.9, 0.9), (2.0, 1.0)])
def test_no_gain_trains_nothing_and_writes_nothing(
    layers: float,
    network: float,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured_as(monkeypatch)(layers, network=network)
    assert run([*words(place, tmp_path / "none.pt2", *real(place), *TRAINING), "-q"]) == 0
    assert "nothing is written" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"times.json"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--input-size", "12"], "--finetune needs images to train on: pass --data"),
        (["--hold", "tie"], "thinner layers keep their rank by their form"),
        (["--devices", "2"], "export trains in one process"),
        (["--epochs", "0"], "epochs is 0; expected 1 or more"),
    ],
)
def test_bad_input_is_one_line(
    place: Path,
    tmp_path: Path,
    more: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = [] if "--input-size" in more else real(place)
    told = command_refusal([*words(place, tmp_path / "x.pt2", *data, "--finetune", *more), "-q"], capsys)
    assert said in told
    assert not list(tmp_path.glob("x*"))


def test_a_network_that_is_no_classifier_is_not_trained(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(place, tmp_path / "x.pt2", *real(place), "--finetune", code="Maps")
    assert "--finetune is not there for a network that is no classifier" in command_refusal(
        [*command, "-q"], capsys
    )


def test_the_log_takes_no_other_run_s_place(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "report.json").write_text("{}")
    told = command_refusal([*words(place, tmp_path / "x.pt2", *real(place), "--finetune"), "-q"], capsys)
    assert f"{tmp_path / 'x'} is a run" in told


# ---------------------------------------------------------------- the report of a run


@pytest.fixture(scope="module")
def separable(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose depthwise kernels are of rank one, tied while it was trained."""
    out = tmp_path_factory.mktemp("separable") / "run"
    budget = ["--families", "rank-one", "--simplified", "0.06", "--layers", "deep", "--tie", *TRAINING]
    arch = ["--arch", f"{place / 'code.py'}:Net"]
    assert (
        run(["simplify", str(place / "net.pt"), *arch, *real(place), *budget, "--out", str(out), "-q"]) == 0
    )
    return out


LONG = ' class="long"'
"""How a column looks that has a long cell: an export adds a row to the figures."""


@pytest.mark.usefixtures("quicker")
def test_the_report_of_the_run_has_the_export_and_all_that_it_had(
    place: Path,
    separable: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = json.loads((separable / "report.json").read_text())
    page, log = (separable / "report.html").read_text(), (separable / "log.jsonl").read_text()
    arch = ["--arch", f"{place / 'code.py'}:Net", "--times", str(tmp_path / "t.json"), "--engines", "eager"]
    command = ["export", str(separable), "--to", "factorised", *arch, *real(place), *TRAINING]
    assert run(command) == 0
    assert "report.html has this export too" in capsys.readouterr().out
    after = json.loads((separable / "report.json").read_text())
    made = after.pop("factorised")
    assert {**after, "factorised": None} == before
    assert made == record(separable / "net.factorised.pt2")
    deep = next(layer for layer in made["layers"] if layer["name"] == "deep")
    assert (deep["rank"], deep["exact"]) == (1, True)
    assert any("kernels that the run holds were free" in note for note in made["notes"])
    for name in ("report.html", "report.md", "net.factorised.html", "net.factorised.md"):
        text = (separable / name).read_text()
        assert ("Latency" if "net." in name else "Thinner layers, latency") in text, name
        assert "ms whole" in text, name
    now = (separable / "report.html").read_text()
    kept = re.findall(
        r"<tr>.*?</tr>|<figure.*?</figure>|<h[1-3]>.*?</h[1-3]>", page.replace(' class="long"', ""), re.DOTALL
    )
    assert len(kept) > 20
    assert [part for part in kept if part not in now.replace(LONG, "")] == []
    assert (separable / "log.jsonl").read_text().startswith(log)
    assert run(["report", str(separable)]) == 0
    assert (separable / "report.html").read_text() == now
    assert run(["check", str(separable / "net.pt"), "--baseline", str(separable / "report.json"), "-q"]) == 0


@pytest.mark.usefixtures("quicker")
def test_a_report_that_cannot_be_read_any_more_stays_and_is_said(
    place: Path,
    separable: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (separable / "report.json").read_bytes()

    def broken(*_: object) -> str:
        raise ValueError("no page")

    monkeypatch.setattr("kernelsimp.commands.run_report.report_html", broken)
    arch = ["--arch", f"{place / 'code.py'}:Net", "--times", str(tmp_path / "t.json"), "--engines", "eager"]
    out = tmp_path / "x.pt2"
    assert (
        run(["export", str(separable), "--to", "factorised", *arch, *real(place), "--out", str(out), "-q"])
        == 0
    )
    assert "the run's report is as it was, without this export" in capsys.readouterr().out
    assert (separable / "report.json").read_bytes() == before
    assert out.exists()


@pytest.mark.parametrize("name", ["report.pt2", "plan.pt2"])
def test_the_files_of_a_run_are_not_written_over(
    name: str,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "report.json").write_text("{}")
    told = command_refusal([*words(place, tmp_path / name, *real(place)), "-q"], capsys)
    assert "is a file of a run; name another with --out" in told
    assert {path.name for path in tmp_path.iterdir()} == {"report.json"}


def test_other_forms_train_nothing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = command_refusal(
        ["export", str(place / "net.pt"), "--finetune", "--out", str(tmp_path / "x")], capsys
    )
    assert "--finetune is for --to factorised alone; --to packed keeps the weights" in told


def test_foreign_words_are_text_in_every_report() -> None:
    made = reports.factorised("<script>|a*b_\x1b[31m")
    whole = replace(reports.report(), factorised=made)
    for page in (report_html(whole), factorised_html(made)):
        assert "<script>|a" not in page
        assert "\x1b" not in page
        assert "1.5 (1.40 to 1.60)" in page
    assert ("times as fast, as thinner layers", "1.5 (1.40 to 1.60)") in {
        (fact.name, fact.value) for fact in headline(whole)
    }
    for text in (report_markdown(whole), factorised_markdown(made)):
        assert "&lt;script&gt;\\|a\\*b\\_" in text
        assert "<script>" not in text
        assert "\x1b" not in text


def test_a_report_with_an_export_is_read_back_as_it_was(tmp_path: Path) -> None:
    whole = replace(reports.report(), factorised=reports.factorised())
    (tmp_path / "report.json").write_text(json_text(report_json(whole)))
    assert read_report(tmp_path).factorised == whole.factorised
