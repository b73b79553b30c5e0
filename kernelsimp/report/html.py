"""report.html: one file that needs nothing else, readable on a phone, in print, in light and dark.

Every value passes jinja2's autoescape after `shown`; the policy in the head allows the page's own style
and script by their hashes and pictures from data addresses, and nothing else.
"""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import islice, zip_longest
from shlex import quote
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kernelsimp.records.report import Report
from kernelsimp.records.scan import Scan
from kernelsimp.records.verdict import shown
from kernelsimp.report import figures, scan_pictures, words
from kernelsimp.report.gallery import Gallery, Picture
from kernelsimp.report.pair import pair_tables
from kernelsimp.report.sprites import Sprite, sprite
from kernelsimp.report.tables import (
    SPEED,
    Table,
    control_table,
    family_table,
    figure_table,
    flat,
    headline,
    layer_table,
    pairs,
    scan_facts,
    scan_family_table,
    scan_layer_table,
    sentence_table,
    skipped_table,
    stage_table,
    training_table,
)

TOP = 24
"""Pictures in the opening row of the gallery: the largest changes of all layers."""


@dataclass(frozen=True)
class Section:
    """A heading, charts, tables and a sentence under it."""

    title: str
    charts: tuple[Markup, ...] = ()
    tables: tuple[Table, ...] = ()
    says: str = ""
    sortable: bool = False
    folded: bool = False

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


@dataclass(frozen=True)
class Shown:
    """One picture placed: its box in the sprite numbered `sheet`, its caption and its alt text."""

    sheet: int
    box: str
    family: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Wall:
    """The pictures of one layer, and the sprite they lie in."""

    layer: str
    sheet: Sprite
    pictures: tuple[Shown, ...]


def report_html(report: Report, gallery: Gallery = Gallery(())) -> str:  # noqa: B008 - frozen
    """Return the report as one self-contained page."""
    walls = _walls(gallery)
    return _page(
        title="Kernels simplified",
        lead=_lead(report),
        facts=headline(report),
        sections=[section for section in _sections(report) if section.charts or section.tables],
        walls=walls,
        top=_top(gallery, walls),
        left_out=gallery.left_out,
        facts_below=_facts_below(report),
        command=_command(report),
        schema=report.schema,
    )


def scan_html(scan: Scan) -> str:
    """Return a scan as one self-contained page."""
    tables = (scan_family_table(scan),)
    sections = [
        Section("Found against chance", figures.scan_chance(scan), tables, figures.CHANCE),
        Section("Layers", tables=(scan_layer_table(scan),), sortable=True),
        Section("In words", tables=_filled(sentence_table(scan))),
        Section("Kernels by family", scan_pictures.family_pictures(scan)),
        Section("Colours", scan_pictures.colour_pictures(scan)),
        Section("Skipped", tables=_filled(skipped_table(scan))),
    ]
    return _page(
        title="Kernels scanned",
        lead="What the kernels of a network look like, beside what chance alone would give.",
        facts=scan_facts(scan),
        sections=[section for section in sections if section.charts or section.tables],
        facts_below=[_settings("Source", scan.source), _settings("Settings", scan.settings)],
        schema=scan.schema,
    )


def pair_html(reports: tuple[Report, Report], names: tuple[str, str]) -> str:
    """Return two runs side by side as one self-contained page."""
    sections = [
        Section(table.title, tables=(table,), sortable=table.title == "Layers")
        for table in pair_tables(reports, names)
    ]
    return _page(
        title="Two runs side by side",
        lead=f"{shown(names[0])} and {shown(names[1])}. {SPEED}",
        facts=(),
        sections=sections,
        schema=reports[0].schema,
    )


def _sections(report: Report) -> list[Section]:
    return [
        Section("Accuracy", figures.stages(report), _filled(stage_table(report))),
        Section("Controls", figures.controls(report), _filled(control_table(report)), figures.CONTROLS),
        Section("Found against chance", figures.chance(report), (), figures.CHANCE),
        Section("Structures", tables=_filled(family_table(report))),
        Section("Fine-tuning", figures.curves(report), _filled(training_table(report)), folded=True),
        Section("Layers", tables=_filled(layer_table(report)), sortable=True),
        Section("Robustness", tables=_filled(figure_table("Robustness", report.robustness))),
        Section("Similarity", tables=_filled(figure_table("Similarity", report.similarity))),
    ]


def _filled(table: Table) -> tuple[Table, ...]:
    return (table,) if table.rows else ()


