"""report.html: one file that needs nothing else, readable on a phone, in print, in light and dark.

Every value passes jinja2's autoescape after `shown`; the policy in the head allows the page's own style
and script by their hashes and pictures from data addresses, and nothing else.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from kernelsimp.error_text import printable
from kernelsimp.records.comparison import Comparison
from kernelsimp.records.factorised import Factorised
from kernelsimp.records.glossary import GLOSSARY
from kernelsimp.records.report import Report
from kernelsimp.records.scan import Scan
from kernelsimp.report.pictures import figures
from kernelsimp.report.pictures import prototypes as prototype_pictures
from kernelsimp.report.pictures import scan as scan_pictures
from kernelsimp.report.pictures.coded import rate_curve
from kernelsimp.report.pictures.depth import SAYS as DEPTH
from kernelsimp.report.pictures.depth import depth_strips
from kernelsimp.report.pictures.gallery import Gallery
from kernelsimp.report.pictures.gallery_page import by_structure, largest, layer_pictures, telling
from kernelsimp.report.pictures.ideal import family_words
from kernelsimp.report.tables.beyond import CODED, beyond_table, coding_table
from kernelsimp.report.tables.beyond import SAYS as BEYOND
from kernelsimp.report.tables.coded import SAYS as CODED_SAYS
from kernelsimp.report.tables.coded import coded_tables
from kernelsimp.report.tables.comparison import SAYS as COMPARISON_SAYS
from kernelsimp.report.tables.comparison import (
    compared_names,
    comparison_facts,
    comparison_strips,
    comparison_table,
    comparison_words,
    matrix_maps,
    matrix_words,
    similarity_tables,
)
from kernelsimp.report.tables.course import course_tables, kept_words, training_table, training_word
from kernelsimp.report.tables.factorised import (
    alone_title,
    factorised_facts,
    factorised_sections,
    factorised_title,
)
from kernelsimp.report.tables.headline import headline, in_words, speed_words, survival_words
from kernelsimp.report.tables.robustness import SAYS, robustness_charts, robustness_tables
from kernelsimp.report.tables.run import control_table, family_table, layer_table, stage_table
from kernelsimp.report.tables.scan import (
    scan_facts,
    scan_family_table,
    scan_layer_table,
    scan_title,
    sentence_table,
    skipped_table,
)
from kernelsimp.report.tables.selectivity import SAYS as SELECTIVITY_SAYS
from kernelsimp.report.tables.selectivity import selectivity_tables, selectivity_words
from kernelsimp.report.tables.table import Table, cut_table, flat, pairs
from kernelsimp.report.tables.verdict import budget_words, date_words, first_facts, mood, title_words

BESIDE = 6
"""Columns of a table that may stand beside a chart."""

MOST_FAMILIES = 20
"""Rows of structures beside the chart, which has as many."""


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, charts and tables, and what stands under them all across the page."""

    title: str
    charts: tuple[Markup, ...] = ()
    tables: tuple[Table, ...] = ()
    says: str = ""
    sortable: bool = False
    folded: bool = False
    under: tuple[Table, ...] = ()

    @property
    def beside(self) -> bool:
        """Whether charts and tables stand beside each other on a wide page."""
        narrow = all(len(table.heads) <= BESIDE for table in self.tables)
        return bool(self.charts and self.tables) and narrow and not (self.sortable or self.folded)

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def report_html(report: Report, gallery: Gallery = Gallery(())) -> str:  # noqa: B008 - frozen
    """Return the report as one self-contained page."""
    report, placed = in_words(report), layer_pictures(gallery)
    name, _, verdict = title_words(report).partition(": ")
    return page(
        title=name,
        subtitle=verdict,
        date=date_words(report),
        mood=mood(report),
        lead=_lead(report),
        aside=speed_words(report),
        facts=first_facts(report),
        strip=telling(gallery, placed),
        sections=[section for section in _sections(report) if section.charts or section.tables],
        walls=placed,
        top=largest(gallery, placed),
        kinds=by_structure(gallery, placed),
        left_out=gallery.left_out,
        facts_below=_facts_below(report),
        command=_command(report),
        schema=report.schema,
    )


