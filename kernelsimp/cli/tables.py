"""Drawing the report's tables on a terminal. What they say is decided in `kernelsimp.report`."""

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table as RichTable

from kernelsimp.kernels.families import FAMILIES, offered
from kernelsimp.kernels.subspace import OrbitSubspace
from kernelsimp.records.report import Report
from kernelsimp.records.scan import Scan
from kernelsimp.records.verdict import Verdict, shown
from kernelsimp.report import faces, tables
from kernelsimp.report.tables import Table

SHAPES_DRAWN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def draw(table: Table) -> RenderableType:
    """Return a table for the terminal, or nothing where it has no rows."""
    if not table.rows:
        return Group()
    rich = RichTable(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(table.heads):
        rich.add_column(escape(head), justify="left" if place in table.text else "right", overflow="fold")
    for row in table.rows:
        rich.add_row(*(escape(cell) for cell in row))
    return rich


def scan_tables(scan: Scan) -> Iterator[RenderableType]:
    """Yield what a scan found: layers, families beside chance, and a sentence of totals."""
    yield draw(tables.scan_layer_table(scan))
    yield draw(tables.scan_family_table(scan))
    kernels, dead = sum(layer.kernels for layer in scan.layers), sum(layer.dead for layer in scan.layers)
    pointwise = f", {scan.pointwise:,} pointwise kernels apart" if scan.pointwise else ""
    yield f"{len(scan.layers)} layers, {kernels:,} kernels larger than 1x1 ({dead:,} dead){pointwise}"
    if scan.skipped:
        yield f"{len(scan.skipped)} tensors are no convolution; --json lists each with the reason"


def report_tables(report: Report) -> Iterator[RenderableType]:
    """Yield the report's headline, stages and structures."""
    facts = tuple((fact.name, fact.value, fact.note) for fact in tables.headline(report))
    yield draw(Table("Result", ("what", "value", ""), facts, frozenset({0, 2})))
    yield draw(tables.stage_table(report))
    yield draw(tables.training_table(report))
    yield draw(tables.family_table(report))
    yield draw(tables.control_table(report))
    for note in report.notes:
        yield escape(shown(note))


def verdict_tables(verdict: Verdict) -> Iterator[RenderableType]:
    """Yield every rule that was examined, and the findings."""
    yield draw(faces.verdict_table(verdict))
    yield draw(faces.finding_table(verdict))
    yield "check: FAILED" if verdict.exit_code else "check: passed"


def family_table(shape: tuple[int, int]) -> RenderableType:
    """Return the families offered at `shape`: cells that are equal share a letter, capitals are negated."""
    rich = RichTable("family", "DOF", "cells", "meaning", box=box.SIMPLE_HEAD, pad_edge=False)
    meanings = {family.name: family.meaning for family in FAMILIES}
    for family in offered(shape, pairs=False):
        also = f" (also {', '.join(family.aliases)})" if family.aliases else ""
        picture = picture_of(family.subspace)
        rich.add_row(
            family.name, str(family.subspace.dim), picture, meanings[family.name] + also, end_section=True
        )
    return rich


def picture_of(subspace: OrbitSubspace) -> str:
    """Draw a family: one letter an orbit, '-' before a negated cell, '.' for a cell that is zero."""
    rows = []
    orbits = subspace.orbit.reshape(subspace.shape)
    signs = subspace.sign.reshape(subspace.shape)
    for orbit_row, sign_row in zip(orbits, signs, strict=True):
        cells = (_cell(orbit, sign) for orbit, sign in zip(orbit_row, sign_row, strict=True))
        rows.append(" ".join(cells))
    return "\n".join(rows)


def _cell(orbit: int, sign: float) -> str:
    if orbit < 0:
        return " ."
    return ("-" if sign < 0 else " ") + SHAPES_DRAWN[orbit % len(SHAPES_DRAWN)]
