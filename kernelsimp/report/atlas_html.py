"""atlas.html: one page over many networks, under the same policy as the page of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from kernelsimp.error_text import printable
from kernelsimp.report import atlas, fmt
from kernelsimp.report.atlas import Group, Row, Spread
from kernelsimp.report.html import Section, page
from kernelsimp.report.pictures import scan as pictures
from kernelsimp.report.pictures.lanes import Level, dots
from kernelsimp.report.tables.table import Fact, Table

SCHEMA = "kernelsimp.atlas/1"

SAYS = (
    "Percent of a network's live kernels within the tolerance of a linear family or rank one, beside the "
    "same kernels with their cells shuffled. Means over networks, each counted once, with 95 % intervals "
    "over networks; the chart shows the excess over chance."
)
RANKED = "Networks by structure beyond chance: the excess of near kernels over chance, in percentage points."
FIRST = 8
"""Families on the first screen."""
TYPICAL = "Of each family the most typical of the nearest kernels over all networks, one a size."


def atlas_html(networks: Sequence[Row], families: Sequence[Row]) -> str:
    """Return the atlas of a data set's networks, `Dataset.networks`, and its layers by families."""
    scanned = [row for row in networks if row["error"] is None]
    known = {row["sha256"] for row in scanned}
    families = [row for row in families if row["sha256"] in known]
    layers = atlas.layers_of(families)
    task = {row["sha256"]: row["task"] for row in scanned}
    sections = [
        *_grouped("By kind", atlas.grouped(layers, atlas.by_kind), SAYS),
        *_grouped("By kernel size", atlas.grouped(layers, atlas.by_size)),
        *_grouped("By depth", atlas.grouped(layers, atlas.by_depth)),
        *_grouped("By kind and depth", atlas.grouped(layers, atlas.by_kind_and_depth)),
        *_grouped("By task", atlas.grouped(layers, lambda layer: task[layer["sha256"]])),
        Section("Networks", tables=(network_table(scanned),), says=RANKED, sortable=True),
        Section("Typical kernels", _typical(families), says=TYPICAL),
        Section("Not had", tables=(failed_table(networks),), folded=True),
    ]
    return page(
        title="Atlas of kernels",
        lead="What the kernels of many networks look like, beside what chance alone would give.",
        facts=facts(scanned, layers),
        samples=_typical(families)[:FIRST],
        samples_say=TYPICAL,
        sections=[item for item in sections if item.charts or any(table.rows for table in item.tables)],
        schema=SCHEMA,
    )


def facts(scanned: Sequence[Row], layers: Sequence[Row]) -> tuple[Fact, ...]:
    """Return the figures on top."""
    depthwise = {layer["sha256"] for layer in layers if layer["kind"] == "depthwise"}
    kernels = sum(row["kernels"] for row in scanned)
    whole = atlas.grouped(layers, lambda _: "all")
    told = [Fact("excess over chance", _pp(whole[0].excess), _interval(whole[0].excess))] if whole else []
    return (
        Fact("networks", fmt.count(len(scanned)), f"{len(depthwise)} with depthwise layers"),
        Fact("kernels", fmt.count(kernels), "larger than 1x1"),
        *told,
    )


def group_table(title: str, groups: Sequence[Group]) -> Table:
    """Return one row a group, figures over networks."""
    rows = tuple(
        (
            printable(group.name),
            fmt.count(group.near.count),
            fmt.count(group.kernels),
            fmt.percent(group.near.mean, 1),
            fmt.percent(group.chance.mean, 1),
            _pp(group.excess),
            _interval(group.excess),
            fmt.percent(group.beyond.mean, 2),
        )
        for group in groups
    )
    heads = ("group", "networks", "kernels", "near", "chance", "excess", "95 % interval", "beyond its layer")
    return Table(title, heads, rows)


def network_table(scanned: Sequence[Row]) -> Table:
    """Return one row a network, the one with most structure beyond chance first."""
    ranked = sorted(scanned, key=lambda row: (-excess_of(row), row["source"]))
    rows = tuple(
        (
            printable(row["source"]),
            printable(row["architecture"] or fmt.DASH),
            printable(row["task"] or fmt.DASH),
            fmt.count(row["kernels"]),
            fmt.count(row["found"]),
            fmt.count(row["beyond"]),
            fmt.share(row["near"], row["near_of"]),
            fmt.share(row["near_by_chance"], row["near_of"]),
            fmt.points(excess_of(row)) if row["near_of"] else fmt.DASH,
        )
        for row in ranked
    )
    heads = (
        "network",
        "looks like",
        "task",
        "kernels",
        "found",
        "beyond its layer",
        "near",
        "chance",
        "excess",
    )
    return Table("Networks", heads, rows, frozenset({0, 1, 2}))


def failed_table(networks: Sequence[Row]) -> Table:
    """Return the sources that could not be had, and why."""
    rows = tuple((printable(row["source"]), printable(row["error"])) for row in networks if row["error"])
    return Table("Not had", ("source", "reason"), rows, frozenset({0, 1}))


def excess_of(row: Mapping[str, Any]) -> float:
    """Return by how many percentage points of live kernels more lie near a structure than by chance."""
    return 100 * (row["near"] - row["near_by_chance"]) / row["near_of"] if row["near_of"] else -100.0


def _grouped(title: str, groups: Sequence[Group], says: str = "") -> list[Section]:
    levels = [
        Level(printable(group.name), group.excess.mean, group.excess.low, group.excess.high)
        for group in groups
        if group.excess.low is not None and group.excess.high is not None
    ]
    charts = (dots(levels, marked=len(levels), unit="pp"),) if levels else ()
    return [Section(title, charts, (group_table(title, groups),), says)] if groups else []


def _typical(families: Sequence[Row]) -> tuple[Markup, ...]:
    return tuple(
        pictures.img(
            pictures.sheet([pictures.tile(kernel) for kernel in kernels]),
            f"typical kernels of the family {printable(name)}",
            printable(name),
        )
        for name, kernels in atlas.typical_kernels(families).items()
    )


def _pp(value: Spread) -> str:
    return fmt.points(value.mean)


def _interval(value: Spread) -> str:
    if value.low is None or value.high is None:
        return "one network"
    return f"{value.low:+.2f} to {value.high:+.2f}"
