"""`evaluate` and `simplify --robustness` from the command line: figures, faces, and bad input."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import reports
import torch
from builders import NET, npz, tiny_net, write_zip
from saying import command_refusal
from torch import nn

from kernelsimp.cli.main import run
from kernelsimp.data.images import Geometry
from kernelsimp.data.splits import Data, Split
from kernelsimp.data.stores import ArrayStore
from kernelsimp.data.transforms import Preprocess
from kernelsimp.evaluation.accuracy import wilson
from kernelsimp.evaluation.robustness import Bench, assess
from kernelsimp.records.serialise import to_plain
from kernelsimp.report.html import report_html
from kernelsimp.report.markdown import report_markdown
from kernelsimp.report.pictures.charts import Series, lines
from kernelsimp.report.store import json_schema
from kernelsimp.report.tables.robustness import robustness_charts, robustness_tables
from kernelsimp.settings import RobustnessSettings

COUNT = 40
FEW = ["--corruptions", "contrast,fog", "--noise-draws", "1", "--weight-noise", "0.1", "--pgd-steps", "2"]
FEW += ["--radii", "1", "--shifts", "1", "--robustness"]


@pytest.fixture
def images(tmp_path: Path) -> str:
    return npz(tmp_path / "images.npz", (8, 8, 3), COUNT)


def right_of(model: nn.Module, images: str) -> int:
    """Count the right answers without any of our own rooms."""
    arrays = np.load(images.removeprefix("npz:"))
    pixels = torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return int((model(pixels).argmax(1) == torch.from_numpy(arrays["test_labels"])).sum())


def evaluation(model: Path, images: str, *more: str) -> list[str]:
    return ["evaluate", str(model), "--arch", NET, "--data", images, *more]


def test_accuracy_as_json_is_the_networks_own(model, images, capsys):
    assert run(evaluation(model, images, "--json", "-")) == 0
    found = json.loads(capsys.readouterr().out)
    right = right_of(tiny_net(), images)
    assert found["schema"] == "kernelsimp.evaluate/1"
    assert (found["accuracy"]["correct"], found["accuracy"]["total"]) == (right, COUNT)
    assert found["accuracy"]["ci95"] == pytest.approx(wilson(right, COUNT))
    assert found["robustness"] is None
    assert found["top5"] is None  # five classes
    assert len(found["source"]["data_fingerprint"]) == 64
    jsonschema.Draft202012Validator(json_schema("kernelsimp.evaluate/1")).validate(found)


METRIC = """
import torch

def worst_class(model, batches):
    right = torch.cat([(model(images).argmax(1) == labels).float() for images, labels in batches])
    labels = torch.cat([labels for _, labels in batches])
    return min(float(right[labels == label].mean()) for label in labels.unique())

def nothing(model, batches):
    return None
