"""What the eye meets: contrast of the style's colours, charts, structures in words, first screens."""

import base64
import io
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import reports
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import Markup
from PIL import Image

from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.records.scan import Sample
from kernelsimp.report import choose, pair_html, report_html, scan_html
from kernelsimp.report.html import Section
from kernelsimp.report.pictures.charts import curve
from kernelsimp.report.pictures.gallery_page import few_of_each
from kernelsimp.report.pictures.ideal import family_words
from kernelsimp.report.pictures.lanes import Level, SeenAgainstChance, against_chance, dots
from kernelsimp.report.pictures.prototypes import prototype_figures, prototypes_of
from kernelsimp.report.pictures.scan import img, sheet, telling_samples, tile
from kernelsimp.report.pictures.scatter import Point, scatter
from kernelsimp.report.pictures.ticks import spelled, ticks
from kernelsimp.report.tables.run import family_table
from kernelsimp.report.tables.table import Table

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
    widths = re.findall(r'width="([\d.]+)%" height="60%"', chart)
    assert widths == ["100", "100", "20", "100"]  # two in the legend
    assert 'width="5%" height="24%" class="found"' in chart
    assert chart.count('class="chance"') == 2  # one in the legend
    assert '<line x1="10%"' in chart
    heads = [chart.index(f">{head}<") for head in ("matching", "by chance", "found")]
    assert heads == sorted(heads)
    assert heads[-1] < chart.index(">small<"), "the legend and the heads stand above the rows"


def test_every_structure_hangs_by_itself_with_the_largest_changes_first() -> None:
    before, after, plan = reports.before_and_after()
    page = report_html(reports.report(), choose(plan, before, after))
    summaries = re.findall(
        r'<details class="kind"><summary>(\S+) <span class="note">(?:[^;<]*; )?(\d+) of (\d+)', page
    )
    totals = {name: int(total) for name, _, total in summaries}
    assert set(totals) == {"mirror-h", "equal-rows", "zero"}
    assert sum(totals.values()) == reports.report().kernels.simplified
    assert list(totals.values()) == sorted(totals.values(), reverse=True)


def percents(chart: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf' {name}="([\d.]+)%"', chart)]


def test_levels_lie_on_a_round_axis_that_ends_at_100_and_changes_stand_beside_them() -> None:
    levels = [Level("original", 99.0, 97.4, 99.8), Level("after <b>", 98.0, 96.1, 99.0)]
    chart = dots(levels, marked=1, changes=True)
    assert "<span>96 %</span><span>100 %</span>" in chart
    assert percents(chart, "cx") == [75, 50]
    assert re.findall(r'<circle[^>]*class="(\w+)"', chart) == ["mark", "other"]
    assert 'x1="35%" y1="50%" x2="95%" y2="50%" class="whisker"' in chart
    assert chart.count('<line x1="75%" y1="0%" x2="75%" y2="100%" class="thread"/>') == 2
    assert '98.00 %</span><span class="figure">-1.00 pp</span>' in chart
    assert "after &lt;b&gt;" in chart


def test_differences_hang_at_zero_and_say_their_unit() -> None:
    chart = dots([Level("a", 47.66, -9.6, 104.9)], unit="pp")
    assert "<span>-50 pp</span><span>100 pp</span>" in chart
    assert max(percents(chart, "x2")) == 100
    assert 'x1="33.3%" y1="0%" x2="33.3%" y2="100%" class="thread"' in chart


@example(low=2.220446049250313e-16, span=1.0, most=100.0)
@given(
    low=st.floats(-1e6, 1e6),
    span=st.floats(0, 1e6),
    most=st.sampled_from([100.0, float("inf")]),
)
def test_ticks_are_few_equal_steps_around_the_figures_and_never_beyond_the_most(low, span, most) -> None:
    low = min(low, most)
    high = min(low + span, most)
    steps = ticks(low, high, most)
    assert 2 <= len(steps) <= 7
    assert steps[0] <= low + 1e-9 * max(abs(low), span, 1)
    assert steps[-1] >= high - 1e-9 * max(abs(high), span, 1)
    assert steps[-1] <= most
    assert low < 0 or steps[0] >= 0 or most == steps[-1] == high
    gaps = [b - a for a, b in pairwise(steps)]
    assert low < -100 or max(gaps) == pytest.approx(min(gaps), rel=1e-6)
    assert len(set(spelled(steps))) == len(steps)


