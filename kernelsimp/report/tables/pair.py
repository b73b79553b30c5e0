"""Two runs side by side, as tables: the same figures of each, and the difference where it is a number.

A layer that only one run has stands with a dash for the other.
"""

from collections.abc import Callable

from kernelsimp.error_text import printable
from kernelsimp.records.report import LayerReport, Report
from kernelsimp.report import fmt
from kernelsimp.report.tables.headline import headline, in_words
from kernelsimp.report.tables.run import layer_cells
from kernelsimp.report.tables.table import Fact, Table, flat
from kernelsimp.report.tables.verdict import title_words

Names = tuple[str, str]
Pair = tuple[Report, Report]


def pair_tables(reports: Pair, names: Names) -> tuple[Table, ...]:
    """Return headline, stages, layers and differing settings of two reports called `names`."""
    one, other = map(in_words, reports)
    reports = (one, other)
    titles = (printable(names[0]), printable(names[1]))
    tables = (
        _headlines(reports, titles),
        _stages(reports, titles),
        _layers(reports, titles),
        _settings(reports, titles),
    )
    return tuple(table for table in tables if table.rows)


def pair_title(reports: Pair, names: Names) -> str:
    """Return what became of both, in the words of a title."""
    verdicts = (title_words(report).partition(": ")[2] for report in reports)
    return "; ".join(f"{name}: {verdict}" for name, verdict in zip(names, verdicts, strict=True))


def pair_facts(reports: Pair, names: Names) -> tuple[Fact, ...]:
    """Return the three figures of the first screen, of the first run and of the other."""
    both = f"{names[0]} | {names[1]}"
    stages = [report.accuracy.stages if report.accuracy else () for report in reports]
    right = [fmt.percent(part[-1].top1) if part else fmt.DASH for part in stages]
    spans = [fmt.interval(*part[-1].ci95) if part else "not measured" for part in stages]
    shares = [fmt.share(report.kernels.simplified, report.kernels.total) for report in reports]
    found = [f"{fmt.count(report.kernels.found)} found" for report in reports]
    left = [fmt.share(report.dof.fraction) for report in reports]
    files = [fmt.size(report.size.packed or report.size.file) for report in reports]
    rows = (
        ("accuracy after", right, f"95 % intervals {spans[0]} | {spans[1]}"),
        ("kernels simplified", shares, f"{found[0]} | {found[1]}"),
        ("degrees of freedom left", left, f"{files[0]} | {files[1]}"),
    )
    return tuple(Fact(f"{name}, {both}", " | ".join(values), note) for name, values, note in rows)


def _headlines(reports: Pair, names: Names) -> Table:
    return _join_columns("Headline", "figure", names, [_facts(report) for report in reports])


def _facts(report: Report) -> dict[str, str]:
    """Return the headline, the note beside a figure in brackets."""
    return {fact.name: _with_note(fact) for fact in headline(report)}


def _with_note(fact: Fact) -> str:
    return f"{fact.value} ({fact.note})" if fact.note else fact.value


def _stages(reports: Pair, names: Names) -> Table:
    columns = []
    for report in reports:
        stages = report.accuracy.stages if report.accuracy else ()
        columns.append({printable(s.stage): f"{fmt.percent(s.top1)} ({fmt.right_of(s)})" for s in stages})
    return _join_columns("Accuracy", "stage", names, columns)


def _settings(reports: Pair, names: Names) -> Table:
    """Return the settings and provenance that differ."""
    columns = []
    for report in reports:
        items = flat({**report.settings, "provenance": report.provenance})
        columns.append({printable(name): printable(str(value)) for name, value in items})
    keys = [key for key in {**columns[0], **columns[1]} if columns[0].get(key) != columns[1].get(key)]
    return _join_columns(
        "Differing settings", "name", names, [{k: c[k] for k in keys if k in c} for c in columns]
    )


def _join_columns(title: str, head: str, names: Names, columns: list[dict[str, str]]) -> Table:
    keys = dict.fromkeys([*columns[0], *columns[1]])
    rows = tuple((key, *(column.get(key, fmt.DASH) for column in columns)) for key in keys)
    return Table(title, (head, *names), rows, frozenset({0, 1, 2}), whole=True)


FIGURES: tuple[tuple[str, Callable[[LayerReport], str]], ...] = (
    ("simplified", lambda layer: fmt.share(layer.simplified, layer.kernels)),
    ("DOF left", lambda layer: fmt.share(layer.dof, layer_cells(layer))),
    ("weight error", lambda layer: fmt.number(layer.weight_error)),
    ("output error", lambda layer: fmt.number(layer.output_error)),
)


def _layers(reports: Pair, names: Names) -> Table:
    known = [{layer.name: layer for layer in report.layers} for report in reports]
    rows = []
    for name in dict.fromkeys([*known[0], *known[1]]):
        layers = [layers.get(name) for layers in known]
        cells = (spell(layer) if layer else fmt.DASH for _, spell in FIGURES for layer in layers)
        rows.append((printable(name), *cells))
    heads = tuple(f"{figure}, {name}" for figure, _ in FIGURES for name in names)
    return Table("Layers", ("layer", *heads), tuple(rows))
