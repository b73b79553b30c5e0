"""Bad input at the command line: one line, its exit code, and nothing left behind."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from builders import NET, flip_bit, npz, tiny_state, write_bombs, write_zip
from saying import fails

from kernelsimp.cli.main import run

BAD_FILES = {
    "missing.pt": (None, "missing.pt"),
    "empty.pt": (b"", "empty"),
    "text.pt": (b"hello there, this is no checkpoint\n", "text"),
    "page.pt": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git-lfs"),
    "random.pt": (bytes(np.random.default_rng(0).integers(0, 255, 4000, dtype=np.uint8)), "random.pt"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("command", ["scan", "simplify"])
def test_files_that_are_no_checkpoint_are_one_line(command, name, tmp_path, capsys):
    content, words = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    arguments = [
        command,
        str(tmp_path / name),
        *(["--out", str(tmp_path / "run")] if command == "simplify" else []),
    ]
    assert run([*arguments, "--quiet"]) == 2
    line = capsys.readouterr().err
    assert words.lower() in line.lower()
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_damaged_and_hostile_checkpoints_are_one_line(model, tmp_path, capsys):
    (tmp_path / "cut.pt").write_bytes(model.read_bytes()[:-300])
    fails(["scan", str(tmp_path / "cut.pt"), "-q"], capsys, "cut.pt")
    (tmp_path / "flipped.pt").write_bytes(model.read_bytes())
    flip_bit(
        tmp_path / "flipped.pt", model.read_bytes().index(tiny_state()["stem.weight"].numpy().tobytes()) + 5
    )
    fails(["scan", str(tmp_path / "flipped.pt"), "-q"], capsys, "CRC")
    folder = ["simplify", str(tmp_path), "--tolerance", "0.1", "--out", str(tmp_path / "run"), "-q"]
    fails(folder, capsys, "directory")
    fails(["scan", str(model), "--sha256", "0" * 64, "-q"], capsys, "SHA-256")
    linear = write_zip({"fc.weight": torch.zeros(3, 4)}, tmp_path / "linear.pt")
    fails(["scan", str(linear), "-q"], capsys, "no convolution")
    for bomb in write_bombs(tmp_path, tmp_path / "marker"):
        fails(["scan", str(bomb), "-q"], capsys, str(bomb.name))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_are_damaged_are_named(value, tmp_path, capsys):
    state = tiny_state()
    state["stem.weight"][1, 2, 0, 0] = value
    fails(["scan", str(write_zip(state, tmp_path / "bad.pt")), "-q"], capsys, "stem")


def test_architectures_that_do_not_match_name_the_keys(model, tmp_path, capsys):
    fails(["scan", str(model), "--arch", "zoo:resnet20", "-q"], capsys, "stem.weight")
    fails(
        ["scan", str(model), "--arch", "zoo:resnet21", "-q"], capsys, "no such network; did you mean 'resnet"
    )
    fails(["scan", str(model), "--arch", str(tmp_path / "no.py") + ":net", "-q"], capsys, "no.py")


def test_bad_options_are_one_line(model, images, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    simplify = ["simplify", str(model), "--quiet"]
    fails([*simplify], capsys, "pass --out RUN, or --dry-run")
    fails([*simplify, "--tolerance", "0.1", "--dry-run", "--json", "-"], capsys, "--dry-run makes none")
    fails([*simplify, "--dry-run", "--finetune", "--epochs", "0"], capsys, "epochs is 0; expected 1 or more")
    fails([*simplify, "--dry-run", "--finetune"], capsys, "--finetune needs a network and images")
    (tmp_path / "file").write_text("")
    fails(
        [*simplify, "--tolerance", "0.1", "--out", str(tmp_path / "file")], capsys, "file: is a file; a run"
    )
    fails(
        ["scan", str(model), "-q", "--csv", str(tmp_path / "file" / "k.csv")],
        capsys,
        "/file is no folder; choose",
    )
    fails([*simplify, *out, "--freeze", "--tie"], capsys, "choose one of --freeze, --tie and --no-freeze")
    fails(
        [*simplify, *out, "--freeze", "--hold", "tie"], capsys, "--freeze is the same as --hold freeze, and"
    )
    fails(
        [*simplify, *out, "--finetune"],
        capsys,
        "--finetune needs a network and images: pass --arch and --data",
    )
    fails(
        [*simplify, *out, "--data", images], capsys, "--data needs a network to run the images: pass --arch"
    )
    fails(
        [*simplify, *out, "--families", "mirror-x"],
        capsys,
        "unknown family 'mirror-x'; did you mean 'mirror-",
    )
    fails([*simplify, *out, "--tolerance", "0.1", "--free-scale"], capsys, "--free-scale goes with --tie")
    fails([*simplify, *out, "--tolerance", "0.1", "--tie", "--soft", "1"], capsys, "choose one")
    fails([*simplify, *out, "--tolerance", "7"], capsys, "--tolerance is 7; expected a number from 0 to 1")
    fails([*simplify, *out, "--arch", NET, "--data", "digit"], capsys, "did you mean 'digits'")
    fails([*simplify, *out, "--device", "cuda:9", "--arch", NET], capsys, "--device")
    fails([*simplify, "--out", str(tmp_path)], capsys, "would overwrite")
    fails(["simplify", str(model), "--bogus"], capsys, "--bogus")
    fails(
        ["scan", str(model), *out], capsys, "No such option: --out (Possible options: --csv, --html, --json)"
    )
    (tmp_path / "s.toml").write_text("[plan]\ntolerence = 1\n")
    fails([*simplify, *out, "--config", str(tmp_path / "s.toml")], capsys, "did you mean 'tolerance'?")


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (["--dof", "50"], "--dof is 50; expected a number from 0 to 1"),
        (["--simplified", "-1"], "--simplified is -1; expected a number from 0 to 1"),
        (["--max-drop", "-1"], "--max-drop is -1; expected percentage points from 0 to 100"),
        (["--dof", "0.5", "--families", "mirror-x"], "unknown family 'mirror-x'"),
        (["--dof", "0.5", "--layers", "conv9*"], "--layers: no layer matches 'conv9*'"),
        (["--dof", "0.5", "--tolerance", "0.1"], "choose one budget, not both --tolerance and --dof"),
    ],
)
@pytest.mark.parametrize("place", ["run", None])
def test_a_budget_that_makes_no_sense_is_refused_before_anything_is_read(
    budget, words, place, model, images, tmp_path, capsys
):
    where = ["--dry-run"] if place is None else ["--out", str(tmp_path / place)]
    # not quiet: a stage that begins would be a line of its own
    assert run(["simplify", str(model), "--arch", NET, "--data", images, *budget, *where]) == 2
    assert capsys.readouterr().err.startswith(f"kernelsimp: {words}")
    assert not (tmp_path / "run").exists()


def test_images_of_the_wrong_size_or_channels_are_one_line(model, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run"), "--quiet", "--tolerance", "0.1", "--arch", NET]
    grey = npz(tmp_path / "grey.npz", (8, 8))
    fails(["simplify", str(model), "--data", grey, *out], capsys, "cannot take images 1 x 8 x 8")
    assert not (tmp_path / "run").exists()
    small = npz(tmp_path / "more.npz", (8, 8, 3))
    with np.load(small.removeprefix("npz:")) as arrays:
        np.savez(tmp_path / "more.npz", **{**arrays, "test_labels": np.full(40, 9)})
    fails(["simplify", str(model), "--data", small, *out], capsys, "label 9")


def test_a_run_directory_that_cannot_be_written(model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = [
        "simplify",
        str(model),
        "--quiet",
        "--tolerance",
        "0.1",
        "--out",
        str(tmp_path / "file" / "run"),
    ]
    fails(arguments, capsys, "cannot write")


def test_a_full_disk_leaves_no_half_file(model, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    out = tmp_path / "run"
    fails(
        ["simplify", str(model), "--quiet", "--tolerance", "0.1", "--out", str(out)], capsys, "No space left"
    )
    assert not [path for path in out.iterdir() if "partial" in path.name or path.name == "tiny.pt"]


def test_a_bug_is_exit_3_and_an_interrupt_130(model, capsys, monkeypatch):
    from kernelsimp.commands import scan

    def broken(*_):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(scan, "scan", broken)
    assert run(["scan", str(model)]) == 3
    assert "please report it" in capsys.readouterr().err

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scan, "scan", interrupted)
    assert run(["scan", str(model)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "kernelsimp: interrupted"


def test_the_demo_without_scikit_learn_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    fails(["demo", "--out", str(tmp_path), "--quiet"], capsys, "pip install scikit-learn")


@pytest.mark.parametrize("command", ["simplify", "prune", "train"])
def test_a_finished_run_is_not_written_over_unasked(command, model, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "report.json").write_text("{}")
    source = ["--arch", "zoo:digits-cnn", "--data", "digits"] if command == "train" else [str(model)]
    fails(
        [command, *source, "--out", str(out), "-q"],
        capsys,
        "already has a run (report.json); pass --overwrite",
    )
    assert (out / "report.json").read_text() == "{}"


def test_a_run_is_replaced_where_asked(model, tmp_path):
    command = ["simplify", str(model), "--tolerance", "0.9", "--out", str(tmp_path / "run"), "-q"]
    assert run(command) == 0
    assert run(command) == 2
    assert run([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        *([command] for command in ("scan", "audit", "simplify", "prune", "evaluate")),
        ["compare", "--arch", "x", "--data", "digits", "tests"],
        ["check", "--baseline", "tests"],
    ],
    ids=lambda words: words[0],
)
def test_a_missing_model_is_said_before_torch_is_imported(words, tmp_path):
    (tmp_path / "tests").mkdir()
    code = (
        f"import sys; from kernelsimp.cli.main import run; told = run([*{words}, 'absent.pt'])\n"
        "print(told, 'torch' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert found.stdout.strip() == "2 False"
    assert found.stderr.strip() == "kernelsimp: absent.pt: no such file; check the path"


@pytest.mark.parametrize("words", [["evaluate", "m.pt"], ["compare", "m.pt", "m.pt", "--data", "digits"]])
def test_what_runs_a_network_asks_for_it_before_torch_is_imported(words, tmp_path):
    (tmp_path / "m.pt").write_bytes(b"")
    code = (
        f"import sys; from kernelsimp.cli.main import run; told = run({words})\n"
        "print(told, 'torch' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert found.stdout.strip() == "2 False"
    assert found.stderr.startswith(f"kernelsimp: {words[0]} ")
    assert "pass --arch" in found.stderr
