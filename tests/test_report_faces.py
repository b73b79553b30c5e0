"""Markdown, HTML and tables of a report: complete, harmless with hostile names, and light."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import reports

from kernelsimp.records.report import Survived
from kernelsimp.report import (
    Gallery,
    Picture,
    choose,
    fmt,
    pair_html,
    pair_markdown,
    report_html,
    report_markdown,
    scan_html,
)
from kernelsimp.report.html import meaning_in
from kernelsimp.report.markdown import escape_markdown
from kernelsimp.report.pictures.gallery_page import OF_A_STRUCTURE, TELLING, TOP
from kernelsimp.report.tables.headline import headline
from kernelsimp.report.tables.run import layer_table, stage_table
from kernelsimp.report.tables.scan import scan_family_table, scan_layer_table
from kernelsimp.report.tables.table import families_text, flat
from kernelsimp.report.tables.verdict import budget_words, first_facts, title_words

HOSTILE = "<script>alert(1)</script>\x1b[31m\n|`x`](javascript:1)"


def gallery() -> Gallery:
    before, after, plan = reports.before_and_after()
    return choose(plan, before, after)


class Page(HTMLParser):
    """Collects tags and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: set[str] = set()
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids |= {value for key, value in attrs if key == "id" and value}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        (fmt.count(1234567), "1,234,567"),
        (fmt.count(None), "–"),
        (fmt.number(float("nan")), "–"),
        (fmt.number(0.000123456), "0.000123"),
        (fmt.number(12345.6), "12,346"),
        (fmt.number(0.0), "0"),
        (fmt.percent(91.642), "91.64 %"),
        (fmt.share(1, 3), "33.3 %"),
        (fmt.share(1, 0), "–"),
        (fmt.points(-0.3), "-0.30 pp"),
        (fmt.points(0.3), "+0.30 pp"),
        (fmt.p_value(1e-12), "< 1e-8"),
        (fmt.p_value(0.0123), "0.012"),
        (fmt.size(999), "999 bytes"),
        (fmt.size(1_103_432), "1.1 MB"),
        (fmt.interval(1.0, float("nan")), "–"),
    ],
)
def test_figures_are_spelled(spelled: str, expected: str) -> None:
    assert spelled == expected


# ---------------------------------------------------------------- tables


def test_the_layer_table_adds_up_to_the_report() -> None:
    report = reports.report()
    table = layer_table(report)
    columns = list(zip(*table.rows, strict=True))
    assert sum(int(cell.replace(",", "")) for cell in columns[3]) == report.kernels.total
    assert sum(int(cell.replace(",", "")) for cell in columns[4]) == report.kernels.simplified
    assert sum(int(cell.replace(",", "")) for cell in columns[5]) == report.kernels.found
    assert all(len(row) == len(table.heads) for row in table.rows)


def test_the_stage_table_counts_changes_from_the_first() -> None:
    assert [row[4] for row in stage_table(reports.report()).rows] == ["–", "-3.80 pp", "-0.30 pp"]


def test_the_headline_says_what_it_cost_and_by_what_right() -> None:
    facts = {fact.name: fact for fact in headline(reports.report())}
    assert facts["accuracy change"].value == "-0.30 pp"
    assert facts["accuracy change"].note == "95 % interval -1.20 to +0.60 pp, McNemar p 0.63"
    assert facts["kernels simplified"].value == "118 of 158"
    assert facts["kernels simplified"].note == "19 found, 61 imposed, 38 zeroed; 118 frozen"
    assert facts["degrees of freedom left"].note == "61.0 % counting the choice of structure"


def test_a_report_without_data_says_that_nothing_was_measured() -> None:
    bare = replace(reports.report(), accuracy=None)
    assert headline(bare)[0].value == "not measured"
    assert "Accuracy was not measured." in report_markdown(bare)
    assert "not measured" in report_html(bare)


def test_families_are_ranked_and_cut() -> None:
    counts = {"a": 1, "b": 5, "c": 5, "d": 0, "e": 2}
    assert families_text(counts) == "b 5, c 5, e 2, 1 more"


