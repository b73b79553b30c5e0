"""What commands say on a terminal: the tables of `report.tables`, drawn. Nothing here prints."""

import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.markup import escape
from rich.table import Table as RichTable

from kernelsimp.error_text import printable
from kernelsimp.kernels import pictures, templates
from kernelsimp.kernels.denoisers import DENOISERS, denoise
from kernelsimp.kernels.families import FAMILIES, offered_families
from kernelsimp.records.report import Report
from kernelsimp.records.scan import Explanation, Scan, ScanLine
from kernelsimp.records.verdict import Verdict
from kernelsimp.report import ci_formats, fmt
from kernelsimp.report.tables import run as run_tables
from kernelsimp.report.tables import scan as scan_rows
from kernelsimp.report.tables.course import metric_table, round_table, training_table
from kernelsimp.report.tables.folder import failure_table, folder_table
from kernelsimp.report.tables.headline import headline, in_words
from kernelsimp.report.tables.robustness import robustness_tables
from kernelsimp.report.tables.table import Table

NAME = 24
"""The first column of a table, names, is not squeezed below this many characters."""
GAP = 3
"""Characters between two columns."""
FEWEST = 8
"""A column of a table that stands whole is never narrower."""
MOST = 8
"""Rows of structures on a terminal, unless all are asked for."""


def as_text(parts: Iterable[RenderableType], width: int = 100) -> str:
    """Return what a terminal of `width` columns would show, without colours."""
    page = Console(file=io.StringIO(), width=width, highlight=False, no_color=True, soft_wrap=True)
    with page.capture() as shown:
        for part in parts:
            page.print(part)
    return shown.get().rstrip("\n")


def draw(table: Table) -> RenderableType:
    """Return a table for the terminal, or nothing where it has no rows."""
    return Fitted(table) if table.rows else Group()


class Fitted:
    """A table as wide as the screen: no word is broken, columns that do not fit are left out."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield _drawn(self.table, column_widths(self.table, options.max_width))


def fitting_columns(table: Table, width: int) -> list[int]:
    """Return the columns that a screen of `width` characters has room for; the first always stands."""
    kept = list(range(len(table.heads)))
    if table.whole:
        return kept
    rest = [place for place in reversed(kept[1:]) if place not in table.least]
    for place in (*table.least, *rest):
        if sum(_least_width(table, column) + GAP for column in kept) - 1 <= width or len(kept) <= 2:
            break
        kept.remove(place)
    return kept


def _least_width(table: Table, place: int) -> int:
    """Return the narrowest that a column can be: of text its longest word, of figures its longest figure."""
    cells = [row[place] for row in table.rows]
    words = (word for cell in cells for word in (cell.split() if place in table.text else [cell]))
    head = max(map(len, table.heads[place].split()), default=0)
    longest = max([head, *map(len, words)])
    return min(longest, NAME) if place == 0 else longest


def column_widths(table: Table, width: int) -> dict[int, int]:
    """Return how wide each column that fits is: as wide as it would be, but for what is wanting.

    That is taken from the widest; none is narrower than its longest word, unless the table stands whole.
    """
    least = {place: _least_width(table, place) for place in fitting_columns(table, width)}
    widths = {
        place: max(len(table.heads[place]), *(len(row[place]) for row in table.rows)) for place in least
    }
    wanting = sum(widths.values()) + GAP * len(widths) - 1 - width
    wanting = _level(widths, least, wanting)
    if table.whole:
        _level(widths, dict.fromkeys(widths, FEWEST), wanting)
    return widths


def _level(widths: dict[int, int], least: Mapping[int, int], wanting: int) -> int:
    """Take `wanting` characters from the widest columns, by turns; return how many nobody could spare."""
    for left in range(wanting, 0, -1):
        spare = [place for place in widths if widths[place] > least[place]]
        if not spare:
            return left
        widths[max(spare, key=lambda place: widths[place])] -= 1
    return 0


def _drawn(table: Table, widths: Mapping[int, int]) -> RichTable:
    rich = RichTable(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, width in widths.items():
        justify: Literal["left", "right"] = "left" if place in table.text else "right"
        rich.add_column(escape(table.heads[place]), justify=justify, overflow="fold", width=width)
    for row in table.rows:
        rich.add_row(*(escape(row[place]) for place in widths))
    return rich


def scan_tables(scan: Scan) -> Iterator[RenderableType]:
    """Yield what a scan found: layers, families beside chance, and a sentence of totals."""
    layers = scan_rows.scan_layer_table(scan)  # the sentences below say what the last column says
    yield draw(replace(layers, heads=layers.heads[:-1], rows=tuple(row[:-1] for row in layers.rows)))
    yield draw(_first_rows(scan_rows.sentence_table(scan)))
    families = scan_rows.scan_family_brief(scan)
    yield draw(families)
    if any(row[-1].endswith("*") for row in families.rows):
        yield "* white in the layers whose own null was not estimated"
    kernels, dead = sum(layer.kernels for layer in scan.layers), sum(layer.dead for layer in scan.layers)
    pointwise = f", {scan.pointwise:,} pointwise kernels apart" if scan.pointwise else ""
    count = fmt.counted(len(scan.layers), "layer")
    yield f"{count}, {kernels:,} kernels larger than 1x1 ({dead:,} dead){pointwise}"
    if near := scan_rows.near_words(scan):
        yield near
    if scan.skipped:
        what = "tensors are" if len(scan.skipped) > 1 else "tensor is"
        yield f"{len(scan.skipped)} {what} no convolution; --json lists each with the reason"


def _first_rows(table: Table, most: int = 12) -> Table:
    left = len(table.rows) - most
    title = f"{table.title} (the first {most} of {len(table.rows)})" if left > 0 else table.title
    return replace(table, title=title, rows=table.rows[:most])


def explanation_tables(explained: Explanation) -> Iterator[RenderableType]:
    """Yield one kernel: what it is, its picture in characters, and what it was measured against."""
    where = f"{printable(explained.layer)}[{explained.index[0]},{explained.index[1]}]"
    verdict = "found" if explained.found else "not found"
    verdict += ", beyond its layer" if explained.beyond else ""
    dead = " (dead: under 1 % of its layer's mean energy)" if explained.dead else ""
    chance = f"{verdict}, p = {explained.p:.1g} by the {explained.null} null"
    yield escape(f"{where}: {explained.name}; {chance}{dead}")
    cells = torch.from_numpy(explained.cells.reshape(-1, explained.cells.shape[-1]))
    yield escape("\n".join(pictures.picture(cells, ascii_only=not _unicode())))
    yield from (escape(printable(note)) for note in explained.notes)
    yield draw(_first_rows(scan_rows.explanation_table(explained), 20))


def _unicode() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")


def folder_tables(lines: Sequence[ScanLine]) -> Iterator[RenderableType]:
    """Yield one line a checkpoint, then those that failed."""
    yield draw(folder_table(lines))
    yield draw(failure_table(lines))


def report_tables(report: Report, *, everything: bool = False) -> Iterator[RenderableType]:
    """Yield the report's headline, stages and structures, of these the commonest or `everything`."""
    report = in_words(report)
    facts = tuple((fact.name, fact.value, fact.note) for fact in headline(report))
    yield draw(Table("Result", ("what", "value", ""), facts, frozenset({0, 2})))
    yield draw(run_tables.stage_table(report))
    yield draw(metric_table(report))
    yield draw(round_table(report))
    yield draw(training_table(report))
    structures = run_tables.family_table(report)
    left = 0 if everything else max(len(structures.rows) - MOST, 0)
    yield draw(replace(structures, rows=structures.rows[: len(structures.rows) - left]))
    if left:
        yield f"and {left} more (--all)"
    yield draw(run_tables.control_table(report))
    yield from map(draw, robustness_tables(report.robustness)[:2])  # the summary and the comparison
    for note in report.notes:
        yield escape(printable(note))


