"""`kernelsimp compare` and `simplify --similarity`, from the command line on tiny networks."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from builders import tiny_net, write_zip
from saying import command_refusal
from torch import Tensor, nn

from kernelsimp.analysis.activations import (
    ActivationSubject,
    LayerShape,
    PositionSampling,
    collect,
    shapes_of,
)
from kernelsimp.analysis.compare import match_layers
from kernelsimp.analysis.similarity import MEASURES
from kernelsimp.cli.main import run
from kernelsimp.errors import KernelsimpError
from kernelsimp.report.pictures.charts import Heat, heat_map
from kernelsimp.report.store import json_schema

NETS = """
import sys
sys.path.insert(0, {tests!r})
from torch import nn
from builders import TinyNet


def tiny():
    return TinyNet()


class Other(nn.Module):
    def __init__(self, classes=5, inputs=3):
        super().__init__()
        self.first = nn.Conv2d(inputs, 7, 3, stride=2)
        self.last = nn.Linear(7, classes)

    def forward(self, images):
        return self.last(self.first(images).relu_().mean((2, 3)))


def other():
    return Other()


def four():
    return Other(classes=4)


def grey():
    return Other(inputs=1)


class Dense(Other):
    def forward(self, images):
        return self.first(images)


def dense():
    return Dense()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with networks, checkpoints and images, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS.format(tests=str(Path(__file__).parent)))
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("val", 20), ("test", 60)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 5, count)
    np.savez(tmp_path / "data.npz", **arrays)
    for seed in (0, 1):
        write_zip(tiny_net(seed).state_dict(), tmp_path / f"{seed}.pt")
    return tmp_path


def weights_of(name: str, place: Path) -> str:
    from kernelsimp.models.architectures import build_model

    torch.manual_seed(3)
    write_zip(build_model(f"nets.py:{name}").state_dict(), place / f"{name}.pt")
    return f"{name}.pt"


BASE = ["--arch", "nets.py:tiny", "--data", "npz:data.npz"]


def compared(*arguments: str) -> dict[str, Any]:
    assert run(["compare", *arguments, *BASE, "--json", "c.json", "-q"]) == 0
    found = json.loads(Path("c.json").read_text())
    jsonschema.Draft202012Validator(json_schema("kernelsimp.compare/1")).validate(found)
    return dict(found)


def test_a_network_beside_itself_is_alike_everywhere(place: Path) -> None:
    found = compared("0.pt", "0.pt")
    assert [row["a"] for row in found["layers"]] == ["stem", "depthwise", "pointwise", "head"]
    assert [row["samples"] for row in found["layers"]] == ["positions"] * 3 + ["images"]
    assert found["predictions"] == {"agreement": 1.0, "kl": 0.0, "classes": 5}
    for row in found["layers"]:
        for name in (*MEASURES, "weight_error"):
            zero = name in ("procrustes", "angular", "relative_error", "weight_error")
            assert row[name] == pytest.approx(0 if zero else 1, abs=1e-8), (row["a"], name)
    assert found["images"] == 60
    assert found["notes"] == []


