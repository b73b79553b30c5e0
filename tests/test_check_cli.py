"""The gate from the command line: damaged checkpoints, hostile names, and what CI systems read."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import TinyNet, tiny_state, write_zip
from torch import Tensor

from kernelsimp.cli.main import run

NET = f"{Path(__file__).with_name('builders.py')}:TinyNet"
State = dict[str, Tensor]
HOSTILE = "<b>a\x1b[31m\n%0A::error::x"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny network that is right on all its test images, whose kernels are frozen."""
    folder = tmp_path_factory.mktemp("gate")
    model = write_zip({"state_dict": tiny_state()}, folder / "tiny.pt")
    assert run(["simplify", str(model), "--tolerance", "0.9", "--out", str(folder / "run"), "-q"]) == 0
    net = TinyNet().eval()
    net.load_state_dict(kept(folder))
    images = np.random.default_rng(0).integers(0, 255, (200, 8, 8, 3), dtype=np.uint8)
    with torch.no_grad():
        logits = net(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    labels = logits.argmax(1).numpy()
    parts = {f"{s}_images": images for s in ("train", "val", "test")}
    np.savez(folder / "images.npz", **parts, **{f"{s}_labels": labels for s in ("train", "val", "test")})
    return folder


def kept(folder: Path) -> State:
    return dict(torch.load(folder / "run" / "tiny.pt", weights_only=True)["state_dict"])


def gate(folder: Path, state: State, *options: str, base: str = "run") -> tuple[int, dict[str, str]]:
    """Check a state dict; return the exit code and the outcome of each rule."""
    path = write_zip({"state_dict": state}, folder / "new.pt")
    told = folder / "verdict.json"
    words = ["check", str(path), "--baseline", str(folder / base), *options, "--json", str(told), "-q"]
    code = run(words)
    return code, {item["rule"]: item["outcome"] for item in json.loads(told.read_text())["measures"]}


def put(value: float) -> Callable[[State], None]:
    def damage(state: State) -> None:
        state["stem.weight"][0, 0, 1, 1] = value

    return damage


def flip(state: State) -> None:
    state["stem.weight"].view(torch.int32)[1, 1, 2, 2] ^= 1


def nudge(state: State) -> None:
    state["depthwise.weight"][2, 0, 0, 0] += 0.25


def rename(state: State) -> None:
    state["stalk.weight"] = state.pop("stem.weight")


def lose(state: State) -> None:
    del state["depthwise.weight"]


def reshape(state: State) -> None:
    state["stem.weight"] = state["stem.weight"][:, :2].clone()


def halve(state: State) -> None:
    state["stem.weight"] = state["stem.weight"].half()


def kill(state: State) -> None:
    state["stem.weight"][:2] *= 1e-4


FROZEN, BROKEN, NAN, LAYERS = (
    *("kernels.frozen_changed", "kernels.structure_broken", "kernels.nan", "layers.changed"),
)
DAMAGED = [
    (put(torch.nan), NAN),
    (put(torch.inf), NAN),
    (flip, FROZEN),
    (nudge, BROKEN),
    (rename, LAYERS),
    (lose, LAYERS),
    (reshape, LAYERS),
    (halve, FROZEN),
]


@pytest.mark.parametrize(("damage", "rule"), DAMAGED)
def test_a_damaged_checkpoint_exits_1_by_its_rule(
    place: Path, damage: Callable[[State], None], rule: str
) -> None:
    state = kept(place)
    assert gate(place, state)[0] == 0
    damage(state)
    code, outcomes = gate(place, state)
    assert code == 1
    assert outcomes[rule] == "error"


def test_dead_kernels_cross_a_limit_on_their_share(place: Path) -> None:
    limits = place / "limits.toml"
    limits.write_text("[kernels.dead_share]\nmax_delta = 0.1\n")
    state = kept(place)
    assert gate(place, state, "--limits", str(limits))[0] == 0
    kill(state)
    code, outcomes = gate(place, state, "--limits", str(limits))
    assert (code, outcomes["kernels.dead_share"]) == (1, "error")


def test_lost_accuracy_is_seen_with_images_and_tested(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--arch", NET, "--data", f"npz:{place / 'images.npz'}"]
    whole = write_zip({"state_dict": kept(place)}, place / "whole.pt")
    make = ["check", str(whole), "--baseline", str(place / "acc.json"), "--update-baseline", *data, "-q"]
    assert run(make) == 0
    state = kept(place)
    assert gate(place, state, *data, base="acc.json") == (
        0,
        {**gate(place, state, *data, base="acc.json")[1]},
    )
    state["head.bias"] += torch.tensor([0.0, 50.0, 0.0, 0.0, 0.0])
    state["head.weight"] *= torch.linspace(-3, 3, 5)[:, None]
    code, outcomes = gate(place, state, *data, base="acc.json")
    assert (code, outcomes["accuracy.drop_pp"]) == (1, "error")
    findings = json.loads((place / "verdict.json").read_text())["findings"]
    assert any("McNemar p" in item["message"] for item in findings)


def test_a_file_cut_off_and_another_network_cannot_be_checked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = place / "cut.pt"
    cut.write_bytes((place / "run" / "tiny.pt").read_bytes()[:-200])
    other = write_zip({"a.weight": torch.ones(2, 2, 3, 3)}, place / "other.pt")
    for path, words in ((cut, "cut.pt"), (other, "the baseline is of another network")):
        capsys.readouterr()
        assert run(["check", str(path), "--baseline", str(place / "run"), "-q"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert words in lines[0]


def test_a_run_with_files_missing_is_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = place / "empty"
    empty.mkdir()
    for words in (
        ["report", str(empty)],
        ["report", str(place / "run"), str(empty), "--out", str(place / "p")],
    ):
        capsys.readouterr()
        assert run(words) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.replace("\n", " ").split("kernelsimp: ")) == 2
        assert "there is no report" in " ".join(captured.err.split())
    assert not (place / "p").exists()


def test_hostile_names_do_nothing_where_github_reads(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {f"{HOSTILE}.weight": torch.randn(2, 2, 3, 3), "b.weight": torch.randn(2, 2, 3, 3)}
    path, base = write_zip(good, place / "hostile.pt"), place / "hostile.json"
    assert run(["check", str(path), "--baseline", str(base), "--update-baseline", "-q"]) == 0
    good[f"{HOSTILE}.weight"][0, 0, 0, 0] = torch.nan
    write_zip(good, path)
    summary = place / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    capsys.readouterr()
    files = ["--junit", str(place / "j.xml"), "--gitlab", str(place / "g.json")]
    assert run(["check", str(path), "--baseline", str(base), *files]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    commands = [line for line in out.splitlines() if line.startswith("::")]
    assert len(commands) == 1
    assert commands[0].startswith(
        "::error title=kernelsimp kernels.nan::<b>a\\x1b[31m\\n%250A::error::x: 1 of 4"
    )
    for text in (summary.read_text(), (place / "j.xml").read_text()):
        assert "\x1b" not in text
        assert "<b>" not in text
    assert json.loads((place / "g.json").read_text())[0]["check_name"] == "kernelsimp kernels.nan"


def test_limits_of_the_folder_are_used(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = kept(place)
    flip(state)
    assert gate(place, state)[0] == 1
    (tmp_path / "pyproject.toml").write_text(
        '[tool.kernelsimp.check]\n"kernels.frozen_changed" = { max = 0, level = "warn" }\n'
        '"kernels.structure_broken" = { max = 0, level = "warn" }\n'
    )
    monkeypatch.chdir(tmp_path)
    code, outcomes = gate(place, state)
    assert (code, outcomes[FROZEN]) == (0, "warn")
