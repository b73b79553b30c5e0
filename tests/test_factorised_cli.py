"""`export --to factorised`: its files run elsewhere and put out what they must; bad input is one line."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from factorising import Measured, far, make_place, measured_as, net, real, record, words
from saying import command_refusal

from kernelsimp.cli.main import run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose depthwise layer is of rank one but for one channel, its code, and images."""
    return make_place(tmp_path_factory.mktemp("factorised"))


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Have every layer, and the network, measured to be so many times as fast."""
    return measured_as(monkeypatch)


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_all_three_forms_put_out_what_the_original_does(
    place: Path, tmp_path: Path, faster: Measured, layout: str
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    faster(2.0)
    out = tmp_path / "small.pt2"
    assert run([*words(place, out, *real(place), "--layout", layout), "-q"]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    endings = ("pt2", "onnx", "safetensors", "json", "md", "html", "py")
    assert names == {"times.json", *(f"small.{ending}" for ending in endings)}
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = net(place)(images)
        program = torch.export.load(out).module()(images)
        session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"))
        (onnx,) = session.run(None, {"images": images.numpy()})
    assert far(program, expected) < 1e-5
    assert not torch.export.load(out).example_inputs[0][0].any(), "a program must hold no image of the user"
    assert far(torch.from_numpy(onnx), expected) < 1e-5
    made = record(out)
    assert made["schema"] == "kernelsimp.factorised/1"
    deep = next(layer for layer in made["layers"] if layer["name"] == "deep")
    assert (deep["rank"], deep["channels"], deep["exact"]) == (1, 7, True)
    assert made["macs"][1] < made["macs"][0]
    assert made["parameters"][1] < made["parameters"][0]
    assert {item["file"] for item in made["outputs"]} == {"small.pt2", "small.onnx", "small.py"}
    before, after = made["accuracy"]["stages"]
    assert (before["stage"], after["stage"]) == ("before", "factorised")
    assert before["correct_bits"] == after["correct_bits"]
    assert before["ci95"][0] < before["top1"] < before["ci95"][1]
    assert [item["batch"] for item in made["latency"]] == [1, 32]
    assert "## Latency" in (tmp_path / "small.md").read_text()


def test_the_python_file_needs_nothing_of_ours(place: Path, tmp_path: Path, faster: Measured) -> None:
    faster(2.0)
    out = tmp_path / "small.pt2"
    assert run([*words(place, out, *real(place)), "-q"]) == 0
    images = torch.rand(3, 3, 12, 12)
    torch.save((images, net(place)(images)), tmp_path / "pair.pt")
    script = (
        "import sys; sys.modules['kernelsimp'] = None\n"
        "import torch, small\n"
        "images, expected = torch.load('pair.pt')\n"
        "assert (small.build()(images) - expected).norm() < 1e-5 * expected.norm()\n"
        "print(type(small.build().deep).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": "."}
    )
    assert done.stdout.strip() == "ByChannel", done.stderr


def test_a_layer_that_is_reused_is_replaced_everywhere(place: Path, tmp_path: Path, faster: Measured) -> None:
    faster(2.0)
    out = tmp_path / "twice.pt2"
    assert run([*words(place, out, *real(place), code="Reused"), "-q"]) == 0
    images = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        assert far(torch.export.load(out).module()(images), net(place, "Reused")(images)) < 1e-5
    deep = next(layer for layer in record(out)["layers"] if layer["name"] == "deep")
    assert deep["macs_before"] == 2 * 8 * 49 * 144


def test_without_images_it_runs_on_noise_and_says_so(place: Path, tmp_path: Path, faster: Measured) -> None:
    faster(2.0)
    out = tmp_path / "noise.pt2"
    assert run([*words(place, out, "--input-size", "12"), "-q"]) == 0
    assert {item["images"] for item in record(out)["outputs"]} == {"noise"}
    assert record(out)["accuracy"] is None


def test_what_cannot_be_traced_is_named_and_the_state_dict_is_written(
    place: Path, tmp_path: Path, faster: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    faster(2.0)
    out = tmp_path / "branch.pt2"
    assert run([*words(place, out, *real(place), code="Branching"), "-q"]) == 0
    told = capsys.readouterr().err
    assert "torch.export cannot trace the network" in told
    assert "x.sum().item() > 0" in told
    assert not out.exists()
    assert out.with_suffix(".safetensors").exists()
    assert (tmp_path / "branch.py").exists()


def test_layers_are_made_of_low_rank_within_a_share_of_the_multiplications(
    place: Path, tmp_path: Path, faster: Measured
) -> None:
    faster(1.1)
    out = tmp_path / "fitted.pt2"
    assert run([*words(place, out, *real(place), "--macs", "0.6"), "-q"]) == 0
    made = record(out)
    assert made["macs"][1] <= 0.6 * made["macs"][0]
    assert any(layer["rank"] and not layer["exact"] for layer in made["layers"])
    assert made["cost"] == "multiplications"
    assert {item["against"] for item in made["outputs"]} == {"the network with layers of low rank"}


def test_a_drop_in_accuracy_bounds_the_ranks(
    place: Path, tmp_path: Path, faster: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    faster(1.5)
    out = tmp_path / "drop.pt2"
    assert run(words(place, out, *real(place), "--max-drop", "100")) == 0
    assert "of what can be saved" in capsys.readouterr().err
    rich = [layer["rank"] for layer in record(out)["layers"]]
    assert all(rich)
    assert record(out)["cost"] == "seconds as measured"


def test_a_speed_that_is_not_reached_is_said(
    place: Path, tmp_path: Path, faster: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    faster(2.0)
    out = tmp_path / "speed.pt2"
    assert run([*words(place, out, *real(place), "--speedup", "900"), "-q"]) == 1
    assert "the budget is not met" in capsys.readouterr().out
    assert out.exists()


@pytest.mark.parametrize("more", [(), ("--max-drop", "1")])
def test_no_gain_writes_nothing(
    place: Path,
    tmp_path: Path,
    faster: Measured,
    more: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    faster(0.9)
    out = tmp_path / "none.pt2"
    assert run([*words(place, out, *real(place), *more), "-q"]) == 0
    said = capsys.readouterr().out
    assert "no layer was measured to be faster" in said
    assert "factorised: nothing written" in said
    assert {path.name for path in tmp_path.iterdir()} == {"times.json"}


def test_a_gain_of_layers_that_the_network_does_not_have_writes_nothing(
    place: Path, tmp_path: Path, faster: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    faster(2.0, network=1.0)
    out = tmp_path / "none.pt2"
    assert run([*words(place, out, *real(place)), "-q"]) == 0
    assert "no engine was measured to run the whole faster: nothing is written" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"times.json"}


def test_the_network_is_timed_in_the_engines_that_are_named(
    place: Path, tmp_path: Path, faster: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernelsimp.analysis.latency import network_latency
    from kernelsimp.analysis.timing import Effort

    faster(1.1)
    monkeypatch.setattr("kernelsimp.commands.factorised_forms.network_latency", network_latency)
    monkeypatch.setattr("kernelsimp.analysis.latency.EFFORT", Effort(3))
    out = tmp_path / "timed.pt2"
    engines = "eager,onnx" if find_spec("onnxruntime") else "eager"
    assert run([*words(place, out, *real(place), "--macs", "0.6", "--engines", engines), "-q"]) == 0
    timed = record(out)["latency"]
    assert [(item["engine"], item["batch"]) for item in timed] == [
        (engine, batch) for engine in engines.split(",") for batch in (1, 32)
    ]
    assert all(
        item["before"]["median"] > 0 and item["ratio"]["low"] <= item["ratio"]["high"] for item in timed
    )


@pytest.mark.parametrize(("family", "rank"), [("rank-one", 1), ("rank-two", 2)])
def test_kernels_tied_to_a_rank_while_they_train_are_exported_exactly(
    family: str, rank: int, place: Path, tmp_path: Path, faster: Measured
) -> None:
    """What `simplify` makes separable, and trains so, runs as two thinner layers with the same outputs."""
    faster(2.0)
    arch = ["--arch", f"{place / 'code.py'}:Net", *real(place)]
    made, out = tmp_path / "run", tmp_path / "tied.pt2"
    training = [
        "--tie",
        "--finetune",
        "--epochs",
        "3",
        "--batch-size",
        "32",
        "--lr",
        "0.03",
        "--distill",
        "1",
    ]
    budget = ["--families", family, "--simplified", "0.06", "--layers", "deep"]
    words = ["simplify", str(place / "net.pt"), *arch, *budget, *training, "--out", str(made), "-q"]
    assert run(words) == 0
    report = json.loads((made / "report.json").read_text())
    assert any(epoch["kept"] for epoch in report["training"])
    before, after = (
        torch.load(path)["deep.weight"].flatten(1) for path in (place / "net.pt", made / "net.pt")
    )
    moved = (after - before).norm(dim=1) / before.norm(dim=1)
    assert (moved > 1e-5).all(), "every kernel was trained"
    options = ["--out", str(out), "--times", str(tmp_path / "t.json"), "--engines", "eager"]
    assert run(["export", str(made), "--to", "factorised", *arch, *options, "-q"]) == 0
    deep = next(layer for layer in record(out)["layers"] if layer["name"] == "deep")
    assert (deep["rank"], deep["channels"], deep["exact"]) == (rank, 0, True)
    first, last = record(out)["accuracy"]["stages"]
    assert first["correct_bits"] == last["correct_bits"]


def test_outputs_that_differ_are_refused(
    place: Path,
    tmp_path: Path,
    faster: Measured,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    faster(2.0)
    monkeypatch.setattr(
        "kernelsimp.models.factorised.ranks_of", lambda kernels, groups: torch.ones(groups).long()
    )
    out = tmp_path / "wrong.pt2"
    told = command_refusal([*words(place, out, *real(place)), "-q"], capsys)
    assert "from the network's, expected 0.0001 at most; nothing is written" in told
    assert {path.name for path in tmp_path.iterdir()} == {"times.json"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--macs", "0.5", "--speedup", "2"], "choose one budget, not --speedup and --macs"),
        (["--macs", "1.5"], "--macs is 1.5; expected a number from 0 to 1"),
        (["--speedup", "0.5"], "--speedup is 0.5; expected a number from 1 to 1000"),
        (["--time-batch", "0"], "--time-batch is 0; expected 1 or more"),
        (["--engines", "tensorrt"], "--engines has 'tensorrt'; expected some of eager, compile, onnx"),
        (["--macs", "0.5"], "--macs needs images to fit layers to: pass --data"),
        (["--size", "5"], "--size is a budget of --to coded alone"),
    ],
)
def test_bad_input_is_one_line(
    place: Path, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = command_refusal([*words(place, tmp_path / "x.pt2", "--input-size", "12", *more), "-q"], capsys)
    assert said in told


def test_the_place_must_be_a_program(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = command_refusal([*words(place, tmp_path / "x.onnx"), "-q"], capsys)
    assert "--out is 'x.onnx'; expected a name that ends in .pt2" in told


def test_the_source_is_not_written_over(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    source = tmp_path / "net.safetensors"
    save_file(torch.load(place / "net.pt"), source)
    arch = ["--arch", f"{place / 'code.py'}:Net", "--out", str(tmp_path / "net.pt2")]
    told = command_refusal(["export", str(source), "--to", "factorised", *arch, "-q"], capsys)
    assert "is the file that is exported; name another with --out" in told


def test_the_table_of_times_takes_no_input_s_place(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(place / "net.pt")
    told = command_refusal(["export", source, "--to", "factorised", "--times", source, "-q"], capsys)
    assert told.startswith(f"--times {source} would overwrite the input")


def test_a_share_that_cannot_be_reached_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = command_refusal([*words(place, tmp_path / "x.pt2", *real(place), "--macs", "0.001"), "-q"], capsys)
    assert "--macs 0.001: thinner layers leave 0." in told
