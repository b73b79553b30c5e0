"""`simplify` beyond its plainest use: saved plans, denoising, rounds that are stopped, odd images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import NET, SMALL, tiny_state, weights_in, write_zip
from saying import fails

from kernelsimp.cli.main import run
from kernelsimp.commands.round_files import RoundFiles

HALF = ["--dof", "0.5", "--cost", "absolute"]
PAIR = """
from torch import nn
class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)
    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).mean((2, 3)))
class Map(Pair):
    def forward(self, x):
        return self.two(self.one(x).relu())
"""


@pytest.fixture
def base(model: Path, images: str) -> list[str]:
    return ["simplify", str(model), "--data", images, *SMALL]


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())  # type: ignore[no-any-return]


def same(one: Path, two: Path) -> bool:
    first, second = weights_in(one), weights_in(two)
    return all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------- a plan that was saved


def test_what_a_saved_plan_leaves_free_is_denoised_and_that_plan_carries_it_out_again(
    base: list[str], tmp_path: Path
) -> None:
    plain, denoised, again = tmp_path / "plain", tmp_path / "denoised", tmp_path / "again"
    assert run([*base, *HALF, "--out", str(plain)]) == 0
    plan = ["--plan", str(plain / "plan.safetensors")]
    assert run([*base, *plan, "--denoise", "gaussian:0.2", "--controls", "--out", str(denoised)]) == 0
    assert run([*base, "--plan", str(denoised / "plan.safetensors"), "--out", str(again)]) == 0
    first, second = report(plain), report(denoised)
    assert first["kernels"]["denoised"] == 0
    assert second["kernels"]["denoised"] == first["kernels"]["free"] > 0
    assert second["dof"] == first["dof"]
    assert {arm["name"] for arm in second["controls"]} >= {"random subspaces", "cell masks"}
    assert not same(plain, denoised)
    assert same(denoised, again)
    assert [layer["measured_loss"] for layer in report(again)["layers"]] == [
        layer["measured_loss"] for layer in second["layers"]
    ]


def test_a_denoised_kernel_is_neither_found_nor_imposed(base: list[str], tmp_path: Path) -> None:
    assert run([*base, *HALF, "--denoise", "gaussian:0.2", "--out", str(tmp_path / "run")]) == 0
    row = next(
        line
        for line in (tmp_path / "run" / "report.md").read_text().splitlines()
        if line.startswith("| denoised-gaussian |")
    )
    count = report(tmp_path / "run")["kernels"]["denoised"]
    assert [cell.strip() for cell in row.split("|")[2:5]] == [str(count), "–", "–"]


def test_a_plan_without_images_is_denoised_by_weight(model: Path, base: list[str], tmp_path: Path) -> None:
    assert run([*base, *HALF, "--out", str(tmp_path / "plain")]) == 0
    plan = ["--plan", str(tmp_path / "plain" / "plan.safetensors"), "--denoise", "median"]
    assert run(["simplify", str(model), *plan, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert report(tmp_path / "run")["kernels"]["denoised"] > 0


def test_a_plan_of_another_network_is_refused_and_one_of_other_weights_says_so(
    base: list[str], model: Path, images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*base, *HALF, "--out", str(tmp_path / "run")]) == 0
    plan = ["--plan", str(tmp_path / "run" / "plan.safetensors")]
    (tmp_path / "pair.py").write_text(PAIR)
    names: dict[str, Any] = {}
    exec(PAIR, names)
    torch.save(names["Pair"]().state_dict(), tmp_path / "pair.pt")
    pair = ["simplify", str(tmp_path / "pair.pt"), "--arch", f"{tmp_path}/pair.py:Pair", "--data", images]
    capsys.readouterr()
    other = [*pair, *plan, "--out", str(tmp_path / "other"), "--quiet"]
    fails(other, capsys, "which this network does not have")
    moved = {name: 1.5 * item if item.is_floating_point() else item for name, item in tiny_state().items()}
    again = write_zip({"state_dict": moved}, tmp_path / "moved.pt")
    capsys.readouterr()
    assert run(["simplify", str(again), "--data", images, *SMALL, *plan, "--out", str(tmp_path / "r")]) == 0
    assert report(tmp_path / "r")["notes"][0].startswith("the plan was made for another checkpoint")


# ---------------------------------------------------------------- rounds


class StoppedError(Exception):
    """What stops a run in these tests."""


def test_rounds_that_are_stopped_go_on_with_resume_and_end_with_the_same_bits(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    most = ["--dof", "0.85", "--cost", "absolute"]
    rounds = [*base, *most, "--rounds", "3", "--denoise", "gaussian:0.2"]
    assert run([*rounds, "--out", str(whole)]) == 0
    write, counts = RoundFiles.write, []

    def stop_after_two(files: RoundFiles, results: Any, records: Any) -> None:
        write(files, results, records)
        counts.append(len(records))
        if len(records) == 2:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(RoundFiles, "write", stop_after_two)
        assert run([*rounds, "--out", str(cut)]) == 3
    counts.clear()
    monkeypatch.setattr(RoundFiles, "write", lambda *args: (write(*args), counts.append(len(args[2])))[0])
    assert run([*rounds, "--resume", "--out", str(cut)]) == 0
    assert counts == [3]
    assert same(whole, cut)
    first, second = report(whole), report(cut)
    assert first["rounds"] == second["rounds"]
    assert first["kernels"] == second["kernels"]
    assert first["kernels"]["denoised"] > 0
    assert [stage["stage"] for stage in second["accuracy"]["stages"]] == [
        "original",
        "round 1",
        "round 2",
        "round 3",
        "simplified",
    ]
    assert all(layer["measured_loss"] is not None for layer in second["layers"] if layer["simplified"])
    kept = next((cut / "resume").glob("rounds-*/round-1.safetensors"))
    kept.write_bytes(kept.read_bytes()[:50])
    assert run([*rounds, "--resume", "--out", str(cut)]) == 2


def test_options_of_training_are_not_passed_over_in_silence(
    base: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = [*base[:4], "--tolerance", "0.1", "--dry-run", "--arch", NET]
    for words, told in (
        (["--epochs", "3"], "--epochs"),
        (["--epochs", "3", "--lr", "1"], "--epochs and --lr"),
        (["--label-smoothing", "0.1"], "--label-smoothing"),
    ):
        assert run([*plan, *words]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert f"{told}: nothing is trained without --finetune" in said
    assert run([*plan, "--epochs", "3", "--finetune"]) == 0
    assert "nothing is trained" not in capsys.readouterr().err


def test_a_finished_run_is_not_replaced_by_resuming_another(
    base: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    again = [*base[:4], "--arch", NET, "--resume", "--out", str(out)]
    training = ["--finetune", *SMALL]
    assert run([*base, *HALF, *training, "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.glob("*.*") if path.name != "log.jsonl"}
    capsys.readouterr()
    start = f"{out} has a finished run "
    fails([*again, "--tolerance", "0.2", "--quiet"], capsys, f"{start}without --tolerance, which")
    fails([*again, "--dof", "0.6", "--cost", "absolute", "--quiet"], capsys, f"{start}with --dof 0.5, which")
    fails([*again, *HALF, "--quiet"], capsys, f"{start}with --finetune, which --resume does not replace")
    write_zip({"state_dict": {name: 2 * item for name, item in tiny_state().items()}}, model)
    fails([*again, *HALF, *training, "--quiet"], capsys, f"{start}of another checkpoint, which")
    assert before == {path: path.read_bytes() for path in before}
    write_zip({"state_dict": tiny_state()}, model)
    assert run([*again, *HALF, *training, "--similarity"]) == 0  # measured further, the same network
    assert report(out)["similarity"]


def test_controls_after_rounds_stand_beside_the_same_plan_without_rounds(
    base: list[str], tmp_path: Path
) -> None:
    assert run([*base, *HALF, "--rounds", "2", "--controls", "--out", str(tmp_path / "run")]) == 0
    made = report(tmp_path / "run")
    simplified = made["accuracy"]["stages"][-1]
    own, *others = made["controls"]
    assert own["name"] == "this plan without rounds"
    assert own["change_pp"] == pytest.approx(own["top1"] - simplified["top1"])
    assert all(arm["change_pp"] == pytest.approx(arm["top1"] - own["top1"]) for arm in others)


# ---------------------------------------------------------------- what cannot be, and what is doubtful


def test_memory_that_does_not_do_for_one_image_is_refused_before_anything_is_measured(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run([*base, *HALF, "--memory", "0.01", "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert "a backward pass of one image takes" in told
    assert "measuring" not in told
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--denoise-all", "--denoise", "median", "--controls"], "--denoise-all makes none; leave one out"),
        (["--denoise-all", "--denoise", "median", "--rounds", "2"], "--rounds goes to a budget"),
    ],
)
def test_contradictions_are_refused_in_one_line(
    more: list[str],
    words: str,
    base: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fails([*base, *more, "--out", str(tmp_path / "run")], capsys, words)


@pytest.mark.parametrize("option", ["--finetune", "--controls", "--robustness"])
def test_what_needs_classes_is_refused_for_a_network_without_before_any_work(
    option: str, images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pair.py").write_text(PAIR)
    names: dict[str, Any] = {}
    exec(PAIR, names)
    torch.save(names["Map"]().state_dict(), tmp_path / "map.pt")
    net = ["simplify", str(tmp_path / "map.pt"), "--arch", f"{tmp_path}/pair.py:Map", "--data", images]
    words = f"{option} is not there for a network that is no classifier"
    fails([*net, *HALF, option, "--out", str(tmp_path / "run"), "--quiet"], capsys, words)
    assert run([*net, *HALF, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert report(tmp_path / "run")["metric"]["name"] == "relative output error"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda count, draw: np.full((count, 8, 8, 3), 9), "all 40 calibration images are the same"),
        (
            lambda count, draw: np.broadcast_to(draw.integers(0, 255, (count, 1, 1, 3)), (count, 8, 8, 3)),
            "all 40 calibration images are of one colour each",
        ),
        (
            lambda count, draw: draw.integers(0, 255, (count, 8, 8, 3)),
            "too few training images (2): 40 validation images choose instead",
        ),
    ],
)
def test_images_that_tell_little_are_doubted_in_the_report(
    make: Any, said: str, model: Path, tmp_path: Path
) -> None:
    draw, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 2 if "(2)" in said else 40), ("val", 40), ("test", 20)):
        arrays[f"{split}_images"] = make(count, draw).astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 5
    np.savez(tmp_path / "odd.npz", **arrays)
    odd = ["simplify", str(model), "--data", f"npz:{tmp_path / 'odd.npz'}", *SMALL, *HALF]
    assert run([*odd, "--out", str(tmp_path / "run")]) == 0
    assert report(tmp_path / "run")["notes"][0].startswith(said)


MASKS = """
import torch
from torch.utils.data import TensorDataset

