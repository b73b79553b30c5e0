"""`scripts/study`: a cheap cell of the smallest network becomes a page, and what its figures stand on."""

import doctest
import json
import math
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from kernelsimp.analysis.examine import examine
from kernelsimp.commands.demo import NETWORK
from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.models.layers import bank_from_model
from kernelsimp.records.plan import LayerPlan
from scripts import script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return script("study")  # puts its parts where they can be imported


def run(study: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["study", *map(str, words)])
    assert study.main() == 0


def test_a_cell_is_measured_once_and_makes_a_page(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from study_parts.page import verdict

    results, text = tmp_path / "study.jsonl", tmp_path / "study.md"
    where = ("--results", results, "--write", text)
    run(study, monkeypatch, "digits", "--cells", "together", "--draws", 1, *where)
    cell = json.loads(results.read_text())
    (row,) = cell["rows"]
    (gap,) = row["gaps"]
    means = row["means"]
    assert all(value > 0 for value in means.values())
    assert gap["mean"] == pytest.approx(means["all together"] - means["each alone, summed"])
    assert gap["freedom"] == pytest.approx(row["units"] - 1)  # one draw: images alone
    page = text.read_text()
    word = verdict(gap, 0.05)
    assert f"layers cost more together: **{word}** on digits." in page.split("\n## ")[0]
    assert f"{gap['mean']:+.2g}" in page.split("\n## ")[1]
    assert "(images/study/verdicts.svg)" in page
    assert len(marks(tmp_path / "images" / "study" / "verdicts.svg")) == 1
    assert "there are 1 comparisons" in " ".join(page.split())
    capsys.readouterr()
    before = results.read_bytes()
    run(study, monkeypatch, "digits", "--cells", "together", *where)
    assert results.read_bytes() == before
    assert "together" not in capsys.readouterr().out


def marks(path: Path) -> list[Any]:
    return ElementTree.parse(path).findall("{http://www.w3.org/2000/svg}circle")


def test_the_page_opens_with_ten_lines_on_all_claims(study: ModuleType) -> None:
    from study_parts.claims import CLAIMS
    from study_parts.page import OPENING

    assert len(OPENING) == 10
    assert sorted(claim for claims in OPENING.values() for claim in claims) == sorted(CLAIMS)


def test_a_network_of_which_both_is_true_has_both_verdicts(study: ModuleType) -> None:
    from study_parts.page import told

    def cell(network: str, *means: float) -> Any:
        gaps = [{"mean": mean, "error": 1.0, "freedom": 1e9} for mean in means]
        return {"network": network, "rows": [{"measure": "m", "gaps": [gap]} for gap in gaps]}

    said = told([cell("a", 9.0, -9.0, 0.1), cell("b", 0.1, 0.1), cell("c", 9.0)], 0.05)
    assert said == "**holds** on a (1 of 3), c; **does not hold** on a (1 of 3); **cannot be told** on b"


def test_figures_show_every_network_that_was_kept(study: ModuleType, tmp_path: Path) -> None:
    from study_parts.page import write_page

    kept = list(study.kept(ROOT / "docs" / "study.jsonl").values())
    write_page(kept, study.COMMAND, tmp_path / "study.md")
    networks = sum(
        len(cell["rows"][0]["networks"]) for cell in kept if cell["claim"] == "prediction"
    )  # and a mark a name in the legend
    names = len([cell for cell in kept if cell["claim"] == "prediction"])
    assert len(marks(tmp_path / "images" / "study" / "prediction.svg")) == networks + names
    written = [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert [path.name for path in written] == [
        "growth.svg",
        "prediction.svg",
        "repair.svg",
        "verdicts.svg",
        "study.md",
    ]
    for path in written:  # what is committed is what the results give
        assert (tmp_path / path).read_text() == (ROOT / "docs" / path).read_text()


def test_sizes_are_compared_at_one_divergence(study: ModuleType) -> None:
    from study_parts.information import PRICE, Coded, coded_at

    class Fake:
        prices: ClassVar[list[float]] = []

        def coded(self, price: float) -> Coded:
            self.prices.append(price)
            return Coded((1e-6 / price, 1.0), 3e3 * price)  # size times KL is constant

    for level in (0.09, 1e-5):
        found = coded_at(level, Fake())  # type: ignore[arg-type]
        assert found.sizes == (pytest.approx(3e-3 / level), pytest.approx(1.0))
        assert found.divergence == level
    assert min(Fake.prices) < PRICE < max(Fake.prices)


def test_an_attack_begins_where_all_arms_are_right(study: ModuleType) -> None:
    from study_parts.ground import Study, with_tensors
    from study_parts.robustness import ATTACKED, BLOCK, measured

    ground = Study("digits", None)
    weights = dict(ground.model.state_dict())
    last = list(weights)[-2]
    broken = with_tensors(ground.model, {**weights, last: weights[last].flip(0)})  # mirrored classes
    clean = "wrong on clean images, %"
    for other, attacked in ((ground.model, True), (broken, False)):
        found = measured(ground.bench, {"original": ground.model, "other": other}, 0)
        right = (found[clean]["original"] + found[clean]["other"] == 0).sum()
        assert (right >= BLOCK) == attacked
        assert (ATTACKED in found) == attacked
    assert len(measured(ground.bench, {"original": ground.model}, 0)[ATTACKED]["original"]) == right_blocks(
        found[clean]["original"]
    )


def right_blocks(wrong: Any) -> int:
    from study_parts.robustness import BLOCK

    return int((wrong == 0).sum()) // BLOCK


def test_one_layer_alone_leaves_the_others_as_they_were(study: ModuleType) -> None:
    from study_parts.ground import Study
    from study_parts.repair import only, projected_network

    ground = Study("digits", None)
    plan = ground.solution(0, 0.5).plan
    name = plan.layers[-1].name
    alone = projected_network(ground, only(plan, {name})).state_dict()
    moved = {key for key, value in ground.model.state_dict().items() if not torch.equal(value, alone[key])}
    assert moved == {f"{name}.weight"}


def test_both_draws_and_units_widen_an_interval(study: ModuleType) -> None:
    from study_parts.statistics import gap_of

    places = [np.arange(4)] * 3
    level = np.array([1.0, 2.0, 3.0])
    of_draws = gap_of([np.full(4, value) for value in level], places)
    assert (of_draws.mean, of_draws.freedom) == (2.0, pytest.approx(2.0))
    assert of_draws.error == pytest.approx(level.std(ddof=1) / math.sqrt(3))
    spread = np.array([-3.0, -1.0, 1.0, 3.0])
    of_both = gap_of([spread + value for value in level], places)
    assert of_both.error**2 == pytest.approx(of_draws.error**2 + spread.var(ddof=1) / 4)
    assert 2 < of_both.freedom < 5
    moved = gap_of([spread + value for value in level], [np.arange(4) + 4 * at for at in range(3)])
    assert moved.error < of_both.error  # twelve images tell more than four that come thrice


def test_one_figure_alone_tells_nothing(study: ModuleType) -> None:
    from study_parts.page import verdict
    from study_parts.statistics import gap_of

    alone = gap_of([np.ones(1)], [np.zeros(1, dtype=int)])
    assert alone.interval() == (-math.inf, math.inf)
    assert verdict(vars(alone), 0.05) == "cannot be told"
    same = gap_of([np.zeros(5)] * 2, [np.arange(5)] * 2)
    assert same.interval() == (0.0, 0.0)


def test_many_comparisons_take_a_verdict_back(study: ModuleType) -> None:
    from study_parts.page import verdict

    gap = {"mean": 1.0, "error": 0.4, "freedom": 100.0}
    assert verdict(gap, 0.05) == "holds"
    assert verdict({**gap, "mean": -1.0}, 0.05) == "does not hold"
    assert verdict(gap, 0.05 / 40) == "cannot be told"


def test_the_more_hold_the_less_each_is_corrected(study: ModuleType) -> None:
    from study_parts.page import level_of

    def cells(*means: float) -> list[Any]:
        gaps = [{"mean": mean, "error": 1.0, "freedom": 1e9} for mean in means]
        return [{"rows": [{"gaps": gaps}]}]

    assert level_of(cells(9.0, 0.1, 0.2, 0.3)) == pytest.approx(0.05 / 4)
    assert level_of(cells(9.0, 9.0, 9.0, 0.3)) == pytest.approx(0.15 / 4)
    assert level_of(cells(0.1, 0.2)) == pytest.approx(0.05 / 2)


def test_a_found_kernel_is_paired_with_what_is_alike_in_error_and_importance(study: ModuleType) -> None:
    from study_parts.intent import Kernels, couples_of

    def layer(found: list[bool], error: list[float], minded: list[float]) -> Any:
        flat = torch.ones(len(found), 3, 3)
        arrays = (np.array(error), np.array(minded), np.array(found))
        return Kernels(flat, flat, np.full(len(found), 4), *arrays)

    one = layer([True, False, False], [1.0, 2.0, 1.0], [1.0, 1.0, 9.0])
    assert couples_of([one], 0) == []  # the first is wrong by too much, the second minded by too much
    other = layer([False, True], [1.05, 1.0], [1.1, 1.0])
    assert len(couples_of([one, other], 0)) == 1  # used once, though two would have it
    assert couples_of([one, other], 0)[0][1] == (1, 0)


def test_the_examples_in_the_parts_are_true(study: ModuleType) -> None:
    import study_parts.drawings
    import study_parts.foresight
    import study_parts.ground as ground
    import study_parts.information
    import study_parts.page
    import study_parts.readable
    import study_parts.statistics as statistics

    parts = (study_parts.foresight, study_parts.information, study_parts.page, study_parts.readable)
    for module in (*parts, study_parts.drawings, ground, statistics):
        found = doctest.testmod(module)
        assert found.attempted
        assert not found.failed


def test_a_network_of_ones_own_is_measured_alike(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, own = tmp_path / "known.jsonl", tmp_path / "own.jsonl"
    cell = ("--cells", "together", "--draws", 1)
    run(study, monkeypatch, "digits", *cell, "--results", known)
    weights = tmp_path / "mine.safetensors"
    shutil.copy(files("kernelsimp.models") / "weights" / NETWORK, weights)
    config = tmp_path / "settings.toml"
    config.write_text("[data]\nmean = [0.3]\nstd = [0.37]\n")
    where = ("--checkpoint", weights, "--arch", "zoo:digits-depthwise", "--data", "digits")
    run(study, monkeypatch, "mine", *where, "--config", config, *cell, "--results", own)
    first, second = (json.loads(path.read_text()) for path in (known, own))
    assert (first["network"], second["network"]) == ("digits", "mine")
    assert first["rows"] == second["rows"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("resnet21",), "no network resnet21"),
        (("resnet20", "--cells", "growth"), "--cells growth cannot be measured on resnet20"),
        (("digits", "--checkpoint", "a.pt"), "one that is not known yet"),
        (("another", "--checkpoint", "a.pt"), "--checkpoint needs --arch and --data"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    study: ModuleType,
    words: tuple[str, ...],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["study", *words])
    with pytest.raises(SystemExit) as stopped:
        study.main()
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def planted_networks() -> list[Any]:
    """Return cells of 24 networks of 4 architectures whose KL follows the first figure, and no other."""
    from study_parts.prediction import ACCURACY, FIGURES, KL, LOST

    dice = np.random.default_rng(0)
    cells = []
    for kind in "abcd":
        networks = {}
        for seed in range(6):
            figures = {name: float(value) for name, value in zip(FIGURES, dice.random(9), strict=True)}
            known = next(iter(figures.values()))
            networks[f"usual, seed {seed}"] = {**figures, ACCURACY: 90.0, KL: 3 * known**2, LOST: known}
        row = {"measure": "figures", "units": 6, "gaps": [], "networks": networks}
        cells.append({"claim": "prediction", "network": kind, "draws": 6, "rows": [row], "seconds": 1.0})
    return cells


def test_what_predicts_is_told_from_what_does_not(study: ModuleType, tmp_path: Path) -> None:
    from study_parts.page import pooled, verdict, write_page

    (cell,) = pooled(planted_networks())
    assert cell["network"] == "24 networks of 4 architectures"
    assert cell["seconds"] == 4.0
    ranks, missed = cell["rows"][0], cell["rows"][-1]
    first, *others = ranks["gaps"]
    assert first["mean"] == pytest.approx(1.0)
    assert all(abs(gap["mean"]) < 0.7 for gap in others)
    assert missed["means"][first["better"]] == pytest.approx(0.0, abs=1e-9)
    assert verdict(missed["gaps"][0], 0.05) == "holds"
    write_page(planted_networks(), "command", tmp_path / "study.md")
    text = (tmp_path / "study.md").read_text()
    assert "24 networks of 4 architectures" in text.split("\n\n")[1]
    assert "| a | usual (6 seeds) | 90.0 |" in text


def test_found_only_leaves_free_what_was_imposed(study: ModuleType) -> None:
    from study_parts.ground import Study

    ground = Study("digits", None)
    plan, model = ground.solution(0, 0.5).plan, ground.arm(0, 0.5, "found only")
    both = [np.concatenate([part(layer).reshape(-1) for layer in plan.layers]) for part in (changed, found)]
    assert 0 < both[1].sum() < both[0].sum()
    exact = np.concatenate([exactly_named(layer) for layer in bank_from_model(model).spatial])
    assert exact[both[1]].all()
    assert not exact[both[0] & ~both[1]].any()


def changed(layer: LayerPlan) -> Any:
    return layer.changed


def found(layer: LayerPlan) -> Any:
    return layer.found


def exactly_named(layer: LayerKernels) -> Any:
    return examine(layer).residual.min(1) < 1e-6