def verdict_tables(verdict: Verdict) -> Iterator[RenderableType]:
    """Yield every rule that was examined, and the findings."""
    yield draw(ci_formats.verdict_table(verdict))
    yield draw(ci_formats.finding_table(verdict))
    yield from (escape(printable(note)) for note in verdict.notes)
    yield "check: [red]FAILED[/]" if verdict.exit_code else "check: [green]passed[/]"


def family_catalogue(shape: tuple[int, int]) -> RenderableType:
    """Return the families offered at `shape`: cells that are equal share a letter, '-' marks negatives."""
    rich = RichTable("family", "DOF", "cells", "meaning", box=box.SIMPLE_HEAD, pad_edge=False)
    meanings = {family.name: family.meaning for family in FAMILIES}
    for family in offered_families(shape, pairs=False):
        also = f" (also {', '.join(family.aliases)})" if family.aliases else ""
        drawn = "\n".join(pictures.orbit_picture(family.subspace))
        picture = drawn if _unicode() else drawn.replace("·", ".")
        meaning = meanings[family.name] + also
        rich.add_row(family.name, str(family.subspace.dim), picture, meaning, end_section=True)
    return rich


def template_catalogue(shape: tuple[int, int]) -> RenderableType:
    """Return the templates offered at `shape`, each with an example drawn in characters."""
    rich = RichTable("template", "DOF", "example", "meaning", box=box.SIMPLE_HEAD, pad_edge=False)
    for template in templates.offered_templates(shape):
        drawn = pictures.picture(templates.example(template.name, shape), ascii_only=not _unicode())
        dof = str(templates.degrees_of_freedom(template, shape))
        rich.add_row(template.name, dof, escape("\n".join(drawn)), template.meaning, end_section=True)
    return rich


def denoiser_catalogue(shape: tuple[int, int], strength: float = 0.3) -> RenderableType:
    """Return the denoisers, each with what it makes of one noisy kernel, drawn in characters."""
    noisy = _noisy(shape)
    rich = RichTable("denoiser", "example", "meaning", box=box.SIMPLE_HEAD, pad_edge=False)
    title = f"one kernel of a noisy bank, then at strength {strength:g}"
    rich.add_row("(before)", "\n".join(_kernel_lines(noisy[0])), title, end_section=True)
    for row in DENOISERS:
        after = denoise(noisy, row.name, strength)[0]
        rich.add_row(row.name, "\n".join(_kernel_lines(after)), row.meaning, end_section=True)
    return rich


def catalogue_words(shape: tuple[int, int]) -> str:
    """Say how many structures there are at `shape`, and which options take their names."""
    families, shapes = len(offered_families(shape, pairs=False)), len(templates.offered_templates(shape))
    return (
        f"{families} families and {shapes} templates at {shape[0]}x{shape[1]} for --families, and "
        f"{len(DENOISERS)} denoisers for --denoise"
    )


def _noisy(shape: tuple[int, int]) -> torch.Tensor:
    """Return a small bank (16, kh, kw) of seeded noise over one smooth kernel."""
    generator = torch.Generator().manual_seed(0)
    smooth = templates.example("gaussian", shape)
    return smooth + 0.25 * torch.randn(16, *shape, generator=generator, dtype=smooth.dtype)


def _kernel_lines(kernel: torch.Tensor) -> list[str]:
    return [escape(line) for line in pictures.picture(kernel, ascii_only=not _unicode())]