def test_figures_are_those_of_the_networks(place: Path) -> None:
    """The head has one position, so its figures follow from the outputs alone."""
    found = compared("0.pt", "1.pt", "--images", "0")
    images = torch.from_numpy(np.load("data.npz")["test_images"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        x, y = (tiny_net(seed)(images).double() for seed in (0, 1))
    head = found["layers"][-1]
    assert head["relative_error"] == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-5)
    agreement = float((x.argmax(1) == y.argmax(1)).double().mean())
    p, q = x.softmax(1), y.softmax(1)
    kl = float((p * (p / q).log()).sum(1).mean())
    assert found["predictions"] == {"agreement": agreement, "kl": pytest.approx(kl, rel=1e-4), "classes": 5}
    weights = [tiny_net(seed).stem.weight.detach() for seed in (0, 1)]
    error = float((weights[1] - weights[0]).norm() / weights[0].norm())
    assert found["layers"][0]["weight_error"] == pytest.approx(error, rel=1e-6)


def test_flat_samples_are_images(place: Path) -> None:
    found = compared("0.pt", "1.pt", "--by", "flat")
    stem = found["layers"][0]
    assert (stem["n"], stem["samples"], stem["columns"]) == (60, "images", [256, 256])
    assert stem["cca"] is None
    assert stem["cka"] is not None
    assert found["notes"] == [
        "cca and pwcca are null in 3 of 4 layers (60 samples for 384 + 384 columns at pointwise); "
        "take more --images or --samples, or --force"
    ]


def test_force_computes_and_warns(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared("0.pt", "1.pt", "--by", "flat", "--force")
    assert all(row["cca"] is not None for row in found["layers"])
    assert "cca and pwcca stand on too few samples in 3 layers" in found["notes"][0]
    assert "warning: cca and pwcca stand on too few samples" in capsys.readouterr().err


def test_a_constant_layer_is_null_and_named(place: Path) -> None:
    state = tiny_net(1).state_dict()
    state["depthwise.weight"].zero_()
    write_zip(state, place / "dead.pt")
    found = compared("0.pt", "dead.pt")
    row = found["layers"][1]
    assert (row["cka"], row["cca"], row["nbs"]) == (None, None, None)
    assert row["relative_error"] is not None
    assert "depthwise, pointwise, head of B is constant: its measures are null" in found["notes"]


def test_another_architecture_is_matched_by_depth(place: Path) -> None:
    found = compared("0.pt", weights_of("other", place), "--arch-b", "nets.py:other", "--matrix")
    pairs = [(row["a"], row["b"]) for row in found["layers"]]
    assert pairs == [("stem", "first"), ("depthwise", "first"), ("pointwise", "last"), ("head", "last")]
    first, last = found["layers"][0], found["layers"][-1]
    assert (first["n"], first["samples"], first["relative_error"]) == (60, "images", None)
    assert first["weight_error"] is None
    assert last["relative_error"] is not None  # both have five outputs
    matrix = found["matrix"]
    assert matrix["samples"] == "images"
    assert (matrix["rows"], matrix["columns"]) == (
        ["stem", "depthwise", "pointwise", "head"],
        ["first", "last"],
    )
    assert set(matrix["values"]) == {name for name in MEASURES if not MEASURES[name].aligned}
    for name, values in matrix["values"].items():
        for row in found["layers"]:
            cell = values[matrix["rows"].index(row["a"])][matrix["columns"].index(row["b"])]
            assert cell == row[name], name


def test_layers_are_chosen_by_glob(place: Path) -> None:
    found = compared("0.pt", "1.pt", "--layers", "*wise", "--measures", "nbs,cka", "--matrix")
    assert [row["a"] for row in found["layers"]] == ["depthwise", "pointwise"]
    assert found["matrix"]["columns"] == ["depthwise", "pointwise"]
    assert found["matrix"]["samples"] == "positions"
    assert set(found["matrix"]["values"]) == {"nbs", "cka"}
    assert found["layers"][0]["cca"] is None


def test_outputs_that_are_no_scores_leave_answers_null(place: Path) -> None:
    for name in ("dense", "four"):
        found = compared("0.pt", weights_of(name, place), "--arch-b", f"nets.py:{name}")
        assert found["predictions"] == {"agreement": None, "kl": None, "classes": None}
        note = "agreement and KL are null: they need finite scores (images, classes) of as many classes"
        assert note in found["notes"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layers", "stm"], "--layers: no layer matches 'stm'; did you mean 'stem'?"),
        (["--by", "flatt"], "--by is 'flatt'; did you mean 'flat'?"),
        (["--match", "nam"], "--match is 'nam'; did you mean 'name'?"),
        (["--measures", "ckaa"], "--measures: no measure 'ckaa'; did you mean 'cka'?"),
        (["--images", "3"], "3 images to compare on; expected at least 4: see --images"),
        (["--samples", "0"], "--samples is 0; expected at least 1"),
        (
            ["--by", "flat", "--measures", "cca", "--layers", "stem"],
            "cca: 60 samples for 256 + 256 columns at stem; expected more samples than columns: "
            "take more --images or --samples, or pass --force",
        ),
    ],
)
def test_bad_options_get_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert command_refusal(["compare", "0.pt", "1.pt", *BASE, *options, "-q"], capsys) == words


def test_networks_without_common_images_get_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = command_refusal(
        ["compare", "0.pt", weights_of("grey", place), *BASE, "--arch-b", "nets.py:grey", "-q"], capsys
    )
    assert said.startswith("B: the network cannot take images 3 x 8 x 8: ")
    assert said.endswith("both networks must take the same images; see --input-size, --crop and --channels")


def test_what_is_missing_is_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = command_refusal(["compare", "0.pt", "1.pt", "--arch", "nets.py:tiny", "-q"], capsys)
    assert said == "compare needs images that both networks are given: pass --data"
    said = command_refusal(["compare", "0.pt", "1.pt", "--data", "npz:data.npz", "-q"], capsys)
    assert said == "compare runs both networks: pass --arch, and --arch-b where B has another"


def test_no_common_name_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = weights_of("other", place)
    said = command_refusal(
        ["compare", "0.pt", other, *BASE, "--arch-b", "nets.py:other", "--match", "name", "-q"], capsys
    )
    assert said == (
        "no layer of A has the name of a layer of B (A has stem, depthwise, pointwise, head; "
        "B has first, last); pass --match depth"
    )


def test_the_terminal_and_the_page(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "0.pt", "1.pt", *BASE, "--html", "c.html", "--matrix"]) == 0
    out = capsys.readouterr().out
    assert "depthwise" in out
    assert "channels: a sample is a position" in out
    page = Path("c.html").read_text()
    assert page.count('<svg class="chart map"') == 7
    assert page.count('<svg class="cells"') == 7
    assert "<title>stem: " in page
    assert "<title>stem, head: " in page
    assert "<h1>0.pt and 1.pt</h1>" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "style=" not in page  # the page's policy would not let it be seen


