"""What a report and a scan say, as tables of text: the command line, Markdown and HTML draw these same rows.

Cells are plain text, unescaped; a rendering that draws them escapes them in its own way. Columns of figures
are aligned right.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from kernelsimp.error_text import printable
from kernelsimp.report import fmt


@dataclass(frozen=True)
class Table:
    """A title, column heads, rows of as many cells; `text` columns are left-aligned, the others right.

    `bars` gives for some columns a share 0..1 for each row, where a bar can be drawn beside a figure; `least`
    the columns that a narrow screen does without, those that go first before the others. A table that stands
    `whole` keeps all of them there, and breaks words.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: frozenset[int] = frozenset({0})
    bars: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    least: tuple[int, ...] = ()
    whole: bool = False

    @property
    def long(self) -> frozenset[int]:
        """The text columns with a cell that does not fit in a line of a page's table."""
        return frozenset(at for at in self.text if any(len(row[at]) > LINE for row in self.rows))


LINE = 24
"""Letters that a cell of a page's table holds on one line."""


@dataclass(frozen=True)
class Fact:
    """One figure of the headline: what it is, the figure, and what stands beside it."""

    name: str
    value: str
    note: str = ""


def cut_table(table: Table, most: int) -> Table:
    """Return the first `most` rows, and one that says how many more report.json has."""
    more = len(table.rows) - most
    if more <= 1:
        return table
    said = (f"and {more} more, in report.json", *[""] * (len(table.heads) - 1))
    bars = {column: (*shares[:most], sum(shares[most:])) for column, shares in table.bars.items()}
    return replace(table, rows=(*table.rows[:most], said), bars=bars)


def families_text(families: Mapping[str, int], most: int = 3, prototypes: int = 0) -> str:
    """Spell the commonest families with their counts, how many others there are, and prototypes in use."""
    ranked = ranked_families(families)
    named = [f"{printable(name)} {number:,}" for name, number in ranked[:most]]
    rest = len(ranked) - most
    used = f"; prototypes in use: {prototypes}" if prototypes else ""
    return ", ".join(named) + (f", {rest} more" if rest > 0 else "") + used


def figure_table(title: str, figures: Mapping[str, object] | None) -> Table:
    """Return nested figures as rows of dotted names."""
    rows = [(printable(name), _figure(value)) for name, value in flat(figures)]
    return Table(title, ("figure", "value"), tuple(rows))


def _figure(value: object) -> str:
    return fmt.number(value, 4) if isinstance(value, float) else printable(str(value))


def ranked_families(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the families that occur, the commonest first, names breaking ties."""
    return sorted(
        ((name, number) for name, number in counts.items() if number), key=lambda pair: (-pair[1], pair[0])
    )


def flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted name, value) of nested mappings; what is None is left out."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def pairs(items: Iterable[tuple[object, object]]) -> tuple[tuple[str, str], ...]:
    """Return rows of two cells of safe text."""
    return tuple((printable(str(name)), printable(str(value))) for name, value in items)
