"""Layers from the first to the last as strips of cells, full of colour where there is much.

The cells stretch with the page while the words stay as large as those of the text, so a phone can read them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

from markupsafe import Markup

from kernelsimp.error_text import printable
from kernelsimp.records.report import LayerReport, Report
from kernelsimp.report import fmt
from kernelsimp.report.tables.run import layer_cells

SAYS = "The strips run from the first layer to the last; more colour is more. Point at a cell for its layer."

FEWEST = 2
"""A network of one layer has no depth to show."""


@dataclass(frozen=True)
class Strip:
    """One row: what it shows, a value a layer (0 is pale, `most` full), and each value as words."""

    name: str
    values: tuple[float | None, ...]
    most: float
    words: tuple[str, ...]
    range: str


def depth_strips(report: Report) -> tuple[Markup, ...]:
    """Return the strips of a run's layers, or nothing where there are too few."""
    layers = report.layers
    if len(layers) < FEWEST:
        return ()
    strips = [*_share_strips(layers)]
    errors = [layer.output_error for layer in layers]
    known = [value for value in errors if value is not None and isfinite(value)]
    if known:
        words = tuple(fmt.number(value) for value in errors)
        top = max(known) or 1.0
        strips.append(Strip("output error", tuple(errors), top, words, f"0 to {fmt.number(top)}"))
    return (strip_rows(strips, [printable(layer.name) for layer in layers]),)


def pair_strips(reports: tuple[Report, Report], names: tuple[str, str]) -> tuple[Markup, ...]:
    """Return the strips of two runs, or nothing where their layers differ or are too few."""
    one, other = ([layer.name for layer in report.layers] for report in reports)
    if one != other or len(one) < FEWEST:
        return ()
    pairs = zip(*(_share_strips(report.layers) for report in reports), strict=True)
    strips = [
        replace(strip, name=f"{strip.name}, {name}")
        for pair in pairs
        for strip, name in zip(pair, names, strict=True)
    ]
    return (strip_rows(strips, [printable(name) for name in one]),)


def _share_strips(layers: Sequence[LayerReport]) -> tuple[Strip, ...]:
    return (
        _shares("simplified", [layer.simplified / max(layer.kernels, 1) for layer in layers]),
        _shares("found", [layer.found / max(layer.kernels, 1) for layer in layers]),
        _shares("DOF left", [layer.dof / max(layer_cells(layer), 1) for layer in layers]),
    )


def strip_rows(strips: Sequence[Strip], names: Sequence[str]) -> Markup:
    """Return one row a strip over the layers called `names`, first to last."""
    ends = Markup('<p class="ends note"><span>first: {}</span><span>last: {}</span></p>').format(
        names[0], names[-1]
    )
    rows = Markup("").join(_row(strip, names) for strip in strips)
    return Markup('<div class="depth">{}{}</div>').format(rows, ends)


def _shares(name: str, values: Sequence[float]) -> Strip:
    return Strip(name, tuple(values), 1.0, tuple(fmt.share(value) for value in values), "0 to 100 %")


def _row(strip: Strip, names: Sequence[str]) -> Markup:
    cells = Markup("").join(
        Markup(
            '<rect x="{}" width="1" height="1" class="mark" fill-opacity="{}"><title>{}: {}</title></rect>'
        ).format(place, f"{max(0.0, min(1.0, value / strip.most)):.3f}", name, words)
        for place, (value, name, words) in enumerate(zip(strip.values, names, strip.words, strict=True))
        if value is not None and isfinite(value)
    )
    alt = f"{strip.name} of {len(names)} layers, first to last; the table has the figures"
    drawn = Markup(
        '<svg class="cells" viewBox="0 0 {} 1" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(len(names), alt, cells)
    return Markup('<div class="row"><span>{}</span>{}<span class="note">{}</span></div>').format(
        strip.name, drawn, strip.range
    )