def masks(sizes={"train": 40, "val": 20, "test": 20}):
    draw = torch.Generator().manual_seed(0)
    return {
        word: TensorDataset(
            torch.rand(count, 3, 8, 8, generator=draw),
            torch.randint(0, 4, (count, 8, 8), generator=draw),
        )
        for word, count in sizes.items()
    }

def right(model, batches):
    pairs = [(model(images).argmax(1), truth) for images, truth in batches]
    return 100 * sum(int((a == b).sum()) for a, b in pairs) / sum(b.numel() for _, b in pairs)

def uneven():
    return {"test": [(torch.rand(3, 8, 8), torch.zeros(4, 4)), (torch.rand(3, 8, 8), torch.zeros(5, 4))]}
"""


@pytest.fixture
def segmenter(tmp_path: Path) -> list[str]:
    (tmp_path / "pair.py").write_text(PAIR + MASKS)
    names: dict[str, Any] = {}
    exec(PAIR, names)
    torch.manual_seed(0)
    torch.save(names["Map"]().state_dict(), tmp_path / "map.pt")
    return ["simplify", str(tmp_path / "map.pt"), "--arch", f"{tmp_path}/pair.py:Map", "--quiet"]


def test_a_segmentation_is_judged_by_a_metric_on_its_masks(segmenter: list[str], tmp_path: Path) -> None:
    where = f"{tmp_path}/pair.py"
    by = [*segmenter, "--data", f"{where}:masks", "--metric", f"{where}:right", "--cost", "absolute"]
    assert run([*by, "--max-drop", "2", "--out", str(tmp_path / "run")]) == 0
    made = report(tmp_path / "run")
    assert made["metric"]["name"].endswith("pair.py:right")
    assert 10 < made["metric"]["stages"][0]["value"] < 40  # a quarter by chance: the masks were read
    assert made["dof"]["fraction"] < 0.6


def test_masks_are_refused_where_classes_are_needed(
    segmenter: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, out = f"{tmp_path}/pair.py", ["--out", str(tmp_path / "run")]
    arguments = [*segmenter, "--data", f"{where}:uneven", *HALF, *out]
    fails(arguments, capsys, "targets of several shapes; expected one shape, or a class")
    torch.save(torch.load(tmp_path / "map.pt"), tmp_path / "pair.pt")
    pair = [segmenter[0], str(tmp_path / "pair.pt"), "--arch", f"{where}:Pair", "--data", f"{where}:masks"]
    words = "labels have shape (20, 8, 8); accuracy takes one class an image"
    fails([*pair, *HALF, *out, "--quiet"], capsys, words)
    metric = ["--metric", f"{where}:right", "--finetune"]
    assert run([*pair, *HALF, *metric, *out, "--quiet"]) == 2
