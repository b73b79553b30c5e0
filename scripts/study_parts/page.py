"""The page of the study: verdicts first, then a table a claim. All of it comes from the kept results."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from study_parts.claims import CLAIMS
from study_parts.foresight import judged
from study_parts.ground import IMAGES
from study_parts.statistics import Gap, Row

WRONG = 0.05

PREDICTION = "prediction"
"""The claim whose cells are no verdicts, but networks to compare."""

HELD = ("holds", "does not hold", "cannot be told")

UNANSWERED = (
    "Networks of one kind trained by different people: of ResNet-20 one was at hand, so its siblings in the "
    "table of what predicts the cost were made of it. ResNet-32 and 44 were not at hand.",
    "A network that is not in a claim's table was not measured on that claim.",
    "Bits a kernel of networks that were penalised or constrained while they were trained: see [three "
    "ways](study_three_ways.md).",
    "Bytes at a budget of accuracy, beside other coders: see [the study of coding](study_coding.md), "
    "whose figures were not measured again here.",
)


def page(measured: Sequence[Row], command: str) -> str:
    """Return the page of cells that were measured."""
    cells = pooled(measured)
    level = level_of(cells)
    lines = ["# Do the founding claims hold?", ""]
    by_claim = {claim: [cell for cell in cells if cell["claim"] == claim] for claim in CLAIMS}
    for claim, here in by_claim.items():
        if here:
            lines += [f"- {CLAIMS[claim].words}: {told(here, level)}."]
    lines += ["", *wrapped(introduction(cells, command)), ""]
    for claim, here in by_claim.items():
        if here:
            lines += [*section(claim, here, level), ""]
    lines += [
        "## What was not asked",
        "",
        *(line for text in UNANSWERED for line in wrapped(f"- {text}", "  ")),
    ]
    return "\n".join(lines) + "\n"


def pooled(cells: Sequence[Row]) -> list[Row]:
    """Return the cells, those of `prediction` as one: it compares networks with one another."""
    alone = [cell for cell in cells if cell["claim"] != PREDICTION]
    together = [cell for cell in cells if cell["claim"] == PREDICTION]
    return [*alone, judged(together, CLAIMS[PREDICTION].pairs)] if len(together) > 1 else alone


def comparisons(cells: Sequence[Row]) -> int:
    """Return how many gaps the page judges."""
    return sum(len(row["gaps"]) for cell in cells for row in cell["rows"])


def level_of(cells: Sequence[Row]) -> float:
    """Return with what probability a corrected interval misses, so that few verdicts of the page are wrong.

    The false discovery rate is that of Benjamini and Hochberg (1995), and intervals at the same level are
    theirs who may be selected (Benjamini and Yekutieli, 2005).
    """
    gaps = [gap for cell in cells for row in cell["rows"] for gap in row["gaps"]]
    ranked = enumerate(sorted(gap_in(gap).chance for gap in gaps), start=1)
    told = max((rank for rank, chance in ranked if chance <= WRONG * rank / len(gaps)), default=1)
    return WRONG * told / max(1, len(gaps))


def introduction(cells: Sequence[Row], command: str) -> str:
    spent, count = sum(cell["seconds"] for cell in cells) / 60, comparisons(cells)
    return (
        f"Measured by `{command}`, which keeps its results in `docs/study.jsonl` and with `--write "
        f"docs/study.md` makes this page of them; its cells took {spent:.0f} CPU minutes. At most {IMAGES} "
        "test images a draw, which choose nothing. Bold are the verdicts on the first comparison of each "
        "claim; they say that a gap is there, not that it is large. A gap is by how much the first of two "
        "arms is better. Intervals are over units (images, channels, layers...) and draws (other calibration "
        "images, or seeds) by Student's t, with the degrees of freedom that so few draws leave; they err on "
        "the wide side. A verdict is that of the "
        f"corrected interval: there are {count} comparisons on this page, and of all that hold or do not "
        f"hold {WRONG:.0%} may be chance (Benjamini and Hochberg), so it misses with probability "
        f"{level_of(cells):.2g}. *Cannot be told* is what is left where it holds zero, "
        "often for want of draws. Those of digits, LeNet and MobileNetV1 were raised after a look at fewer. "
        "What is not in the tables was not measured."
    )


def told(cells: Sequence[Row], level: float) -> str:
    """Return the verdicts on all networks by their measures' first comparisons, each with its networks."""
    words: dict[str, list[str]] = {}
    for cell in cells:
        judged_so: dict[str, list[str]] = {}
        for row in cell["rows"]:
            judged_so.setdefault(verdict(row["gaps"][0], level), []).append(row["measure"].split(",")[0])
        for word, measures in judged_so.items():
            words.setdefault(word, []).append(cell["network"] + _part(word, measures, len(cell["rows"])))
    told_so = [f"**{word}** on {', '.join(words[word])}" for word in HELD if word in words]
    return "; ".join(told_so) or "**nothing to compare**"


def _part(word: str, measures: Sequence[str], total: int) -> str:
    """Say of which measures a verdict is, where it is not that of all; by name where they are few."""
    if len(measures) == total:
        return ""
    few = word != HELD[2] and len(measures) < 4
    return f" ({', '.join(measures)})" if few else f" ({len(measures)} of {total} measures)"


def verdict(gap: Row, level: float) -> str:
    """Return what the interval that misses with probability `level` says of the claim of more than zero.

    >>> verdict({"mean": 1.0, "error": 0.1, "freedom": 50.0}, 0.01)
    'holds'
    """
    low, high = gap_in(gap).interval(level)
    return HELD[0] if low > 0 else HELD[1] if high < 0 else HELD[2]


def gap_in(gap: Mapping[str, float]) -> Gap:
    return Gap(gap["mean"], gap["error"], gap["freedom"])


def section(claim: str, cells: Sequence[Row], level: float) -> Iterator[str]:
    """Yield the lines of one claim: its words, what to know, its table."""
    entry = CLAIMS[claim]
    heads = ("network", "measure", "arms", "comparison", "gap", "95 %", "corrected", "verdict")
    yield from (f"## {entry.words}", "", *wrapped(f"{entry.remark} Units: {entry.unit}."), "")
    yield from (f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads))
    for cell in cells:
        for row in cell["rows"]:
            yield from lines_of(cell, row, level)
    for cell in cells:
        if "listed" in cell:
            yield from ("", *cell["listed"])


def lines_of(cell: Row, row: Row, level: float) -> Iterator[str]:
    """Yield a line for each comparison of one measure."""
    fact = f", {row['fact']}" if row["fact"] else ""
    first = [
        f"{cell['network']} ({cell['draws']} draws of {row['units']}{fact})",
        row["measure"],
        ", ".join(f"{name} {mean:.3g}" for name, mean in row["means"].items()),
    ]
    for gap in row["gaps"]:
        usual, strict = (gap_in(gap).interval(wrong) for wrong in (WRONG, level))
        figures = [f"{gap['mean']:+.2g}", *(f"{low:+.2g} to {high:+.2g}" for low, high in (usual, strict))]
        cells = [*first, f"{gap['better']} over {gap['other']}", *figures, verdict(gap, level)]
        yield f"| {' | '.join(cells)} |"
        first = ["", "", ""]


def wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