def _lead(report: Report) -> str:
    kernels, total = report.kernels, report.kernels.total
    held = {"freeze": "and frozen", "tie": "and tied"}.get(report.hold, "and left free")
    zeroed = f", {kernels.zeroed:,} became zero" if kernels.zeroed else ""
    return (
        f"{kernels.simplified:,} of {total:,} kernels were simplified {held}: {kernels.found:,} have a "
        f"structure that chance does not explain, on {kernels.imposed:,} it was imposed{zeroed}. {SPEED}"
    )


def _facts_below(report: Report) -> list[Table]:
    provenance = {key: value for key, value in report.provenance.items() if key != "command"}
    tables = [
        Table("Notes", ("note",), tuple((shown(note),) for note in report.notes)),
        Table("Buffers changed", ("buffer",), tuple((shown(name),) for name in report.buffers_changed)),
        _settings("Provenance", provenance),
        _settings("Settings", report.settings),
    ]
    return [table for table in tables if table.rows]


def _command(report: Report) -> str | None:
    """Return the command that was recorded, or the one that reads the run's own settings."""
    recorded, source = report.provenance.get("command"), report.provenance.get("input")
    if recorded is None and source is not None:
        return f"kernelsimp simplify {shown(quote(str(source)))} --config settings.toml --out ../again"
    return None if recorded is None else shown(str(recorded))


def _settings(title: str, value: object) -> Table:
    return Table(title, ("name", "value"), pairs(flat(value)), frozenset({0, 1}))


def _walls(gallery: Gallery) -> list[Wall]:
    grouped: dict[str, list[Picture]] = {}
    for picture in gallery.pictures:
        grouped.setdefault(picture.layer, []).append(picture)
    return [_wall(place, layer, pictures) for place, (layer, pictures) in enumerate(grouped.items())]


def _wall(place: int, layer: str, pictures: list[Picture]) -> Wall:
    sheet = sprite(pictures)
    placed = [_placed(place, picture, box) for picture, box in zip(pictures, sheet.tiles, strict=True)]
    return Wall(shown(layer), sheet, tuple(placed))


def _placed(sheet: int, picture: Picture, box: tuple[int, int, int, int], *, full: bool = False) -> Shown:
    index = f"[{picture.index[0]},{picture.index[1]}]"
    figures_ = ["zeroed"] if picture.label == "zeroed" else [shown(picture.family), picture.label]
    figures_ += [f"r {words.number(picture.residual, 2)}"] if picture.residual is not None else []
    figures_ += [f"p {words.p_value(picture.p)}"] if picture.p is not None else []
    name = shown(picture.layer) + index if full else index
    caption = f"{name} {', '.join(figures_)}"
    alt = f"{name} before, after, difference"
    return Shown(sheet, " ".join(str(side) for side in box), shown(picture.family), caption, alt)


def _top(gallery: Gallery, walls: list[Wall]) -> list[Shown]:
    """Return the largest changes over all layers, the structures taking turns.

    A change is measured by the root mean square norm of its layer's drawn kernels.
    """
    sheets = {wall.layer: place for place, wall in enumerate(walls)}
    turns: dict[str, list[tuple[float, Picture, int]]] = {}
    for picture, place, norm in _normed(gallery):
        turns.setdefault(picture.family, []).append((picture.change / norm, picture, place))
    for items in turns.values():
        items.sort(key=lambda item: -item[0])
    dealt = (item for turn in zip_longest(*turns.values()) for item in turn if item is not None)
    chosen = sorted(islice(dealt, TOP), key=lambda item: -item[0])
    return [
        _placed(sheet := sheets[shown(picture.layer)], picture, walls[sheet].sheet.tiles[place], full=True)
        for _, picture, place in chosen
    ]


def _normed(gallery: Gallery) -> Iterator[tuple[Picture, int, float]]:
    """Yield each picture, its place within its layer, and the root mean square norm of its layer."""
    energies: dict[str, list[float]] = {}
    for picture in gallery.pictures:
        energies.setdefault(picture.layer, []).append(
            float(np.square(picture.before, dtype=np.float64).sum())
        )
    places = dict.fromkeys(energies, -1)
    for picture in gallery.pictures:
        places[picture.layer] += 1
        yield picture, places[picture.layer], float(np.sqrt(np.mean(energies[picture.layer]))) or 1.0


def _page(**context: Any) -> str:
    style, script = _asset("style.css"), _asset("page.js")
    fixed = {"style": style, "script": script, "policy": _policy(style, script)}
    blank: dict[str, Any] = {"walls": [], "top": [], "left_out": 0, "facts_below": [], "command": None}
    return _environment().get_template("page.html.j2").render({**blank, **context, **fixed})


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("kernelsimp.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


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