def scan_html(scan: Scan) -> str:
    """Return a scan as one self-contained page."""
    sections = [
        Section(
            "Found against chance",
            figures.scan_chance(scan),
            says=figures.CHANCE,
        ),
        Section("In words", tables=_tables_with_rows(cut_table(sentence_table(scan), MOST_FAMILIES))),
        Section("Layers", tables=(scan_layer_table(scan),), sortable=True),
        Section("Families", tables=_tables_with_rows(scan_family_table(scan)), sortable=True),
        Section("Kernels by family", scan_pictures.family_pictures(scan)),
        _prototypes([{"layer": item.name, **(item.extra.get("prototypes") or {})} for item in scan.layers]),
        Section("Colours", scan_pictures.colour_pictures(scan)),
        Section(
            "Beyond one kernel", tables=_tables_with_rows(beyond_table(scan)), says=BEYOND, sortable=True
        ),
        Section("Bits a kernel", tables=_tables_with_rows(coding_table(scan)), says=CODED, sortable=True),
        Section("Skipped", tables=_tables_with_rows(skipped_table(scan)), folded=True),
    ]
    return page(
        title=PurePath(printable(str(scan.source.get("path") or "Kernels"))).name,
        subtitle=scan_title(scan),
        lead="What the kernels of a network look like, beside what chance alone would give.",
        facts=scan_facts(scan),
        samples=scan_pictures.telling_samples(scan),
        samples_say=scan_pictures.TELLING_SAYS,
        sections=[section for section in sections if section.charts or section.tables],
        facts_below=[_settings("Source", scan.source), _settings("Settings", scan.settings)],
        schema=scan.schema,
    )


def comparison_html(found: Comparison) -> str:
    """Return a comparison of two networks as one self-contained page."""
    said = f"{COMPARISON_SAYS} Sampled by {printable(found.sampling)}."
    sections = [
        Section("Layers", comparison_strips(found), (comparison_table(found),), said, sortable=True),
        Section("All against all", matrix_maps(found), says=matrix_words(found)),
        Section(
            "Notes",
            tables=_tables_with_rows(Table("Notes", ("note",), tuple((printable(n),) for n in found.notes))),
        ),
    ]
    return page(
        title=compared_names(found),
        subtitle=comparison_words(found),
        lead="What the layers of two networks give on the same images.",
        facts=comparison_facts(found),
        sections=[section for section in sections if section.charts or section.tables],
        facts_below=[_settings("A", found.a), _settings("B", found.b), _settings("Settings", found.settings)],
        schema=found.schema,
    )


def factorised_html(made: Factorised) -> str:
    """Return an export to thinner layers as one self-contained page."""
    *sections, (how, _) = factorised_sections(made)
    title, subtitle = factorised_title(made)
    return page(
        title=title,
        subtitle=subtitle,
        lead=f"What thinner layers buy at run time, measured on {printable(made.machine)}.",
        facts=factorised_facts(made),
        sections=[
            Section(alone_title(table), tables=(table,), says=says, sortable=not place)
            for place, (table, says) in enumerate(sections)
        ],
        facts_below=[how],
        schema=made.schema,
    )


def _sections(report: Report) -> list[Section]:
    return [
        Section(
            "Accuracy and budget",
            figures.stages(report),
            _tables_with_rows(stage_table(report)),
            budget_words(report),
            under=(_all_figures(report),),
        ),
        Section(
            "Found against chance",
            figures.chance(report),
            _tables_with_rows(cut_table(family_table(report), MOST_FAMILIES)),
            figures.CHANCE,
        ),
        Section("Layers", depth_strips(report), _tables_with_rows(layer_table(report)), DEPTH, sortable=True),
        Section(
            "Controls", figures.controls(report), _tables_with_rows(control_table(report)), figures.CONTROLS
        ),
        Section(
            training_word(report),
            figures.curves(report),
            _tables_with_rows(training_table(report)),
            kept_words(report),
            folded=True,
        ),
        Section("Coded size", rate_curve(report.coded), coded_tables(report), CODED_SAYS),
        _prototypes(report.pictures.get("prototypes")),
        *(Section(table.title, tables=(table,), says=says) for table, says in course_tables(report)),
        *_robustness(report),
        *(
            Section(table.title, tables=_tables_with_rows(table))
            for table in similarity_tables(report.similarity)
        ),
        *_selectivity(report),
    ]


def _selectivity(report: Report) -> list[Section]:
    stages = report.selectivity or {}
    said = "; ".join(f"{printable(name)}: {selectivity_words(found)}" for name, found in stages.items())
    return [
        Section(table.title, tables=_tables_with_rows(table), says=f"{said}. {SELECTIVITY_SAYS}")
        for table in selectivity_tables(stages)
    ]


def _prototypes(entries: object) -> Section:
    drawn = prototype_pictures.prototype_figures(entries) if isinstance(entries, list) else ()
    return Section("Prototypes", drawn, says=prototype_pictures.SAYS)


