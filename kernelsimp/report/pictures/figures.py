"""Which charts a report gets from which of its figures; none where the figures are not there.

The sentences beside the charts say what they can and cannot show.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from markupsafe import Markup

from kernelsimp.error_text import printable
from kernelsimp.records.report import Control, Report, Stage
from kernelsimp.records.scan import Scan
from kernelsimp.report import fmt
from kernelsimp.report.pictures.charts import curve
from kernelsimp.report.pictures.ideal import family_words
from kernelsimp.report.pictures.lanes import Level, SeenAgainstChance, against_chance, dots
from kernelsimp.report.pictures.scatter import Point, scatter
from kernelsimp.report.store import family_totals
from kernelsimp.report.tables.runs import Named, bytes_of, last_stage
from kernelsimp.report.tables.scan import found_by_family, null_of

Charts = tuple[Markup, ...]

CHANCE = (
    "A small kernel is often near a structure by chance, the more so in a smooth layer. A family is worth "
    "attention where the bar reaches well past the mark. Matching is within the tolerance, found is nearer "
    "than chance explains: a kernel may be one and not the other."
)
CONTROLS = (
    "What else the same budget buys. Where a control does as well as the run, the structures themselves "
    "are not what kept the accuracy."
)
MOST_FAMILIES = 20


def stages(report: Report) -> Charts:
    """Return the stages with their intervals on one scale, each with its change from the first."""
    if report.accuracy is None or not report.accuracy.stages:
        return ()
    levels = [_level(stage) for stage in report.accuracy.stages]
    return (dots(levels, marked=len(levels), changes=True),)


def pair_stages(reports: tuple[Report, Report], names: tuple[str, str]) -> Charts:
    """Return the stages of two runs on one scale; an original that both have stands once."""
    levels: dict[str, Level] = {}
    for report, name in zip(reports, names, strict=True):
        for place, stage in enumerate(report.accuracy.stages if report.accuracy else ()):
            level = _level(stage)
            if place or level not in levels.values():
                level = replace(level, name=f"{name}: {level.name}") if place or levels else level
                levels[level.name] = level
    return (dots([*levels.values()], marked=len(levels), changes=True),) if levels else ()


def controls(report: Report) -> Charts:
    """Return the run's stages and the control arms on one scale."""
    if not report.controls or report.accuracy is None or not report.accuracy.stages:
        return ()
    total = report.accuracy.stages[-1].total
    own = [_level(report.accuracy.stages[0]), _level(report.accuracy.stages[-1])]
    return (dots([*own, *(_arm(arm, total) for arm in report.controls)], marked=len(own)),)


def curves(report: Report) -> Charts:
    """Return loss and validation accuracy by epoch; a line marks the epoch that was kept."""
    epochs = report.training
    kept = next((place for place, epoch in enumerate(epochs, 1) if epoch.kept), None)
    drawn = (
        curve("training loss", [epoch.train_loss for epoch in epochs], "line-a", kept=kept),
        curve("validation loss", [epoch.val_loss for epoch in epochs], "line-b", kept=kept),
        curve("validation top-1, percent", [epoch.val_top1 for epoch in epochs], "line-b", 100, kept),
        curve("learning rate", [epoch.lr for epoch in epochs], "line-a", kept=kept),
    )
    return tuple(chart for chart in drawn if chart)


def chance(report: Report) -> Charts:
    """Return seen against expected from `pictures["chance"]`, the totals of a scan's families.

    What is found is what the run counts: kernels simplified to a structure that chance does not explain.
    """
    totals = report.pictures.get("chance")
    if not isinstance(totals, Mapping):
        return ()
    found: Counter[str] = Counter()
    for layer in report.layers:
        found.update(layer.families_found)
    told = bool(found) or not report.kernels.found  # reports of before this count do not tell
    return _chance(totals, found=found if told else None)


def scan_chance(scan: Scan) -> Charts:
    """Return seen against expected for each family of a scan, under the null it was asked for."""
    return _chance(family_totals(scan), null_of(scan), found_by_family(scan))


def _chance(totals: Mapping[str, Any], asked: str = "ring", found: Mapping[str, int] | None = None) -> Charts:
    """Draw under the null that was asked for, or another that is there; the largest excess first."""
    nulls = [null for total in totals.values() for null in total.get("null", {})]
    null = next((name for name in (asked, "ring", "matched", "permuted", "white") if name in nulls), None)
    if null is None:
        return ()
    rows = [
        SeenAgainstChance(
            printable(family_words(name)),
            float(total["observed"]),
            chance.get("expected"),
            (chance.get("found") or 0) if found is None else found.get(name, 0),
        )
        for name, total in totals.items()
        for chance in [_null_of(total["null"], null)]
        if total["observed"] or (found or {}).get(name) or (chance.get("expected") or 0) >= 0.5
    ]
    rows.sort(key=lambda row: (-(row.seen - (row.expected or 0)), row.name))
    return (against_chance(rows[:MOST_FAMILIES], null),) if rows else ()


def _null_of(counts: Mapping[str, Any], null: str) -> Mapping[str, Any]:
    """Return the counts under `null`, else under the one that the family has, else nothing."""
    own: Mapping[str, Any] = counts.get(null) or next(iter(counts.values()), {})
    return own


def _level(stage: Stage) -> Level:
    return Level(printable(stage.stage), stage.top1, *stage.ci95)


def _arm(arm: Control, total: int) -> Level:
    """Return a control arm; its interval is the normal one, for the eye only."""
    half = 196 * float(np.sqrt(max(arm.top1 / 100 * (1 - arm.top1 / 100), 0) / max(total, 1)))
    return Level(printable(arm.name), arm.top1, max(arm.top1 - half, 0), min(arm.top1 + half, 100))


def runs(ordered: Sequence[Named]) -> tuple[Markup, ...]:
    """Return accuracy against degrees of freedom left and against bytes, of the runs that measured it."""
    drawn = [(name, report, stage) for name, report in ordered if (stage := last_stage(report))]
    if not drawn:
        return ()
    axes = (
        (
            "degrees of freedom left",
            lambda report: 100 * report.dof.fraction,
            lambda value: fmt.percent(value, 0),
        ),
        ("bytes, packed or zipped", lambda report: float(bytes_of(report)), fmt.size),
    )
    return tuple(
        scatter(
            [Point(name, x(report), stage.top1, *stage.ci95) for name, report, stage in drawn], axis, spell
        )
        for axis, x, spell in axes
    )