"""


def test_a_metric_stands_in_place_of_accuracy(model, images, tmp_path, capsys):
    (tmp_path / "own.py").write_text(METRIC)
    spec = f"{tmp_path}/own.py:worst_class"
    target = tmp_path / "found.json"
    assert run(evaluation(model, images, "--metric", spec, "--json", str(target))) == 0
    found = json.loads(target.read_text())
    arrays = np.load(images.removeprefix("npz:"))
    pixels = torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        right = (tiny_net()(pixels).argmax(1) == torch.from_numpy(arrays["test_labels"])).numpy()
    expected = min(right[arrays["test_labels"] == label].mean() for label in range(5))
    assert found["accuracy"] is None
    assert found["metric"]["name"] == spec
    assert found["metric"]["stages"] == [{"stage": "network", "value": pytest.approx(expected)}]
    jsonschema.Draft202012Validator(json_schema("kernelsimp.evaluate/1")).validate(found)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("Metric")
    assert "top-1" not in printed


def test_a_metric_that_gives_no_number_is_one_line(model, images, tmp_path, capsys):
    (tmp_path / "own.py").write_text(METRIC)
    spec = f"{tmp_path}/own.py:nothing"
    words = f"--metric {spec}: returned a NoneType; expected a number"
    assert command_refusal(evaluation(model, images, "--metric", spec), capsys) == words
    words = "--metric is 'own'; expected file.py:callable"
    assert command_refusal(evaluation(model, images, "--metric", "own"), capsys) == words


def test_robustness_is_printed_and_written(model, images, tmp_path, capsys):
    target = tmp_path / "found.json"
    assert run(evaluation(model, images, *FEW, "--json", str(target))) == 0
    printed = capsys.readouterr().out
    for words in ("contrast", "mean accuracy, corrupted pictures", "FGSM within 1/255", "calibration error"):
        assert words in printed
    tried = json.loads(target.read_text())["robustness"]["models"]["network"]
    assert [row["corruption"] for row in tried["corruptions"]] == ["contrast", "fog"]
    means = [np.mean(row["top1"]) for row in tried["corruptions"]]
    assert tried["mean_corrupted_top1"] == pytest.approx(np.mean(means))
    assert tried["gap"]["gap_pp"] == pytest.approx(tried["gap"]["train_top1"] - tried["gap"]["test_top1"])
    assert len(tried["weight_noise"]) == 1


def test_quiet_prints_nothing(model, images, capsys):
    assert run(evaluation(model, images, "--quiet")) == 0
    assert capsys.readouterr() == ("", "")


def test_simplify_measures_before_and_after_on_the_same_pictures(model, images, tmp_path, capsys):
    out = tmp_path / "run"
    asked = ["simplify", str(model), "--arch", NET, "--data", images, "--tolerance", "0.9", *FEW]
    assert run([*asked, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Robustness simplified against original" in printed
    report = json.loads((out / "report.json").read_text())
    tried = report["robustness"]
    assert list(tried["models"]) == ["original", "simplified"]
    (change,) = tried["changes"]
    stages = {stage["stage"]: stage["top1"] for stage in report["accuracy"]["stages"]}
    assert change["clean"]["before"] == pytest.approx(stages["original"])
    assert change["clean"]["after"] == pytest.approx(stages["simplified"])
    assert len(change["cells"]) == 10
    assert all(0 <= cell["mcnemar_p"] <= 1 for cell in change["cells"])
    markdown, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    assert "## Robustness simplified against original" in markdown
    assert "mCE relative to the first" in markdown
    assert "mean accuracy by severity" in page
    assert 'id="robustness"' in page
    jsonschema.Draft202012Validator(json_schema("kernelsimp.report/1")).validate(report)
    again = (out / "report.md").read_text()
    assert run(["report", str(out)]) == 0
    assert (out / "report.md").read_text() == again
    assert "robustness = true" in (out / "settings.toml").read_text()


def test_a_corruption_folder_with_missing_files_is_refused_before_anything_is_written(
    model, images, tmp_path, capsys
):
    folder = tmp_path / "cifar10c"
    folder.mkdir()
    np.save(folder / "labels.npy", np.zeros(10, dtype=np.int64))
    more = ["--robustness", "--cifar-c", str(folder), "--corruptions", "fog,snow"]
    line = command_refusal(evaluation(model, images, *more), capsys)
    assert line == f"{folder}: fog.npy, snow.npy missing; expected a whole CIFAR-10-C folder"
    asked = ["simplify", str(model), "--arch", NET, "--data", images, "--out", str(tmp_path / "run"), *more]
    assert command_refusal(asked, capsys) == line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--corruptions", "fogg"], "unknown corruption 'fogg'; did you mean 'fog'?"),
        (["--noise-draws", "0"], "0 draws of weight noise; expected at least 1"),
        (["--shifts", "1.5"], "shifts 1.5; expected whole pixels from 1"),
        (["--radii", "0"], "attack of radius 0 and 10 steps; expected above 0"),
        (["--images", "-1"], "-1 images for robustness; expected 0 for all, or more"),
    ],
)
def test_what_robustness_refuses(model, images, more, words, capsys):
    assert command_refusal(evaluation(model, images, "--robustness", *more), capsys) == words


def test_evaluate_needs_images_and_a_classifier(model, images, tmp_path, capsys):
    needs = "evaluate needs a network and images: pass --arch and --data"
    assert command_refusal(["evaluate", str(model), "--data", images], capsys) == needs
    needs = "evaluate needs images: pass --data"
    assert command_refusal(["evaluate", str(model), "--arch", NET], capsys) == needs
    asked = ["simplify", str(model), "--tolerance", "0.9", "--robustness", "--out", str(tmp_path / "run")]
    needs = "--robustness needs a network and images: pass --arch and --data"
    assert command_refusal(asked, capsys) == needs
    maps = tmp_path / "maps.py"
    maps.write_text("from torch import nn\n\ndef maps():\n    return nn.Conv2d(3, 5, 3)\n")
    other = write_zip(nn.Conv2d(3, 5, 3).state_dict(), tmp_path / "maps.pt")
    line = command_refusal(["evaluate", str(other), "--arch", f"{maps}:maps", "--data", images], capsys)
    assert "(40, 5, 6, 6); expected (40, classes), one score a class and image" in line


# --- the tables and the chart


def figures(names: tuple[str, ...] = ("original", "finetuned")) -> dict[str, object]:
    """Robustness of untrained networks on noise, as JSON values."""
    generator = torch.Generator().manual_seed(1)
    store = ArrayStore(
        torch.randint(0, 256, (20, 3, 8, 8), generator=generator, dtype=torch.uint8), torch.arange(20) % 5
    )
    split = Split(store, range(20), Geometry())
    models = {name: tiny_net(seed) for seed, name in enumerate(names)}
    settings = RobustnessSettings(corruptions=("fog",), shifts=(1.0,), noise_draws=1, weight_noise=(0.1,))
    data = Data("x", split, split, split, 5)
    found: dict[str, object] = to_plain(assess(models, data, Bench(Preprocess()), settings))
    return found


def test_tables_say_what_the_figures_say():
    found = figures()
    summary, comparison, first, second, cells = robustness_tables(found)
    row = found["models"]["original"]["corruptions"][0]  # type: ignore[index]
    assert first.rows == (("fog", *(f"{value:.1f} %" for value in [*row["top1"], row["mean"]])),)
    assert (first.title, second.title) == ("Corruptions original", "Corruptions finetuned")
    change = found["changes"][0]  # type: ignore[index]
    assert comparison.rows[0][1] == f"{change['clean']['change_pp']:+.2f} pp"
    assert comparison.rows[3][1] == f"{change['mce']:.2f} %"
    assert len(cells.rows[0]) == 6
    assert cells.rows[0][1].startswith(f"{change['cells'][0]['change_pp']:+.1f} (")
    assert summary.heads[1:] == ("original", "finetuned")
    assert all(len(row) == 3 for row in summary.rows)


def test_one_network_has_no_comparison_and_foreign_figures_stay_readable():
    assert len(robustness_tables(figures(("network",)))) == 2
    (table,) = robustness_tables({"fog": {"3": 71.2}})
    assert table.rows == (("fog.3", "71.2"),)
    assert robustness_tables(None) == ()
    assert robustness_charts(None) == robustness_charts({"fog": 1}) == ()


def test_the_chart_names_each_line_and_escapes_it():
    drawn = str(lines("x", [Series("<a>", (90.0, 80.0)), Series("b", (91.0, 70.0))]))
    assert "&lt;a&gt; from 90.00 % to 80.00 %" in drawn
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 4 + 2


def test_pages_of_a_report_with_robustness():
    report = replace(reports.report(), robustness=figures())
    page = report_html(report)
    assert page.count("mean accuracy by severity, percent") == 2  # the title and its alt text
    assert "Change finetuned less original" in page
    assert "| fog |" in report_markdown(report)
