"""The front door: networks in memory or in files, results that show themselves, the sentences of the CLI."""

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_net, tiny_state, write_zip
from torch.utils.data import DataLoader, TensorDataset

import kernelsimp as ks
from kernelsimp import api
from kernelsimp.cli.main import run
from kernelsimp.data.in_memory import split_in_memory


def inputs(count: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def labelled(count: int = 64) -> TensorDataset:
    return TensorDataset(inputs(count), torch.arange(count) % 5)


def test_every_docstring_has_an_example_that_runs() -> None:
    functions = [item for item in vars(api).values() if getattr(item, "__module__", "") == api.__name__]
    functions = [item for item in functions if item.__name__ in ks.__all__]
    assert {function.__name__ for function in functions} >= {
        *("scan", "simplify", "finetune", "check", "compare", "families", "load_weights")
    }
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for function in functions:
        (found,) = finder.find(function, globs={})
        assert found.examples, function.__name__
        runner.run(found)
    assert runner.summarize().failed == 0


def test_names_are_there_before_anything_heavy_is_imported() -> None:
    code = "import sys, kernelsimp; print(dir(kernelsimp), 'torch' in sys.modules); kernelsimp.nn.constrain"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{sorted(ks.__all__)} False"
    with pytest.raises(AttributeError, match="no attribute 'scam'"):
        ks.scam  # noqa: B018


def test_the_functions_are_not_hidden_by_rooms_of_the_same_name() -> None:
    for name in ks.__all__:
        assert not (Path(ks.__path__[0]) / name).is_dir(), name


def test_a_scan_is_the_same_in_memory_and_from_a_file(tmp_path: Path) -> None:
    path = write_zip(tiny_state(), tmp_path / "m.pt")
    found = [ks.scan(model, seed=1, depth="shallow") for model in (tiny_net(), tiny_state(), str(path), path)]
    assert all(list(scan) == ["stem", "depthwise"] for scan in found)
    rows = [scan.kernels.to_dict() for scan in found]
    assert rows[1] == rows[2] == rows[3]
    assert rows[0]["residual"] == rows[1]["residual"]
    assert found[0].to_dict()["source"]["path"] == "TinyNet"


def test_a_scan_shows_itself_in_the_words_of_the_command(tmp_path: Path, capsys) -> None:
    path = write_zip(tiny_state(), tmp_path / "m.pt")
    assert run(["scan", str(path), "--tolerance", "0.5"]) == 0
    told = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    shown = " ".join(repr(ks.scan(path, tolerance=0.5)).split())
    assert all(line in shown for line in told if "─" not in line and len(line) < 60)
    page = ks.scan(tiny_net(), tolerance=0.5)._repr_html_()
    assert "<table>" in page
    assert "<img" in page
    assert "<script" not in page


def test_a_hostile_name_is_escaped_in_a_notebook() -> None:
    state = {"<b>x.weight": torch.randn(4, 4, 3, 3)}
    assert "<b>" not in ks.scan(state, tolerance=0.9, depth="shallow")._repr_html_()


def test_kernels_are_columns() -> None:
    scan = ks.scan(tiny_net(), tolerance=0.5, depth="shallow")
    kernels = scan["stem"].kernels
    columns = kernels.to_dict()
    assert len(kernels) == 12 == len(columns["residual"])
    assert {type(value) for value in columns["residual"]} == {float}
    assert columns["layer"] == ["stem"] * 12
    assert [(row["out"], row["in"]) for row in kernels][:4] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert len(scan.kernels) == 16
    with pytest.raises(ks.KernelsimpError, match=r"^no layer 'stam'; did you mean 'stem'"):
        scan["stam"]
    assert "stam" not in scan
    assert scan.get("stam") is None
    with pytest.raises(ks.KernelsimpError, match=r"^no family 'mirror-x'; did you mean"):
        ks.families(3)["mirror-x"]


def test_pandas_is_optional(monkeypatch) -> None:
    kernels = ks.scan(tiny_net(), depth="shallow").kernels
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        ks.KernelsimpError, match="pandas is not installed; pip install pandas, or use to_dict"
    ):
        kernels.to_pandas()

    class Frames:
        DataFrame = dict

    monkeypatch.setitem(sys.modules, "pandas", Frames)
    assert kernels.to_pandas() == kernels.to_dict()


def test_errors_are_the_same_sentences(tmp_path: Path, capsys) -> None:
    with pytest.raises(ks.KernelsimpError) as caught:
        ks.scan(tmp_path / "none.pt")
    assert run(["scan", str(tmp_path / "none.pt")]) == 2
    assert str(caught.value) in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(ks.KernelsimpError, match="unknown option 'tolerence'; did you mean 'tolerance'"):
        ks.scan(tiny_net(), tolerence=0.1)
    with pytest.raises(
        ks.KernelsimpError, match="the network is a int; expected a module, a state dict, a path"
    ):
        ks.scan(3)  # type: ignore[arg-type]
    with pytest.raises(ks.KernelsimpError, match="no convolution"):
        ks.scan(torch.nn.Linear(3, 3))


def test_a_check_of_a_module_and_of_a_file_agree(tmp_path: Path) -> None:
    path = write_zip(tiny_state(), tmp_path / "m.pt")
    assert run(["simplify", str(path), "--tolerance", "0.9", "--out", str(tmp_path / "run"), "-q"]) == 0
    weights = ks.load_weights(tmp_path / "run" / "m.pt")
    net = tiny_net()
    net.load_state_dict(weights)
    for model in (net, weights, tmp_path / "run" / "m.pt"):
        verdict = ks.check(model, tmp_path / "run")
        assert verdict
        assert verdict.findings == ()
        assert "check: passed" in repr(verdict)
    with torch.no_grad():
        net.stem.weight[0, 0, 0, 0] += 1
    verdict = ks.check(net, tmp_path / "run" / "report.json")
    assert not verdict
    assert {item.rule for item in verdict.findings} >= {"kernels.frozen_changed"}
    assert verdict.to_dict()["exit_code"] == 1


