"""Everything `kernelsimp scan` writes and refuses, from the command line."""

import csv
import json
from pathlib import Path

import pytest
import torch
from builders import tiny_state, write_zip
from saying import command_refusal

from kernelsimp.cli.main import run


def scanned(model: Path, *options: str, folder: Path) -> dict:
    assert run(["scan", str(model), "--json", str(folder / "scan.json"), "-q", *options]) == 0
    return json.loads((folder / "scan.json").read_text())


def test_csv_has_one_row_a_kernel_in_order(model: Path, tmp_path: Path) -> None:
    assert run(["scan", str(model), "--csv", str(tmp_path / "k.csv"), "-q"]) == 0
    rows = list(csv.DictReader((tmp_path / "k.csv").read_text().splitlines()))
    assert list(rows[0]) == [
        "layer",
        "out",
        "in",
        "family",
        "residual",
        "p",
        "found",
        "beyond",
        "dead",
        "name",
    ]
    places = [(row["layer"], int(row["out"]), int(row["in"])) for row in rows]
    dense = [("stem", out, into) for out in range(4) for into in range(3)]
    assert places == dense + [("depthwise", out, 0) for out in range(4)]
    assert all(0 <= float(row["residual"]) <= 1 and 0 <= float(row["p"]) <= 1 for row in rows)
    assert all(row["name"] for row in rows)
    assert {row[key] for row in rows for key in ("found", "beyond", "dead")} <= {"0", "1"}


def test_the_json_has_what_lies_beyond_one_kernel(model: Path, tmp_path: Path) -> None:
    stem, depthwise = scanned(model, folder=tmp_path)["layers"]
    assert set(stem["bits_per_kernel"]) == {
        *("structure", "order-0", "distinct-values", "fp32", "uniform", "dct", "codebook")
    }
    assert stem["bits_per_kernel"]["fp32"] == 9 * 32
    assert stem["filters"]["count"] == 4
    assert stem["prototypes"]["count"] >= 1
    assert set(stem["orbits"]) == {"paired", "by_chance", "null", "orbits", "largest", "quadrature_pairs"}
    assert set(stem["quality"]) == {"near_zero_share", "variance_entropy", "orthogonality"}
    assert stem["colour"]["filters"] == 4
    assert depthwise["colour"] is None
    assert stem["sentence"].startswith("12 kernels: ")
    assert {"rank-one", "rank-two", "few-values-2", "few-values-5", "edge"} <= set(stem["families"])
    assert set(stem["families"]["rank-one"]["null"]) == {"permuted"}
    assert set(stem["families"]["few-values-3"]["null"]) == {"matched"}


def test_a_shallow_scan_leaves_out_what_is_expensive(model: Path, tmp_path: Path) -> None:
    stem = scanned(model, "--depth", "shallow", folder=tmp_path)["layers"][0]
    assert stem["prototypes"] is stem["orbits"] is stem["bits_per_kernel"] is None
    assert "rank-one" in stem["families"]
    assert "edge" not in stem["families"]


def test_layers_and_kinds_choose_what_is_scanned(model: Path, tmp_path: Path) -> None:
    def names(*options: str) -> list[str]:
        return [layer["name"] for layer in scanned(model, *options, folder=tmp_path)["layers"]]

    assert names("--layers", "d*") == ["depthwise"]
    assert names("--skip-layers", "depth*") == ["stem"]
    assert names("--kinds", "depthwise") == ["depthwise"]


def test_explain_draws_the_kernel_and_lists_its_candidates(tmp_path: Path, capsys) -> None:
    state = tiny_state()
    state["stem.weight"][1, 2] = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    model = write_zip({"state_dict": state}, tmp_path / "sobel.pt")
    assert run(["scan", str(model), "--explain", "stem[1,2]"]) == 0
    printed = capsys.readouterr().out
    assert "stem[1,2]: vertical Sobel" in printed
    assert "p = " in printed
    first = [line for line in printed.splitlines() if line.lstrip().startswith(("sobel-x", "odd-h"))]
    assert first
    drawn = [line for line in printed.splitlines() if line[:1] in "+-" and " " in line]
    assert [line[0] for line in drawn[:3]] == ["-", "-", "-"]
    assert [line[6] for line in drawn[:3]] == ["+", "+", "+"]


