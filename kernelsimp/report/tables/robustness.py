"""What robustness says, as tables and one small chart, from the `robustness` key of a report.

Accuracies are in percent. With two networks every change is paired: the same pictures for both.
"""

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from markupsafe import Markup

from kernelsimp.error_text import printable
from kernelsimp.evaluation.corrupted import CorruptionChange, PairedChange
from kernelsimp.evaluation.robustness import Robustness, RobustnessReport
from kernelsimp.records.serialise import MisfitError, restore
from kernelsimp.report import fmt
from kernelsimp.report.pictures.charts import Series, lines
from kernelsimp.report.tables.table import Table, figure_table

SAYS = (
    "How the networks stand pictures and weights that are not what they were trained on. Every network saw "
    "the same pictures; the test split is only measured on."
)


def robustness_tables(figures: Mapping[str, Any] | None) -> tuple[Table, ...]:
    """Return the tables of `figures`; what is not of the known form becomes rows of dotted names."""
    found = _read(figures)
    if found is None:
        table = figure_table("Robustness", figures)
        return (table,) if table.rows else ()
    return (
        _summary(found),
        *(_comparison(change) for change in found.changes),
        *(_corruptions(name, network) for name, network in found.models.items()),
        *(_cells(change) for change in found.changes),
    )


def robustness_charts(figures: Mapping[str, Any] | None) -> tuple[Markup, ...]:
    """Return accuracy against severity, one line a network; severity 0 is the unchanged pictures."""
    found = _read(figures)
    if found is None:
        return ()
    series = [
        Series(printable(name), (network.clean_top1, *_by_severity(network)))
        for name, network in found.models.items()
    ]
    return (lines("mean accuracy by severity, percent", series),)


def _read(figures: Mapping[str, Any] | None) -> RobustnessReport | None:
    try:
        return restore(RobustnessReport, dict(figures)) if figures else None
    except MisfitError:
        return None


def _by_severity(network: Robustness) -> list[float]:
    rows = [row.top1 for row in network.corruptions]
    return [fmean(column) for column in zip(*rows, strict=False)]


def _summary(found: RobustnessReport) -> Table:
    """Return one row a measure, one column a network."""
    columns = [dict(_measures(network)) for network in found.models.values()]
    rows = tuple((name, *(column.get(name, fmt.DASH) for column in columns)) for name in columns[0])
    heads = (
        f"{printable(found.suite)}, {found.images:,} test images",
        *(printable(name) for name in found.models),
    )
    return Table("Robustness", heads, rows)


def _measures(network: Robustness) -> Iterator[tuple[str, str]]:
    yield "accuracy, unchanged pictures", fmt.percent(network.clean_top1)
    yield "mean accuracy, corrupted pictures", fmt.percent(network.mean_corrupted_top1)
    for level in network.weight_noise:
        name = f"accuracy, weight noise of {fmt.percent(100 * level.level, 0)} RMS"
        yield name, f"{fmt.percent(level.top1)} (spread {fmt.number(level.spread)})"
    yield "same answer, mirrored picture", fmt.percent(network.consistency.flip)
    for pixels, share in network.consistency.shifts:
        yield f"same answer, shifted by {fmt.number(pixels)} px", fmt.percent(share)
    for attack in network.adversarial:
        steps = f", {attack.steps} steps" if attack.steps > 1 else ""
        name = f"accuracy, {attack.method.upper()} within {fmt.number(255 * attack.radius)}/255{steps}"
        yield name, fmt.percent(attack.top1)
    yield "calibration error", fmt.percent(network.calibration.error)
    yield "mean confidence", fmt.percent(network.calibration.confidence)
    if network.gap is not None:
        yield "accuracy on train less that on test", fmt.points(network.gap.gap_pp)


def _corruptions(name: str, network: Robustness) -> Table:
    """Return accuracy of one network, corruption by severity."""
    severities = dict.fromkeys(severity for row in network.corruptions for severity in row.severities)
    rows = tuple(
        (
            printable(row.corruption),
            *(fmt.percent(value, 1) for value in row.top1),
            fmt.percent(row.mean, 1),
        )
        for row in network.corruptions
    )
    return Table(f"Corruptions {printable(name)}", ("corruption", *map(str, severities), "mean"), rows)


def _comparison(change: CorruptionChange) -> Table:
    """Return what the change from one network to another comes to."""
    clean = change.clean
    mce = "the first makes no error somewhere" if change.mce is None else "100 is as many errors as before"
    better = f"{change.images_better:,} images right more often, {change.images_worse:,} less often"
    rows = (
        ("accuracy, unchanged pictures", fmt.points(clean.change_pp), _paired_words(clean)),
        ("mean accuracy, corrupted pictures", fmt.points(change.mean_change_pp), better),
        ("sign test over images", fmt.p_value(change.sign_p), "an image counts once"),
        ("mCE relative to the first", fmt.percent(change.mce), mce),
    )
    title = f"Robustness {printable(change.after)} against {printable(change.before)}"
    return Table(title, ("figure", "value", "beside it"), rows, frozenset({0, 2}))


def _paired_words(change: PairedChange) -> str:
    interval = fmt.interval(*change.ci95, "+.2f")
    return f"95 % interval {interval} pp, McNemar p {fmt.p_value(change.mcnemar_p)}"


def _cells(change: CorruptionChange) -> Table:
    """Return the change in every cell with its McNemar p, one row a corruption."""
    by_name: dict[str, list[PairedChange]] = {}
    for cell in change.cells:
        by_name.setdefault(cell.name, []).append(cell)
    rows = tuple((printable(name), *map(_cell, cells)) for name, cells in by_name.items())
    heads = [str(cell.severity) for cell in next(iter(by_name.values()), [])]
    title = f"Change {printable(change.after)} less {printable(change.before)}"
    return Table(title, ("corruption, pp (McNemar p)", *heads), rows)


def _cell(cell: PairedChange) -> str:
    return f"{cell.change_pp:+.1f} ({fmt.p_value(cell.mcnemar_p)})"
