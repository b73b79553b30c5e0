"""The command that a report offers to copy: it says what was asked for and gives the same again."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from builders import NET, tiny_state, write_zip

from kernelsimp.cli.main import run
from kernelsimp.report.command import command_again
from kernelsimp.settings import Settings
from kernelsimp.settings_file import settle


def spelled(settings: Settings) -> list[str]:
    return shlex.split(command_again(Path("a b.pt"), settings, Settings(), Path("run")))


def test_defaults_are_left_out_and_the_rest_is_spelled() -> None:
    assert spelled(Settings()) == ["kernelsimp", "simplify", "a b.pt", "--out", "run-again"]
    given = {
        "data": {"data": "npz:x y.npz", "mean": (0.5, 0.25), "workers": 2},
        "plan": {"dof": 0.3, "controls": True, "families": ("mirror-h", "equal-rows")},
        "finetune": {"finetune": True, "resume": True, "weight_decay": 1e-5},
    }
    assert spelled(settle(given))[3:-2] == [
        *("--data", "npz:x y.npz", "--mean", "0.5,0.25", "--workers", "2", "--dof", "0.3"),
        *("--families", "mirror-h,equal-rows", "--controls", "--finetune", "--weight-decay", "1e-05"),
    ]


def test_what_differs_from_the_recipe_is_said_even_where_it_is_the_default() -> None:
    usual = settle({"data": {"augment": "cifar"}, "finetune": {"distill": 0.5}})
    words = shlex.split(command_again(Path("m.pt"), Settings(), usual, Path("run")))
    assert words[3:-2] == ["--augment", "none", "--distill", "0.9"]


def test_settings_without_an_option_come_from_the_runs_own_file() -> None:
    settings = replace(Settings(), scan=replace(Settings().scan, null="white"))
    assert spelled(settings)[3:5] == ["--config", "run/settings.toml"]
    for stage, key, value in (("finetune", "momentum", 0.8), ("compare", "by", "flat")):
        assert spelled(settle({stage: {key: value}}))[3:-2] == ["--config", "run/settings.toml"]


def test_the_copied_command_gives_the_same_tensors(tmp_path: Path) -> None:
    model = write_zip({"state_dict": tiny_state()}, tmp_path / "tiny.pt")
    rng = np.random.default_rng(0)
    arrays = {
        f"{s}_images": rng.integers(0, 255, (40, 8, 8, 3), dtype=np.uint8) for s in ("train", "val", "test")
    }
    arrays |= {f"{s}_labels": np.arange(40) % 5 for s in ("train", "val", "test")}
    np.savez(tmp_path / "i.npz", **arrays)
    out = tmp_path / "run"
    given = ["--arch", NET, "--data", f"npz:{tmp_path / 'i.npz'}", "--dof", "0.6", "--batch-size", "16"]
    rest = ["--finetune", "--epochs", "1", "--seed", "3", "--cost", "absolute"]
    assert run(["simplify", str(model), *given, *rest, "--out", str(out), "-q"]) == 0
    report = json.loads((out / "report.json").read_text())
    program, *words = shlex.split(report["provenance"]["command"])
    assert program == "kernelsimp"
    assert run([*words, "-q"]) == 0
    again = Path(f"{out}-again")
    one, two = (torch.load(folder / "tiny.pt", weights_only=True)["state_dict"] for folder in (out, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
    second = json.loads((again / "report.json").read_text())
    assert [layer["hold"] for layer in second["layers"]] == [layer["hold"] for layer in report["layers"]]
    assert (
        second["provenance"]["command"].replace("-again-again", "-again") == report["provenance"]["command"]
    )
    assert report["provenance"]["command"] in (out / "report.html").read_text().replace("&#39;", "'")
    counts = [sum(layer["families_found"].values()) for layer in report["layers"]]
    assert sum(counts) == report["kernels"]["found"]


def test_two_runs_go_by_their_shortest_different_names() -> None:
    from kernelsimp.report.fmt import short_names

    assert short_names((Path("/a/runs/one"), Path("/a/runs/two"))) == ("one", "two")
    assert short_names((Path("/a/one/run"), Path("/a/two/run"))) == ("one/run", "two/run")
    assert short_names((Path("same"), Path("same"))) == ("same", "same")


def test_a_run_is_also_known_by_its_report(tmp_path: Path, capsys) -> None:
    model, out = write_zip(tiny_state(), tmp_path / "net.pt"), tmp_path / "run"
    assert run(["simplify", str(model), "--tolerance", "0.6", "--out", str(out), "-q"]) == 0
    page = (out / "report.md").read_text()
    (out / "report.md").write_text("old")
    assert run(["report", str(out / "report.json")]) == 0
    assert (out / "report.md").read_text() == page
    other = shutil.copytree(out, tmp_path / "other")
    assert run(["report", str(out / "report.json"), str(other), "--out", str(tmp_path / "pair")]) == 0
    assert run(["report", str(out / "report.json"), str(out), "--out", str(tmp_path / "pair")]) == 2