def test_compare_takes_modules_and_any_images() -> None:
    one, other = tiny_net(0), tiny_net(1)
    same = ks.compare(one, one, inputs())
    assert [layer.cka for layer in same.layers] == pytest.approx([1.0] * len(same.layers))
    for images in (inputs(), labelled(), DataLoader(labelled(), batch_size=7)):
        found = ks.compare(one, other, images, measures=("cka",))
        assert found.images == 64
        assert all(layer.cka < 1 for layer in found.layers if layer.cka is not None)
    assert "Comparison" in repr(found)
    with pytest.raises(ks.KernelsimpError, match="compare needs images"):
        ks.compare(one, other)


def test_families_are_those_of_the_command(capsys) -> None:
    assert run(["families", "--size", "5"]) == 0
    told = capsys.readouterr().out
    found = ks.families(5)
    assert len(found) == 26
    assert all(name in told for name in found)
    assert found["full-square"].subspace.dim == 6


def test_images_in_memory_are_inputs_as_they_are() -> None:
    whole = inputs(6) * 100
    for images in (whole, (whole, torch.arange(6)), TensorDataset(whole, torch.arange(6)), list(whole)):
        split = split_in_memory(images)
        taken, labels = split.fetch(range(6))
        assert torch.equal(taken, whole)
        assert labels.tolist() == ([0] * 6 if images is whole or isinstance(images, list) else list(range(6)))
    for bad, words in (
        (np.zeros(3), "have shape"),
        ("digits", "the images are a str"),
        (torch.zeros(0, 3, 8, 8), "there are no images"),
        (torch.zeros(4, 3), "the images have shape"),
        (iter([1]), "the images are a"),
    ):
        with pytest.raises(ks.KernelsimpError, match=words):
            split_in_memory(bad)
    with pytest.raises(ks.KernelsimpError, match="item 0 is a ndarray, expected a tensor"):
        split_in_memory([np.zeros((3, 8, 8))]).fetch([0])


def test_simplify_and_finetune_in_memory_write_nothing_and_change_no_argument(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    net, before = tiny_net(), tiny_state()
    result = ks.simplify(net, inputs(), dof=0.5, cost="absolute", test=labelled())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert result.report.dof.fraction <= 0.5
    assert [stage.stage for stage in result.report.accuracy.stages] == ["original", "simplified"]
    assert result.report.size.file > result.report.size.zip > 0
    assert isinstance(result.model, type(net))
    kept = {name: value.clone() for name, value in result.state_dict.items()}
    trained = ks.finetune(
        result, DataLoader(labelled(), batch_size=8), epochs=2, batch_size=16, test=labelled()
    )
    assert [stage.stage for stage in trained.report.accuracy.stages] == [
        "original",
        "simplified",
        "finetuned",
    ]
    assert len(trained.report.training) == 2
    assert all(torch.equal(value, kept[name]) for name, value in result.state_dict.items())
    assert trained.plan is result.plan
    verdict = ks.check(trained.model, trained)
    assert verdict.passed, verdict
    assert "Result" in repr(trained)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ks.KernelsimpError, match="fine-tuning takes labels"):
        ks.finetune(result, inputs())


def test_simplify_gives_the_same_in_memory_and_as_a_run(tmp_path: Path) -> None:
    path = write_zip({"state_dict": tiny_state()}, tmp_path / "m.pt")
    run_of = ks.simplify(path, tolerance=0.5, out=tmp_path / "run")
    found = ks.simplify(tiny_state(), tolerance=0.5)
    assert (run_of.out / "report.html").is_file()
    assert all(torch.equal(value, found.state_dict[name]) for name, value in run_of.state_dict.items())
    assert run_of.report.kernels == found.report.kernels
    written = torch.load(tmp_path / "run" / "m.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, found.state_dict[name]) for name, value in written.items())
    with pytest.raises(ks.KernelsimpError, match="out= takes a file for the model"):
        ks.simplify(tiny_net(), tolerance=0.5, out=tmp_path / "x")
    with pytest.raises(ks.KernelsimpError, match="running it needs the network"):
        ks.simplify(tiny_state(), inputs(), dof=0.5)


def test_images_without_labels_are_not_taken_for_labelled_ones() -> None:
    images = torch.randn(64, 3, 8, 8)
    with pytest.raises(ks.KernelsimpError, match="fine-tuning takes labels"):
        ks.simplify(tiny_net(), images, dof=0.5, finetune=True)
    for options in ({}, {"max_drop": 1.0}):
        with pytest.raises(ks.KernelsimpError, match="a budget of accuracy takes labels"):
            ks.simplify(tiny_net(), images, **options)
    with pytest.raises(ks.KernelsimpError, match="accuracy takes labels: pass test= as a pair"):
        ks.simplify(tiny_net(), images, dof=0.5, test=images)


def test_what_is_no_result_is_refused_in_one_line() -> None:
    with pytest.raises(ks.KernelsimpError, match="from what simplify returned, not from a TinyNet"):
        ks.finetune(tiny_net(), torch.randn(8, 3, 8, 8))
    with pytest.raises(ks.KernelsimpError, match="the baseline is a NoneType; expected a result"):
        ks.check(tiny_net(), None)
