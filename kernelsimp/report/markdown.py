"""report.md: what a person pastes into a pull request.

Foreign names are escaped so that they show as text in any Markdown renderer; nothing in them can open a
tag, a link, a table cell or a line.
"""

import re
from collections.abc import Sequence

from kernelsimp.error_text import printable
from kernelsimp.records.factorised import Factorised
from kernelsimp.records.report import Report
from kernelsimp.report import fmt
from kernelsimp.report.tables.coded import coded_tables
from kernelsimp.report.tables.comparison import similarity_tables
from kernelsimp.report.tables.course import course_tables, training_table
from kernelsimp.report.tables.factorised import alone_title, factorised_sections, factorised_title
from kernelsimp.report.tables.headline import headline, in_words, label_words, speed_words, survival_words
from kernelsimp.report.tables.pair import pair_tables
from kernelsimp.report.tables.robustness import robustness_tables
from kernelsimp.report.tables.run import control_table, family_table, layer_table, stage_table
from kernelsimp.report.tables.runs import Named, runs_table, warnings_of
from kernelsimp.report.tables.selectivity import selectivity_tables
from kernelsimp.report.tables.table import Table, flat, pairs
from kernelsimp.report.tables.verdict import budget_words, title_words

MOST_LAYERS = 60
"""Longer layer tables are cut: a pull request is no place for a thousand rows."""

_SPECIAL = re.compile(r"([\\`*_\[\]|~#!@])")


def escape_markdown(text: str) -> str:
    """Return `text` as Markdown that shows just these characters, on one line."""
    safe = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", safe)


def report_markdown(report: Report) -> str:
    """Return the report as Markdown with tables."""
    report = in_words(report)
    title = escape_markdown(title_words(report))
    parts = [f"# {title}", _lead(report), budget_words(report), _headline(report)]
    tables = [stage_table(report), control_table(report), family_table(report), layer_table(report)]
    tables += [
        *coded_tables(report),
        *robustness_tables(report.robustness),
        *similarity_tables(report.similarity),
        *selectivity_tables(report.selectivity),
    ]
    parts += [section(table) for table in tables if table.rows]
    parts += ["\n\n".join(filter(None, (section(table), says))) for table, says in course_tables(report)]
    if report.training:
        parts.append(section(_kept_epochs(report)))
    parts += [_list("Notes", report.notes), _list("Buffers changed", report.buffers_changed)]
    parts.append(section(_provenance(report)))
    return "\n\n".join(part for part in parts if part) + "\n"


def pair_markdown(reports: tuple[Report, Report], names: tuple[str, str]) -> str:
    """Return two runs side by side as Markdown."""
    parts = ["# Two runs side by side", *(section(table) for table in pair_tables(reports, names))]
    return "\n\n".join(parts) + "\n"


def runs_markdown(runs: Sequence[Named]) -> str:
    """Return any number of runs, each with its name, in one table as Markdown."""
    warned = [f"**Warning**: {escape_markdown(text)}." for text in warnings_of(runs)]
    return "\n\n".join([f"# {len(runs)} runs", *warned, section(runs_table(runs))]) + "\n"


def factorised_markdown(made: Factorised) -> str:
    """Return a factorised export as Markdown, with every row of its tables."""
    title, said = factorised_title(made)
    parts = [f"# {escape_markdown(title)}", said]
    for table, says in factorised_sections(made):
        body = table_markdown(table, len(table.rows))
        parts += filter(None, (f"## {alone_title(table)}", body, says))
    return "\n\n".join(parts) + "\n"


def section(table: Table) -> str:
    """Return a heading and the table under it."""
    return f"## {table.title}\n\n{table_markdown(table)}"


def table_markdown(table: Table, most: int = MOST_LAYERS) -> str:
    """Return a pipe table of at most `most` rows, and a line on how many are left out."""
    rule = ["---" if place in table.text else "---:" for place in range(len(table.heads))]
    body = [[escape_markdown(cell) for cell in row] for row in table.rows[:most]]
    lines = [
        f"| {' | '.join(row)} |" for row in ([escape_markdown(head) for head in table.heads], rule, *body)
    ]
    rest = len(table.rows) - most
    return "\n".join(lines) + (f"\n\n{rest:,} more rows in report.json." if rest > 0 else "")


def _lead(report: Report) -> str:
    if report.accuracy is None or not report.accuracy.stages:
        cost = "Accuracy was not measured."
    else:
        accuracy = report.accuracy
        low_high = fmt.interval(*accuracy.change_ci95, "+.2f")
        cost = f"Accuracy change {fmt.points(accuracy.change_pp)} (95 % {low_high}, McNemar p "
        cost += f"{fmt.p_value(accuracy.mcnemar_p)})."
    kernels = report.kernels
    what = f"{kernels.simplified:,} of {kernels.total:,} kernels simplified"
    left = f"{fmt.share(report.dof.fraction)} of the degrees of freedom left"
    parts = (
        f"**{what}** ({label_words(report)}); {left}.",
        survival_words(report),
        cost,
        speed_words(report),
    )
    return " ".join(filter(None, parts))


def _headline(report: Report) -> str:
    rows = tuple((fact.name, fact.value, fact.note) for fact in headline(report))
    return table_markdown(Table("", ("figure", "value", "beside it"), rows, frozenset({0, 2})))


def _kept_epochs(report: Report) -> Table:
    """Return the first, the kept and the last epoch: the curve is in report.html."""
    table = training_table(report)
    kept = [place for place, epoch in enumerate(report.training) if epoch.kept]
    places = sorted({0, *kept, len(report.training) - 1})
    word = "first, kept and last epoch" if kept else "first and last epoch; none was kept"
    return Table(f"{table.title}, {word}", table.heads, tuple(table.rows[i] for i in places))


def _provenance(report: Report) -> Table:
    facts = list(pairs(flat(report.provenance)))
    return Table("Provenance", ("what", "value"), tuple(facts), frozenset({0, 1}))


def _list(title: str, items: tuple[str, ...]) -> str:
    if not items:
        return ""
    lines = [f"- {escape_markdown(item)}" for item in items[:MOST_LAYERS]]
    rest = len(items) - MOST_LAYERS
    return "\n".join([f"## {title}", "", *lines, *([f"- and {rest:,} more"] if rest > 0 else [])])