def test_an_explanation_as_json_has_every_candidate(model: Path, tmp_path: Path) -> None:
    place = ["--explain", "stem[0,1]", "--json", str(tmp_path / "e.json")]
    assert run(["scan", str(model), *place]) == 0
    told = json.loads((tmp_path / "e.json").read_text())
    assert (told["layer"], told["index"]) == ("stem", [0, 1])
    names = [item["name"] for item in told["candidates"]]
    assert {"mirror-h", "rank-one", "gabor", "few-values-5"} <= set(names)
    assert len(names) == len(set(names))
    torch.testing.assert_close(torch.tensor(told["cells"]), tiny_state()["stem.weight"][0, 1])


EXPLAIN = [
    ("stem", "--explain is 'stem'; expected LAYER[OUT,IN], such as conv1[0,2]"),
    ("stam[0,0]", "--explain: no layer 'stam'; did you mean 'stem'?"),
    ("stem[4,0]", "--explain: 'stem' has no kernel [4,0]; the last is [3,2]"),
    ("pointwise[0,0]", "--explain: kernels of 'pointwise' are 1x1; choose a layer with larger ones"),
]


@pytest.mark.parametrize(("place", "words"), EXPLAIN)
def test_a_kernel_that_is_not_there_is_one_line(model: Path, capsys, place: str, words: str) -> None:
    assert command_refusal(["scan", str(model), "--explain", place], capsys) == words


OPTIONS = [
    (["--layers", "x*"], "--layers: no layer matches 'x*'; known: depthwise, pointwise, stem"),
    (["--skip-layers", "stim"], "--skip-layers: no layer matches 'stim'; did you mean 'stem'?"),
    (["--kinds", "depthwize"], "--kinds: no kind 'depthwize'; did you mean 'depthwise'?"),
    (
        ["--kinds", "transposed"],
        "--layers, --skip-layers and --kinds leave no layer of 3 (kinds: dense, depthwise); widen them",
    ),
    (["--depth", "deap"], "--depth is 'deap'; did you mean 'deep'?"),
    (["--null", "pink"], "--null is 'pink'; known: matched, permuted, ring, white"),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_options_that_select_nothing_are_one_line(model: Path, capsys, options, words: str) -> None:
    assert command_refusal(["scan", str(model), *options], capsys) == words


def test_a_page_holds_pictures_and_sentences_and_needs_nothing_else(tmp_path: Path) -> None:
    state = tiny_state()
    state["stem.weight"][:2, :] = 1.0 + 0.001 * state["stem.weight"][:2, :]
    model = write_zip({"state_dict": state}, tmp_path / "tiny.pt")
    assert run(["scan", str(model), "--html", str(tmp_path / "p.html"), "-q"]) == 0
    page = (tmp_path / "p.html").read_text()
    assert "Kernels by family" in page
    assert "12 kernels: 6 constant" in page
    assert "data:image/png;base64," in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_folder_is_one_line_and_one_json_a_checkpoint(model: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "nets"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.pt").write_bytes(model.read_bytes())
    (folder / "deep" / "b.pth").write_bytes(model.read_bytes())
    (folder / "cut.pt").write_bytes(model.read_bytes()[:-200])
    (folder / "notes.txt").write_text("not a checkpoint")
    assert (
        run(["scan", str(folder), "--json", str(tmp_path / "out"), "--jobs", "2", "--depth", "shallow"]) == 0
    )
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("a.pt", "deep/b.pth", "Failed", "cut.pt"))
    assert "notes.txt" not in printed
    written = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.json")
    )
    assert written == ["a.pt.json", "deep/b.pth.json"]
    assert json.loads((tmp_path / "out" / "a.pt.json").read_text())["totals"]["kernels"] == 16


