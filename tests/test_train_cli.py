"""`kernelsimp train` from words to a run directory, and the sentences of what it refuses."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from saying import fails

from kernelsimp.cli.main import run
from kernelsimp.commands import train as from_scratch
from kernelsimp.kernels.families import find
from kernelsimp.models.zoo import DigitsCnn

WORDS = [
    "train",
    "--arch",
    "zoo:digits-cnn",
    "--data",
    "digits",
    "--config",
    "recipe:digits-train",
    "--quiet",
]


def test_a_run_holds_a_plain_checkpoint_a_report_and_the_curve(tmp_path):
    out = tmp_path / "run"
    rule = ["--constrain", "dense*=odd-h:0.5", "--constrain", "stem*=mirror-v"]
    assert run([*WORDS, *rule, "--penalty", "rate:1", "--epochs", "2", "--out", str(out)]) == 0
    state = torch.load(out / "model.pt", weights_only=True)["state_dict"]
    DigitsCnn().load_state_dict(state, strict=True)
    assert bool(find("mirror-v", (5, 5)).holds(state["stem.0.weight"].flatten(0, 1)).all())
    assert int(find("odd-h", (3, 3)).holds(state["dense.0.weight"].flatten(0, 1)).sum()) == 512
    report = json.loads((out / "report.json").read_text())
    assert [stage["stage"] for stage in report["accuracy"]["stages"]] == ["trained"]
    assert report["kernels"]["simplified"] == report["kernels"]["tied"] == 512 + 16
    assert report["settings"]["train"]["penalty"] == ["rate:1"]
    assert all(epoch["bits_per_kernel"] > 0 and epoch["found"] > 0 for epoch in report["training"])
    markdown, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    assert "Training, first, kept and last epoch" in markdown
    assert "Fine-tuning" not in markdown + page
    assert markdown.count("accuracy, trained") == 1
    assert "accuracy change" not in markdown
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert sum("bits_per_kernel" in line for line in logged) == 2
    share = 100 * (512 + 16) / report["kernels"]["total"]
    assert [line["held"] for line in logged if "held" in line] == pytest.approx([share, share])
    assert {"report.md", "report.html", "settings.toml", "plan.safetensors"} <= {
        p.name for p in out.iterdir()
    }


def test_the_command_in_the_report_repeats_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run([*WORDS, "--constrain", "mirror-h", "--epochs", "1", "--curve", "0", "--out", "run"]) == 0
    command = json.loads(Path("run/report.json").read_text())["provenance"]["command"]
    assert run([*shlex.split(command)[1:], "--quiet"]) == 0
    assert Path("run-again/model.pt").read_bytes() == Path("run/model.pt").read_bytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--constrain", "ful-square"], "unknown constraint 'ful-square'; did you mean 'full-square'?"),
        (["--constrain", "sten*=radial"], "constrain: no layer matches 'sten*'"),
        (["--constrain", "odd-h:0.7+radial:0.7"], "the shares add up to 1.4"),
        (["--penalty", "rate:0"], "every penalty has weight 0"),
        (["--penalty", "rte:1"], "did you mean 'rate'?"),
        (["--soft", "1"], "train with --constrain or --penalty"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words, sentence, tmp_path, capsys):
    assert run([*WORDS, *words, "--out", str(tmp_path / "run")]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_place_a_network_and_images_are_needed(tmp_path, capsys):
    assert run(WORDS) == 2
    assert run(["train", "--out", str(tmp_path / "run")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "pass --out RUN" in said
    assert "training needs a network and images: pass --arch and --data" in said


@pytest.mark.parametrize("words", [["--no-finetune"], ["--distill", "0.5"]])
def test_what_training_from_scratch_has_no_use_for_is_refused(words, tmp_path, capsys):
    fails([*WORDS, *words, "--out", str(tmp_path / "run")], capsys, f"{words[0]}: train trains from scratch")


def test_a_written_kernel_that_left_its_family_is_refused_by_name(tmp_path, capsys, monkeypatch):
    def nudged(model):
        state = plain_state(model)
        state["stem.0.weight"][0, 0, 0, 0] += 0.5
        return state

    plain_state = from_scratch.plain_state
    monkeypatch.setattr(from_scratch, "plain_state", nudged)
    rule = ["--constrain", "stem*=mirror-v", "--epochs", "1"]
    assert run([*WORDS, *rule, "--out", str(tmp_path / "run")]) == 3
    assert "stem.0[0,0] moved while it was held" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_parametrised_network_is_trained_plain_and_says_so(tmp_path, capsys):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "from torch.nn.utils.parametrizations import weight_norm\n"
        "def net():\n"
        "    layers = weight_norm(nn.Conv2d(1, 4, 3)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "    return nn.Sequential(*layers, nn.Linear(4, 10))\n"
    )
    words = [
        "--arch",
        f"{tmp_path}/net.py:net",
        "--epochs",
        "1",
        "--curve",
        "0",
        "--out",
        str(tmp_path / "run"),
    ]
    assert run([*WORDS, *words]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "0.weight stand in parts (weight norm, spectral norm or pruning); they are trained and written"
        in told
    )
    assert "0.weight" in torch.load(tmp_path / "run" / "model.pt", weights_only=True)["state_dict"]