def test_runs_that_coincide_keep_their_numbers_apart() -> None:
    chart = scatter([Point(name, 40.0, 97.0, 95.0, 98.0) for name in "abc"], "left", str)
    places = [
        float(x) for x in re.findall(r'<text x="([\d.]+)" y="[\d.]+" class="label">[123]</text>', chart)
    ]
    assert len(places) == 3
    assert min(b - a for a, b in pairwise(places)) >= 15
    assert ">100</text>" not in chart or ">102</text>" not in chart


def test_a_curve_marks_the_epoch_that_was_kept() -> None:
    drawn = [curve("loss", [3.0, 1.0, 2.0], "line-a", kept=kept) for kept in (2, None)]
    places = [re.findall(r'<line x1="([\d.]+)"[^>]*class="thread"', chart) for chart in drawn]
    assert places == [["184"], []]


def test_between_the_kernels_of_a_scan_the_sheet_is_clear() -> None:
    page = sheet([tile(np.eye(3, dtype=np.float32)), tile(np.ones((2, 2), dtype=np.float32))])
    scale = page.shape[0] // 3
    assert (page[:, 3 * scale : 4 * scale, 3] == 0).all()
    assert (page[: 3 * scale, : 3 * scale, 3] == 255).all()
    address = re.search(r"base64,([^\"]+)", img(page, "a", "c"))
    assert address is not None
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(address[1]))).convert("RGBA"))
    assert (seen[..., 3] == page[..., 3]).all()
    assert np.abs(seen.astype(int) - page)[page[..., 3] > 0].max() <= 4


def test_a_scan_opens_with_one_kernel_of_each_family_the_least_by_chance_first() -> None:
    cells = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=np.float32)
    given_p = (("mirror-h", 0.5), ("mirror-h", 1e-3), ("equal-rows", 1e-5), ("gabor", 0.9))
    samples = tuple(
        Sample((place, 0), family, cells, 0.1, p, f"words {place}")
        for place, (family, p) in enumerate(given_p)
    )
    scan = reports.scan()
    scan = replace(scan, layers=(replace(scan.layers[0], samples=samples), *scan.layers[1:]))
    figures = telling_samples(scan)
    assert [re.search(r"words (\d)", figure)[1] for figure in figures] == ["2", "1", "3"]
    widths = [int(re.search(r'width="(\d+)"', figure)[1]) for figure in figures]
    assert widths[0] == widths[1] > 2 * widths[2], "a family that no name tells has no ideal beside it"
    assert "words 2" in scan_html(scan).split('<section id="found-against-chance">')[0]


def test_two_runs_show_the_same_kernels_and_say_what_became_of_each() -> None:
    before, after, plan = reports.before_and_after()
    gallery, report = choose(plan, before, after), reports.report()
    fewer = replace(gallery, pictures=gallery.pictures[::2])
    few = few_of_each((gallery, fewer), ("a", "<b>"))
    assert len(few.pictures) == 8
    halves = [[(p.layer.partition(": ")[2], p.index) for p in few.pictures[at : at + 4]] for at in (0, 4)]
    assert halves[0] == halves[1]
    page = pair_html((report, replace(report, budget_met=False)), ("a", "<b>"), (gallery, fewer))
    first = page.split("<section", 1)[0]
    assert first.count('<figure class="k"') == 8
    assert "within budget; &lt;b&gt;: " in first
    assert "budget NOT met" in first
    assert "93.20 %" not in first, "what came before is not what became of them"
    assert '<figure class="k"' not in pair_html((report, report), ("a", "b"))


def test_structures_stand_with_their_words() -> None:
    page = report_html(reports.report())
    assert 'mirror-h <span class="note">even left-right</span>' in page
    assert 'equal-rows <span class="note">' not in page, "the name says it"
    assert family_words("few-values-4") == "four values"


def test_a_wide_table_does_not_stand_beside_a_chart() -> None:
    chart = (Markup("<svg></svg>"),)
    tables = [Table("t", tuple(map(str, range(columns))), (("x",) * columns,)) for columns in (6, 7)]
    assert [Section("s", chart, (table,)).beside for table in tables] == [True, False]