def test_bad_folders_are_one_line(model: Path, tmp_path: Path, capsys) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert command_refusal(["scan", str(empty)], capsys).startswith(
        f"{empty}: a directory without checkpoints; "
    )
    assert command_refusal(["scan", str(tmp_path), "--csv", "x.csv"], capsys) == (
        "--csv is for one checkpoint, not for a folder of them; name the file"
    )
    assert command_refusal(["scan", str(tmp_path), "--json", "-"], capsys) == (
        "--json -: a folder gives one JSON a checkpoint; name a folder for them"
    )
    assert (
        command_refusal(["scan", str(tmp_path), "--jobs", "0"], capsys) == "--jobs is 0; expected 1 or more"
    )
    (empty / "bad.onnx").write_bytes(b"")
    words = command_refusal(["scan", str(empty), "-q"], capsys)
    assert words == f"{empty}: none of 1 checkpoint could be scanned"


def test_an_unknown_published_network_is_one_line(capsys) -> None:
    assert command_refusal(["scan", "torchvision:resnet19"], capsys).startswith(
        "torchvision:resnet19: no such network"
    )


@pytest.mark.parametrize("name", ["none.onnx", "none.pt2"])
def test_empty_exports_are_one_line(tmp_path: Path, capsys, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert command_refusal(["scan", str(tmp_path / name)], capsys).endswith(
        "the file is empty; fetch it again"
    )


@pytest.mark.parametrize("size", ["2", "3", "1x5", "5"])
def test_families_templates_and_denoisers_are_drawn(capsys, size: str) -> None:
    assert run(["families", "--size", size]) == 0
    printed = capsys.readouterr().out
    assert all(head in printed for head in ("mirror-h", "template", "denoiser", "wiener"))
    assert ("gabor" in printed) == (size in ("3", "5"))


def test_one_of_a_kind_is_counted_in_the_singular(tmp_path, capsys):
    torch.manual_seed(0)
    torch.save(torch.nn.Conv2d(3, 8, 3).state_dict(), tmp_path / "one.pt")
    assert run(["scan", str(tmp_path / "one.pt")]) == 0
    said = capsys.readouterr().out
    assert "\n1 layer, 24 kernels" in said
    assert "\n1 tensor is no convolution" in said


@pytest.mark.parametrize(("channels", "null"), [((2, 2), "white"), ((2, 400), "matched*")])
def test_the_table_of_families_names_the_null_that_stood_in(channels, null, tmp_path, capsys) -> None:
    torch.manual_seed(0)
    state = {f"{place}.weight": torch.randn(4, width, 3, 3) for place, width in enumerate(channels)}
    torch.save({name: weight.sign() for name, weight in state.items()}, tmp_path / "few.pt")
    assert run(["scan", str(tmp_path / "few.pt")]) == 0
    said = capsys.readouterr()
    assert "matched null not estimated: 8 live kernels" in said.err
    (row,) = [line for line in said.out.splitlines() if line.startswith(" few-values-2 ")]
    assert row.rstrip().endswith(f"  {null}")
    assert ("\n* white in the layers whose" in said.out) == null.endswith("*")


def test_one_source_of_several_that_is_not_there_is_refused(model: Path, tmp_path: Path, capsys) -> None:
    words = command_refusal(["scan", str(model), str(tmp_path / "gone.pt")], capsys)
    assert words == f"{tmp_path / 'gone.pt'}: no such file; check the path"


def test_options_of_many_are_checked_for_one_too(model: Path, capsys) -> None:
    assert command_refusal(["scan", str(model), "--jobs", "0"], capsys) == "--jobs is 0; expected 1 or more"