def test_simplify_says_how_alike_the_layers_stayed(place: Path) -> None:
    options = ["--tolerance", "0.9", "--similarity", "--out", "run", "-q", "--layers", "stem"]
    assert run(["simplify", "0.pt", *BASE, *options]) == 0
    report = json.loads(Path("run/report.json").read_text())
    jsonschema.Draft202012Validator(json_schema("kernelsimp.report/1")).validate(report)
    stage = report["similarity"]["stages"]["simplified"]
    assert [row["a"] for row in stage["layers"]] == ["stem", "depthwise", "pointwise", "head"]
    assert 0 < stage["layers"][0]["relative_error"] < 1
    assert 0 < stage["layers"][0]["cka"] < 1
    assert (
        "| layer | CKA, simplified | PWCCA, simplified | NBS, simplified" in Path("run/report.md").read_text()
    )
    assert "relative error, simplified" in Path("run/report.html").read_text()


def test_similarity_without_images_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simplify", "0.pt", "--similarity", "--out", "run", "-q"]) == 2
    assert "--similarity needs a network and images: pass --arch and --data" in capsys.readouterr().err


# --- parts


def shapes(*names: str) -> list[LayerShape]:
    return [LayerShape(name, 4, (2, 2)) for name in names]


def test_matching_goes_by_name_where_one_network_has_all_the_names() -> None:
    a, b = shapes("x", "y"), shapes("y", "z", "x")
    assert [(one.name, two.name) for one, two in match_layers(a, b, "auto")] == [("x", "x"), ("y", "y")]
    assert [(one.name, two.name) for one, two in match_layers(b, a, "depth")] == [
        ("y", "x"),
        ("z", "x"),
        ("x", "y"),
    ]


def test_positions_are_different_seeded_and_of_the_grid_alone() -> None:
    sampling = PositionSampling("channels", 50, 500, 0)
    one, two = sampling.places(LayerShape("a", 3, (5, 7))), sampling.places(LayerShape("b", 9, (5, 7)))
    assert one.shape == (50, 10)
    assert torch.equal(one, two)
    assert all(len(set(row)) == 10 and 0 <= min(row) <= max(row) < 35 for row in one.tolist())
    assert not torch.equal(one, PositionSampling("channels", 50, 500, 1).places(LayerShape("a", 3, (5, 7))))
    whole = sampling.places(LayerShape("c", 3, (2, 3)))
    assert whole.tolist() == [list(range(6))] * 50


class InPlace(nn.Module):
    """Works in place on what its convolution gives, and calls it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.conv.weight.data.fill_(1.0)

    def forward(self, images: Tensor) -> Tensor:
        first = self.conv(images)
        first.mul_(0)
        self.conv(images + 100)
        return first.flatten(1)


@pytest.mark.parametrize("by", ["channels", "flat"])
def test_activations_are_those_of_the_first_call_before_anything_works_in_place(by: str) -> None:
    images = torch.arange(24.0).reshape(6, 1, 2, 2)
    subject = ActivationSubject(InPlace().eval(), "A")
    found = shapes_of(subject, images)
    assert found == (LayerShape("conv", 2, (2, 2)),)
    outputs: list[object] = []
    taken = collect(subject, found, [images[:4], images[4:]], PositionSampling(by, 6, 24, 0), outputs.append)[
        "conv"
    ]
    if by == "flat":
        assert taken.rows.tolist() == [[float(4 * i + j // 2) for j in range(8)] for i in range(6)]
    else:  # each image's first position first
        expected = [float(4 * i + k) for k in range(4) for i in range(6)]
        assert taken.rows.tolist() == [[number, number] for number in expected]
        assert taken.means is not None
        assert taken.means[:, 0].tolist() == [4 * i + 1.5 for i in range(6)]
    assert len(outputs) == 2


def test_a_network_of_no_layer_is_refused() -> None:
    with pytest.raises(KernelsimpError, match="A: no convolution or linear layer ran; nothing to compare"):
        shapes_of(ActivationSubject(nn.Flatten(), "A"), torch.zeros(2, 1, 2, 2))


def test_a_heat_map_leaves_out_what_is_missing_and_escapes_names() -> None:
    drawn = heat_map(Heat("t", ("<a>", "b"), ("x", "y"), ((0.5, None), (1.2, -0.1))))
    assert drawn.count("<rect") == 3
    assert "&lt;a&gt;, x: 0.5" in drawn
    assert re.findall(r'fill-opacity="([^"]+)"', drawn) == ["0.500", "1.000", "0.000"]


def test_a_real_network_beside_itself(shared_data: Path, tmp_path: Path) -> None:
    model = str(shared_data / "checkpoints" / "resnet20-12fca82f.th")
    data = f"npz:{shared_data / 'cifar10-exact.npz'}"
    options = [
        "--arch",
        "zoo:resnet20",
        "--data",
        data,
        "--images",
        "200",
        "--json",
        str(tmp_path / "c.json"),
    ]
    assert run(["compare", model, model, *options, "-q"]) == 0
    found = json.loads((tmp_path / "c.json").read_text())
    assert len(found["layers"]) == 20
    for row in found["layers"]:
        assert [row[name] for name in ("cka", "pwcca", "nbs")] == pytest.approx([1, 1, 1], abs=1e-8)
