"""What the eye meets: contrast of the style's colours, prototypes, structures found and imposed, scales."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import reports
import torch

from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.report import choose, report_html
from kernelsimp.report.pictures.charts import Level, SeenAgainstChance, against_chance, waterfall
from kernelsimp.report.pictures.prototypes import prototype_figures, prototypes_of
from kernelsimp.report.tables.run import family_table

STYLE = Path(report_html.__code__.co_filename).parent / "templates" / "style.css"


def colours(scheme: str) -> dict[str, str]:
    """Return the variables of a scheme; those of dark and print stand on top of light."""
    text = STYLE.read_text()
    parts = {"light": text[: text.index("@media")]}
    parts["dark"] = (
        parts["light"] + re.split(r"@media \(prefers-color-scheme: dark\)", text)[1].split("}\n}")[0]
    )
    parts["print"] = parts["light"] + text[text.index("@media print") :]
    return dict(re.findall(r"--([a-z]+): (#[0-9a-f]+)", parts[scheme]))


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#fff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_words_and_marks_stand_out(scheme: str) -> None:
    found = colours(scheme)
    words = [(ink, paper) for ink in ("ink", "soft", "link") for paper in ("paper", "card")]
    marks = [(mark, "paper") for mark in ("mark", "loss", "gain", "neutral", "chance")]
    assert [pair for pair in words if contrast(found[pair[0]], found[pair[1]]) < 4.5] == []
    assert all(contrast(found[one], found[other]) >= 3 for one, other in [*marks, ("found", "mark")])


def bank_of_one_shape() -> KernelBank:
    generator = torch.Generator().manual_seed(0)
    shape = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    scale = torch.randn(8, 8, 1, 1, generator=generator)
    same = scale * shape + torch.randn(8, 8, 1, 1, generator=generator)
    few = torch.randn(2, 2, 3, 3, generator=generator)
    return KernelBank((LayerKernels("same", "dense", same), LayerKernels("few", "dense", few)))


def test_a_layer_of_one_shape_has_one_prototype_and_a_small_layer_none() -> None:
    (entry,) = prototypes_of(bank_of_one_shape())
    assert (entry["layer"], entry["count"]) == ("same", 1)
    assert entry["coverage"] == pytest.approx(1)
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).flatten()
    sobel /= sobel.norm()
    turns = [torch.rot90(sobel.reshape(3, 3), k).flatten() for k in range(4)]
    drawn = torch.tensor(entry["centres"][0]).flatten()
    assert max(float(turn @ drawn) for turn in turns) == pytest.approx(1, abs=1e-3)


def test_prototypes_are_drawn_with_their_words_and_without_cells_not_at_all() -> None:
    entries = prototypes_of(bank_of_one_shape())
    (figure,) = prototype_figures(
        [{**entries[0], "layer": "<b>"}, {"layer": "x", "count": 3, "coverage": 1.0}]
    )
    assert 'alt="prototypes of &lt;b&gt;"' in figure
    assert "1 prototype and the kernels&#39; means, 100.0 % of the energy" in figure
    report = replace(reports.report(), pictures={"prototypes": entries})
    page = report_html(report)
    assert '<section id="prototypes">' in page
    assert '<section id="prototypes">' not in report_html(reports.report())


def test_structures_say_found_and_imposed_where_the_report_tells() -> None:
    report = reports.report()
    assert {row[2] for row in family_table(report).rows} == {"–"}
    layers = tuple(replace(layer, families_found={"equal-rows": layer.found}) for layer in report.layers)
    rows = {row[0]: row[1:4] for row in family_table(replace(report, layers=layers)).rows}
    total = sum(layer.families["equal-rows"] for layer in report.layers)
    found = report.kernels.found
    assert rows["equal-rows"] == (str(total), str(found), str(total - found))
    assert rows["zero"][1:] == ("–", "–")
    assert rows["mirror-h"][1] == "0"


def test_families_are_drawn_by_square_roots_and_those_of_unknown_chance_last() -> None:
    chart = against_chance(
        [SeenAgainstChance("big", 10_000, None), SeenAgainstChance("small", 400, 100.0, 25)], "ring"
    )
    assert chart.index(">small<") < chart.index(">big<")
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="13"', chart)]
    assert widths == [22, 22, pytest.approx(236 / 5, abs=0.1), 236]
    assert 'height="5"' in chart
    assert chart.count('class="chance"') == 2  # one in the legend
    assert 'x1="177.6"' in chart
    heads = [chart.index(f">{head}<") for head in ("matching", "by chance", "found")]
    assert heads == sorted(heads)
    assert heads[-1] < chart.index(">small<"), "the legend and the heads stand above the rows"


def test_every_structure_hangs_by_itself_with_the_largest_changes_first() -> None:
    before, after, plan = reports.before_and_after()
    page = report_html(reports.report(), choose(plan, before, after))
    summaries = re.findall(r'<details class="kind"><summary>(\S+) <span class="note">(\d+) of (\d+)', page)
    totals = {name: int(total) for name, _, total in summaries}
    assert set(totals) == {"mirror-h", "equal-rows", "zero"}
    assert sum(totals.values()) == reports.report().kernels.simplified
    assert list(totals.values()) == sorted(totals.values(), reverse=True)


def test_a_waterfall_says_that_its_axis_does_not_begin_at_zero_only_where_that_is_so() -> None:
    high, low = (waterfall([Level("original", value, value - 2, value + 2)]) for value in (90.0, 2.0))
    assert "axis not from 0" in high
    assert "axis not from 0" not in low
