"""What commands say on a terminal: the tables of `report.tables`, drawn. Nothing here prints."""

import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table as RichTable

from kernelsimp.kernels import pictures, templates
from kernelsimp.kernels.denoisers import DENOISERS, denoise
from kernelsimp.kernels.families import FAMILIES, offered_families
from kernelsimp.records.report import Report
from kernelsimp.records.scan import Explanation, Scan, ScanLine
from kernelsimp.records.verdict import Verdict, printable
from kernelsimp.report import ci_formats
from kernelsimp.report.tables import run as run_tables
from kernelsimp.report.tables import scan as scan_rows
from kernelsimp.report.tables.course import metric_table, round_table, training_table
from kernelsimp.report.tables.folder import failure_table, folder_table
from kernelsimp.report.tables.headline import headline
from kernelsimp.report.tables.robustness import robustness_tables
from kernelsimp.report.tables.table import Table

NAME = 24
"""The first column of a table, names, is not squeezed below this many characters."""


def as_text(parts: Iterable[RenderableType], width: int = 100) -> str:
    """Return what a terminal of `width` columns would show, without colours."""
    page = Console(file=io.StringIO(), width=width, highlight=False, no_color=True, soft_wrap=True)
    with page.capture() as shown:
        for part in parts:
            page.print(part)
    return shown.get().rstrip("\n")


def draw(table: Table) -> RenderableType:
    """Return a table for the terminal, or nothing where it has no rows."""
    if not table.rows:
        return Group()
    rich = RichTable(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(table.heads):
        wide = max(len(row[0]) for row in table.rows) if place == 0 else 0
        justify: Literal["left", "right"] = "left" if place in table.text else "right"
        rich.add_column(escape(head), justify=justify, overflow="fold", min_width=min(wide, NAME) or None)
    for row in table.rows:
        rich.add_row(*(escape(cell) for cell in row))
    return rich


def scan_tables(scan: Scan) -> Iterator[RenderableType]:
    """Yield what a scan found: layers, families beside chance, and a sentence of totals."""
    layers = scan_rows.scan_layer_table(scan)  # the sentences below say what the last column says
    yield draw(replace(layers, heads=layers.heads[:-1], rows=tuple(row[:-1] for row in layers.rows)))
    yield draw(_first_rows(scan_rows.sentence_table(scan)))
    yield draw(scan_rows.scan_family_brief(scan))
    kernels, dead = sum(layer.kernels for layer in scan.layers), sum(layer.dead for layer in scan.layers)
    pointwise = f", {scan.pointwise:,} pointwise kernels apart" if scan.pointwise else ""
    yield f"{len(scan.layers)} layers, {kernels:,} kernels larger than 1x1 ({dead:,} dead){pointwise}"
    near = scan_rows.near_words(scan)
    if near:
        yield near
    if scan.skipped:
        yield f"{len(scan.skipped)} tensors are no convolution; --json lists each with the reason"


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


def report_tables(report: Report) -> Iterator[RenderableType]:
    """Yield the report's headline, stages and structures."""
    facts = tuple((fact.name, fact.value, fact.note) for fact in headline(report))
    yield draw(Table("Result", ("what", "value", ""), facts, frozenset({0, 2})))
    yield draw(run_tables.stage_table(report))
    yield draw(metric_table(report))
    yield draw(round_table(report))
    yield draw(training_table(report))
    yield draw(run_tables.family_table(report))
    yield draw(run_tables.control_table(report))
    yield from map(draw, robustness_tables(report.robustness)[:2])  # the summary and the comparison
    for note in report.notes:
        yield escape(printable(note))


def verdict_tables(verdict: Verdict) -> Iterator[RenderableType]:
    """Yield every rule that was examined, and the findings."""
    yield draw(ci_formats.verdict_table(verdict))
    yield draw(ci_formats.finding_table(verdict))
    yield from (escape(printable(note)) for note in verdict.notes)
    yield "check: FAILED" if verdict.exit_code else "check: passed"


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


def _noisy(shape: tuple[int, int]) -> torch.Tensor:
    """Return a small bank (16, kh, kw) of seeded noise over one smooth kernel."""
    generator = torch.Generator().manual_seed(0)
    smooth = templates.example("gaussian", shape)
    return smooth + 0.25 * torch.randn(16, *shape, generator=generator, dtype=smooth.dtype)


def _kernel_lines(kernel: torch.Tensor) -> list[str]:
    return [escape(line) for line in pictures.picture(kernel, ascii_only=not _unicode())]