def test_nested_settings_become_dotted_names() -> None:
    nested = {"a": {"b": 1, "c": None}, "d": (1, 2)}
    assert list(flat(nested)) == [("a.b", 1), ("d", "1, 2")]


def test_scan_tables_count_best_matches() -> None:
    table = scan_layer_table(reports.scan())
    assert table.rows[0][5:] == ("4", "2", "mirror-h 3, equal-rows 1")
    families = scan_family_table(reports.scan())
    assert families.heads[3:] == ("by chance, white", "matches / white", "found, white")
    assert families.rows[0] == ("mirror-h", "2", "18", "9", "2 x", "4")
    assert families.rows[1] == ("equal-rows", "1", "2", "0", "–", "0")


# ---------------------------------------------------------------- markdown


def test_markdown_tables_are_whole() -> None:
    lines = report_markdown(reports.report()).splitlines()
    widths = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("|"):
            widths.append(line.count("|"))
            if not after.startswith("|"):
                assert len(set(widths)) == 1, line
                widths = []


def test_markdown_has_the_first_the_kept_and_the_last_epoch() -> None:
    report = reports.report()
    lines = report_markdown(report).splitlines()
    assert "## Fine-tuning, first, kept and last epoch" in lines
    after = lines[lines.index("## Fine-tuning, first, kept and last epoch") :]
    rows = [line for line in after if line.startswith("|")][2:5]
    assert [row.split("|")[1].strip() for row in rows] == ["1", "10, kept", "12"]
    unchanged = replace(report, training=tuple(replace(epoch, kept=False) for epoch in report.training))
    assert "## Fine-tuning, first and last epoch; none was kept" in report_markdown(unchanged).splitlines()


def test_a_hostile_layer_name_stays_text_in_markdown() -> None:
    report = reports.renamed(reports.report(), {"conv1": HOSTILE})
    text = report_markdown(report)
    assert "<script" not in text
    assert "\x1b" not in text
    row = next(line for line in text.splitlines() if "alert" in line)
    cells = re.split(r"(?<!\\)\|", row)
    assert len(cells) == 12
    assert cells[1].strip() == (r"&lt;script&gt;alert(1)&lt;/script&gt;\\x1b\[31m\\n\|\`x\`\](javascript:1)")


def test_escaping_is_undone_by_a_markdown_reader() -> None:
    raw = "a|b`c*d_e[f]~g#h!i@j\\k<l>&m"
    read = re.sub(r"\\([\\`*_\[\]|~#!@])", r"\1", escape_markdown(raw))
    assert read.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == raw


def test_nested_robustness_and_similarity_become_rows() -> None:
    report = replace(
        reports.report(),
        robustness={"fog": {"3": 71.234567}, "note": HOSTILE},
        similarity={"conv1": {"cka": 0.5}},
    )
    text = report_markdown(report)
    assert "| fog.3 | 71.23 |" in text
    assert "| conv1.cka | 0.5 |" in text
    page = report_html(report)
    assert "fog.3" in page
    assert sum(tag == "script" for tag, _ in Page(page).tags) == 1


def test_a_thousand_layers_are_cut_in_markdown() -> None:
    report = reports.report()
    many = tuple(replace(report.layers[0], name=f"layer{n}") for n in range(1000))
    text = report_markdown(replace(report, layers=many))
    assert "layer59 " in text
    assert "layer60 " not in text
    assert "940 more rows in report.json." in text


# ---------------------------------------------------------------- HTML


def test_the_page_is_self_contained() -> None:
    page = Page(report_html(reports.report(), gallery()))
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form"), tag
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            assert key != "style", tag
            if key in ("src", "href", "xlink:href", "action"):
                assert value is not None
                assert value.startswith(("#", "data:")), value


def test_every_link_and_picture_leads_somewhere() -> None:
    page = Page(report_html(reports.report(), gallery()))
    links = [a["href"][1:] for _, a in page.tags if (a.get("href") or "").startswith("#")]  # type: ignore[index]
    assert links
    assert set(links) <= page.ids


