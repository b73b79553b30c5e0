"""The gate from the command line: damaged checkpoints, hostile names, and what CI systems read."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from builders import NET, TinyNet, tiny_state, write_zip
from torch import Tensor

from kernelsimp.cli.main import run

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


def damaged(folder: Path, name: str, damage: Callable[[State], None]) -> str:
    state = kept(folder)
    damage(state)
    return str(write_zip({"state_dict": state}, folder / name))


def test_several_models_are_judged_each_for_itself(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place / "several.md"))
    models = [damaged(place, "good.pt", lambda _: None), damaged(place, "bad.pt", put(torch.nan))]
    files = [
        "--junit",
        str(place / "s.xml"),
        "--gitlab",
        str(place / "s.json"),
        "--json",
        str(place / "v.json"),
    ]
    assert run(["check", *models, "--baseline", str(place / "run"), *files]) == 1
    root = ElementTree.parse(place / "s.xml").getroot()
    suites = root.findall("testsuite")
    assert [suite.get("name") for suite in suites] == [f"kernelsimp check {model}" for model in models]
    assert [suite.get("failures") for suite in suites] == ["0", "2"]
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("20", "2", "0")
    assert [issue["location"]["path"] for issue in json.loads((place / "s.json").read_text())] == 2 * [
        models[1]
    ]
    told = json.loads((place / "v.json").read_text())
    assert [(item["model"], item["exit_code"]) for item in told] == [(models[0], 0), (models[1], 1)]
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::")]
    assert len(commands) == 2
    assert f"::{models[1]}: stem: 1 of 12 kernels hold NaN" in commands[1]
    assert (place / "several.md").read_text().count("### kernelsimp check ") == 2


def test_one_that_cannot_be_read_does_not_hide_the_others(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [damaged(place, "bad.pt", put(torch.nan)), str(place / "none.pt")]
    files = ["--junit", str(place / "s.xml"), "--json", str(place / "v.json"), "-q"]
    assert run(["check", *models, "--baseline", str(place / "run"), *files]) == 2
    assert capsys.readouterr().err.count("none.pt: no such file") == 1
    root = ElementTree.parse(place / "s.xml").getroot()
    assert (root.get("failures"), root.get("errors")) == ("2", "1")
    assert "error" in json.loads((place / "v.json").read_text())[1]
    capsys.readouterr()
    assert run(["check", models[1], models[1], "--baseline", str(place / "run"), "-q"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_baseline_comes_with_the_line_that_makes_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, model = place / "not yet.json", str(place / "run" / "tiny.pt")
    data = ["--data", f"npz:{place / 'images.npz'}", "--arch", NET, "--no-trust-pickle"]
    assert run(["check", model, "--baseline", str(base), *data, "-q"]) == 2
    said = capsys.readouterr().err
    assert f"{base}: there is no baseline; make one: kernelsimp check {model} --baseline '{base}'" in said
    words = shlex.split(said.partition("make one: kernelsimp ")[2])
    assert run(words) == 0
    assert run(["check", model, "--baseline", str(base), *data, "-q"]) == 0
    capsys.readouterr()
    assert run(["check", model, "--baseline", str(base), *data, "--json", "-"]) == 0
    measures = json.loads(capsys.readouterr().out)["measures"]
    assert measures[0] == {**measures[0], "rule": "accuracy.drop_pp", "measured": 0.0, "outcome": "pass"}


def test_a_baseline_of_a_runs_checkpoint_holds_what_the_run_held(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, model = place / "held.json", str(place / "run" / "tiny.pt")
    assert run(["check", model, "--baseline", str(base), "--update-baseline"]) == 0
    said = capsys.readouterr().out
    assert said == (
        f"done: baseline of 2 layers, frozen kernels in 2 of them, structures from {place}/run/report.json; "
        f"see {base}\n"
    )
    state = kept(place)
    flip(state)
    assert gate(place, state, base="held.json")[0] == 1
    assert (
        run(["check", str(place / "tiny.pt"), "--baseline", str(place / "free.json"), "--update-baseline"])
        == 0
    )
    assert (
        capsys.readouterr().out
        == f"done: baseline of 2 layers, no kernel is held; see {place / 'free.json'}\n"
    )


@pytest.mark.parametrize("name", ["run", "run/report.json"])
def test_a_report_is_never_written_over(place: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place / "run" / "report.json").read_bytes()
    model = str(place / "run" / "tiny.pt")
    assert run(["check", model, "--baseline", str(place / name), "--update-baseline"]) == 2
    assert "is a run's report, not a baseline file; name another with --baseline" in capsys.readouterr().err
    assert (place / "run" / "report.json").read_bytes() == before


@pytest.mark.parametrize(("damage", "rule"), [(put(torch.nan), NAN), (lose, LAYERS)])
def test_a_network_too_damaged_to_run_is_judged_by_its_weights(
    place: Path, damage: Callable[[State], None], rule: str
) -> None:
    state = kept(place)
    data = ["--arch", NET, "--data", f"npz:{place / 'images.npz'}"]
    whole = write_zip({"state_dict": kept(place)}, place / "whole.pt")
    assert (
        run(["check", str(whole), "--baseline", str(place / "acc.json"), "--update-baseline", *data, "-q"])
        == 0
    )
    damage(state)
    code, outcomes = gate(place, state, *data, base="acc.json")
    assert (code, outcomes[rule], outcomes["accuracy.drop_pp"]) == (1, "error", "skip")
    measures = json.loads((place / "verdict.json").read_text())["measures"]
    assert measures[0]["note"].startswith("it does not run: ")


def test_a_network_that_looks_right_and_does_not_run_cannot_be_checked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--arch", "zoo:resnet20", "--data", f"npz:{place / 'images.npz'}"]
    assert run(["check", str(place / "run" / "tiny.pt"), "--baseline", str(place / "run"), *data, "-q"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_network_inside_a_larger_one_is_found(place: Path) -> None:
    state = {f"detector.backbone.{name}": value for name, value in kept(place).items()}
    assert gate(place, state)[0] == 0
    state["detector.neck.weight"] = torch.ones(3, 3)
    assert gate(place, state)[1]["tensors.extra"] == "error"
    assert gate(place, state, "--allow-extra")[0] == 0
    state["detector.backbone.stem.weight"].view(torch.int32)[1, 1, 2, 2] ^= 1
    assert gate(place, state, "--allow-extra")[1][FROZEN] == "error"
