"""Pages over several runs: two side by side, and any number in one table with charts."""

from collections.abc import Mapping, Sequence

from kernelsimp.error_text import printable
from kernelsimp.report.html import Section, page
from kernelsimp.report.pictures import figures
from kernelsimp.report.pictures.depth import pair_strips
from kernelsimp.report.pictures.gallery import Gallery
from kernelsimp.report.pictures.gallery_page import few_of_each, layer_pictures, placed_pictures
from kernelsimp.report.tables.headline import in_words, speed_words
from kernelsimp.report.tables.pair import Pair, pair_facts, pair_tables, pair_title
from kernelsimp.report.tables.runs import (
    Named,
    runs_facts,
    runs_table,
    runs_title,
    sorted_runs,
    warnings_of,
)
from kernelsimp.report.tables.table import Table


def pair_html(reports: Pair, names: tuple[str, str], galleries: Sequence[Gallery] = ()) -> str:
    """Return two runs side by side as one self-contained page, with some kernels of their galleries."""
    shown = (in_words(reports[0]), in_words(reports[1]))
    said = (printable(names[0]), printable(names[1]))
    titled = {table.title: table for table in pair_tables(reports, names)}
    few = few_of_each(galleries, said)
    placed = layer_pictures(few)
    sections = [
        Section("Accuracy", figures.pair_stages(shown, said), _named(titled, "Accuracy")),
        Section("Layers", pair_strips(shown, said), _named(titled, "Layers"), sortable=True),
        Section("Headline", tables=_named(titled, "Headline")),
        Section("Differing settings", tables=_named(titled, "Differing settings")),
    ]
    return page(
        title=f"{said[0]} and {said[1]}",
        subtitle=pair_title(shown, said),
        lead="Two runs side by side; the kernels are the same ones in both.",
        warnings=warnings_of(tuple(zip(names, reports, strict=True))),
        facts=pair_facts(shown, said),
        strip=placed_pictures(few, placed),
        sheets=placed,
        aside=speed_words(*reports),
        sections=[section for section in sections if section.charts or section.tables],
        schema=reports[0].schema,
    )


def _named(tables: Mapping[str, Table], title: str) -> tuple[Table, ...]:
    return (tables[title],) if title in tables else ()


def runs_html(runs: Sequence[Named]) -> str:
    """Return any number of runs, each with its name, as one self-contained page: a table, two charts."""
    ordered = sorted_runs(runs)
    numbered = [(f"{place} {name}", report) for place, (name, report) in enumerate(ordered, 1)]
    sections = [
        Section("Accuracy and what was kept", figures.runs(ordered)),
        Section("Runs", tables=(runs_table(numbered),), sortable=True),
    ]
    return page(
        title=f"{len(ordered)} runs",
        subtitle=runs_title(ordered),
        lead="Sorted by degrees of freedom left; the charts number them as the table does.",
        warnings=warnings_of(runs),
        aside=speed_words(*(report for _, report in ordered)),
        facts=runs_facts(ordered),
        sections=[section for section in sections if section.charts or section.tables],
        schema=ordered[0][1].schema,
    )