def test_the_policy_names_the_hashes_of_style_and_script() -> None:
    import hashlib

    text = report_html(reports.report())
    policy = next(a["content"] for t, a in Page(text).tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag in ("style", "script"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        assert inside is not None
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("name", [HOSTILE, '" onload="alert(1)', "</style><b>", "{{ 7*7 }}", "%s\u202e"])
def test_a_hostile_layer_name_is_text_in_every_page(name: str) -> None:
    names = {"conv1": name}
    report = reports.renamed(reports.report(), names)
    shown_ = Gallery(tuple(replace(p, layer=names.get(p.layer, p.layer)) for p in gallery().pictures))
    for text in (report_html(report, shown_), pair_html((report, report), (name, "b"))):
        plain = Page(report_html(reports.report(), gallery()))
        page = Page(text)
        assert sum(tag == "script" for tag, _ in page.tags) == 1
        assert {tag for tag, _ in page.tags} <= {"wbr", *(tag for tag, _ in plain.tags)}
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert words_of(name) in " ".join(page.text)


def words_of(name: str) -> str:
    from kernelsimp.error_text import printable

    return printable(name)


def test_hostile_provenance_and_settings_are_text() -> None:
    bad = {"command": HOSTILE, HOSTILE: {"x": HOSTILE}}
    report = replace(reports.report(), provenance=bad, settings={HOSTILE: {"a": HOSTILE}}, notes=(HOSTILE,))
    text = report_html(report)
    assert sum(tag == "script" for tag, _ in Page(text).tags) == 1
    assert "<script>alert" not in text
    assert "<script" not in report_markdown(report)


def test_charts_have_words_for_those_who_cannot_see_them() -> None:
    page = Page(report_html(reports.report(), gallery()))
    charts = [a for _, a in page.tags if (a.get("class") or "").split(" ")[0] in ("chart", "lanes")]
    assert len(charts) == 7
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert "Intervals: original 93.20 %, simplified 89.40 %, finetuned 92.90 %" in [
        chart["aria-label"] for chart in charts
    ]


def test_no_number_in_a_chart_is_nan() -> None:
    report = reports.report()
    assert report.accuracy is not None
    epoch = replace(report.training[0], val_loss=float("nan"), val_top1=None, train_loss=float("inf"))
    text = report_html(replace(report, training=(epoch, *report.training[1:])))
    assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', text)


def test_one_stage_one_epoch_and_equal_values_are_drawn() -> None:
    report = reports.report()
    assert report.accuracy is not None
    one = replace(report.accuracy, stages=report.accuracy.stages[:1])
    text = report_html(replace(report, accuracy=one, training=report.training[:1], controls=()))
    assert text.count('class="lanes ') == 2
    assert 'class="chart"' not in text, "one epoch is no curve"


def test_a_scan_page_has_its_tables_and_its_chart() -> None:
    text = scan_html(reports.scan())
    assert "Found against chance" in text
    assert "fc.weight" in text
    assert text.count('class="lanes n3"') == 1
    assert '<p class="subtitle plain">4 of 24 kernels found beyond chance, ' in text


def test_two_runs_stand_side_by_side() -> None:
    first = reports.report()
    second = replace(first, layers=first.layers[1:], settings={"plan": {"tolerance": 0.2}})
    text = pair_markdown((first, second), ("a", "b"))
    assert "| plan.tolerance | 0.1 | 0.2 |" in text
    row = next(line for line in text.splitlines() if line.startswith("| conv1 "))
    assert row.count("–") == 4
    assert "93.20 % (932 of 1,000)" in text


def test_a_page_of_resnet50_size_stays_under_three_megabytes() -> None:
    rng = np.random.default_rng(0)
    shapes = [(7, 7)] + [(3, 3)] * 16
    pictures = tuple(
        Picture(
            f"layer{n}.0.conv2", (int(i), int(i) * 7 % 512), f"odd-anti-transpose-{i % 30}", "imposed",
            rng.normal(size=grid).astype(np.float32), rng.normal(size=grid).astype(np.float32), 0.123, 1e-5,
        )
        for n, grid in enumerate(shapes)
        for i in range(256)
    )  # fmt: skip
    report = reports.report()
    layers = tuple(replace(report.layers[0], name=f"layer{n}.0.conv2") for n in range(17))
    text = report_html(replace(report, layers=layers), Gallery(pictures, left_out=1_000_000))
    assert len(text.encode()) < 3_000_000
    assert "1,000,000 simplified kernels are not drawn" in text
    assert "12 of 153 on this page" in text
    assert text.count("<figure") == len(pictures) + TOP + TELLING + 30 * OF_A_STRUCTURE


@pytest.mark.parametrize("face", [report_markdown, report_html])
def test_what_became_smaller_is_said_only_where_something_did(face) -> None:
    held = reports.report()
    dof = replace(held.dof, after=held.dof.before, fraction=1.0, planned_fraction=0.5)
    loose = replace(held, hold="none", dof=dof, survived=Survived(0, 3, 9, {"mirror-h": (0, 3)}))
    smaller, nothing = "what became smaller", "Nothing was held while it was trained: 0 of 9"
    assert smaller in face(held)
    assert nothing not in face(held)
    assert smaller not in face(loose)
    assert nothing in face(loose)


def test_the_title_says_which_network_what_was_done_and_whether_it_is_good() -> None:
    report = replace(
        reports.report(),
        settings={"model": {"arch": "zoo:resnet20"}, "plan": {"max_drop": 0.5, "dof": None}},
        provenance={"date": "2026-01-02T03:04:05+00:00"},
    )
    assert title_words(report) == "resnet20: 118 of 158 kernels simplified, -0.30 pp, within budget"
    text = report_html(report, gallery())
    assert "<title>resnet20: 118 of 158 kernels simplified, -0.30 pp, within budget, 2026-01-02 - " in text
    assert budget_words(report).startswith(
        "Budget met: at most 0.5 pp of accuracy lost, judged on images that "
    )
    assert budget_words(report) in text
    assert budget_words(report) in report_markdown(report)
    failed = replace(report, budget_met=False)
    assert title_words(failed).endswith("budget NOT met")
    assert 'class="subtitle bad"' in report_html(failed)


def test_the_first_screen_has_three_figures_and_kernels_of_many_structures() -> None:
    text = report_html(reports.report(), gallery())
    assert [fact.name for fact in first_facts(reports.report())] == [
        "accuracy, before → after",
        "kernels simplified",
        "degrees of freedom left",
    ]
    strip = text[text.index('class="wall strip"') : text.index("<h2>")]
    assert strip.count("<figure") == TELLING
    assert set(re.findall(r'data-f="([^"]+)"', strip)) == {"mirror-h", "equal-rows"}
    assert "even left-right, imposed" in strip


def test_training_from_scratch_is_no_simplification() -> None:
    report = reports.report()
    assert report.accuracy is not None
    one = replace(report.accuracy, stages=(replace(report.accuracy.stages[0], stage="trained"),))
    assert "trained from scratch, 93.20 % right" in title_words(replace(report, accuracy=one))


def test_found_in_the_chart_is_what_the_card_counts() -> None:
    report = reports.report()
    layers = tuple(replace(layer, families_found={"equal-rows": layer.found}) for layer in report.layers)
    text = report_html(replace(report, layers=layers, controls=(), training=()))
    row = re.search(r'<span class="name">equal rows</span>.*?</svg>(.*?)<span class="(?:name|ends)', text)
    assert row is not None
    assert row[1].endswith(f'<span class="figure">{report.kernels.found}</span>')


def test_words_are_explained_where_they_stand() -> None:
    text = report_html(reports.report())
    assert meaning_in("DOF left").startswith("DOF: degrees of freedom")
    assert 'title="DOF: degrees of freedom' in text
    assert "<dt>found</dt>" in text
    assert meaning_in("layer") == ""