def _robustness(report: Report) -> list[Section]:
    """Return one section a table; the chart stands beside the first."""
    first, *rest = robustness_tables(report.robustness) or (Table("Robustness", (), ()),)
    head = Section("Robustness", robustness_charts(report.robustness), _tables_with_rows(first), SAYS)
    return [head, *(Section(table.title, tables=_tables_with_rows(table)) for table in rest)]


def _tables_with_rows(table: Table) -> tuple[Table, ...]:
    return (table,) if table.rows else ()


def _lead(report: Report) -> str:
    kernels, total = report.kernels, report.kernels.total
    held = {"freeze": "and frozen", "tie": "and tied"}.get(report.hold, "and left free")
    zeroed = f", {kernels.zeroed:,} became zero" if kernels.zeroed else ""
    what = (
        f"{kernels.simplified:,} of {total:,} kernels were simplified {held}: {kernels.found:,} have a "
        f"structure that chance does not explain, on {kernels.imposed:,} it was imposed{zeroed}."
    )
    return " ".join(filter(None, (what, survival_words(report))))


def _all_figures(report: Report) -> Table:
    rows = tuple((fact.name, fact.value, fact.note) for fact in headline(report))
    return Table("All figures", ("figure", "value", "which"), rows, frozenset({0, 2}))


def _facts_below(report: Report) -> list[Table]:
    provenance = {key: value for key, value in report.provenance.items() if key != "command"}
    tables = [
        Table("Notes", ("note",), tuple((printable(note),) for note in report.notes)),
        Table("Buffers changed", ("buffer",), tuple((printable(name),) for name in report.buffers_changed)),
        _settings("Provenance", provenance),
        _settings("Settings", report.settings),
    ]
    return [table for table in tables if table.rows]


def _command(report: Report) -> str | None:
    """Return the command that was recorded, if any."""
    recorded = report.provenance.get("command")
    return None if recorded is None else printable(str(recorded))


def _settings(title: str, value: object) -> Table:
    return Table(title, ("name", "value"), pairs(flat(value)), frozenset({0, 1}))


def page(**context: Any) -> str:
    """Return a page of facts and sections, as the template names them."""
    style, script = _asset("style.css"), _asset("page.js")
    fixed = {"style": style, "script": script, "policy": _policy(style, script)}
    blank: dict[str, Any] = {
        "subtitle": "",
        "date": "",
        "aside": "",
        "mood": "plain",
        "strip": [],
        "samples": (),
        "samples_say": "",
        "warnings": (),
        "sheets": context.get("walls", []),
        "words": _words_used(context),
        "walls": [],
        "top": [],
        "kinds": [],
        "left_out": 0,
        "facts_below": [],
        "command": None,
    }
    return _environment().get_template("page.html.j2").render({**blank, **context, **fixed})


def _words_used(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the glossary's words that heads of tables and names of figures use, each with its meaning."""
    tables = [table for section in context["sections"] for table in section.tables]
    heads = [head for table in (*tables, *context.get("facts_below", ())) for head in table.heads]
    told = " ".join([*heads, *(f"{fact.name} {fact.note}" for fact in context["facts"]), context["lead"]])
    return [(word, meaning) for word, meaning in GLOSSARY.items() if _names(told, word)]


def meaning_in(text: str) -> str:
    """Return what the glossary says of the first of its words in `text`; nothing where there is none."""
    return next((f"{word}: {meaning}" for word, meaning in GLOSSARY.items() if _names(text, word)), "")


def _names(text: str, word: str) -> bool:
    spelled = {"DOF": r"DOF|degrees of freedom"}.get(word, re.escape(word) + "s?")
    return re.search(rf"\b(?:{spelled})\b", text, 0 if word.isupper() else re.IGNORECASE) is not None


def _more_words(structure: str) -> str:
    """Return a structure in words where they say more than its name."""
    words = family_words(structure)
    return "" if words == structure.replace("-", " ") else words


@lru_cache(maxsize=1)
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("kernelsimp.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["meaning"] = meaning_in
    made.filters["words"] = _more_words
    made.filters["breakable"] = _breakable
    return made


def _breakable(text: str) -> Markup:
    """Return a text that may go on in the next line after the dots of its names."""
    return Markup("<wbr>").join(map(escape, re.split(r"(?<=\w\.)(?=[^\W\d])", text)))


@lru_cache(maxsize=4)
def _asset(name: str) -> Markup:
    return Markup((files("kernelsimp.report") / "templates" / name).read_text(encoding="utf-8"))


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
