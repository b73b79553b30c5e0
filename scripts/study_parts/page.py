"""The page of the study: verdicts first, then a table a claim. All of it comes from the kept results."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from study_parts.claims import CLAIMS
from study_parts.drawings import sureness
from study_parts.foresight import judged
from study_parts.ground import IMAGES
from study_parts.pictures import claim_figures
from study_parts.statistics import Gap, Row

WRONG = 0.05

PREDICTION = "prediction"
"""The claim whose cells are no verdicts, but networks to compare."""

HELD = ("holds", "does not hold", "cannot be told")

OPENING: dict[str, tuple[str, ...]] = {
    "Found structure is what the network meant: it is cheaper to snap": ("intent",),
    "Structure grows in training, and a channel's role chooses its family": ("growth", "roles"),
    "Kernels are co-adapted: layers cost more together": ("together",),
    "Solving the rest of every filter again repairs it": ("repair",),
    "Tuning around frozen kernels repairs it": ("tuning",),
    "Simplified networks are more robust, less overfitted, better calibrated": ("robustness", "trained"),
    "Simplified networks are easier to explain": ("selectivity",),
    "Networks decompose by families": ("decomposition",),
    "A simplified kernel carries less information": ("information",),
    "What a network shows before tells what simplifying will cost": ("prediction",),
}
"""The verdicts on top, each on these claims."""

UNANSWERED = (
    "Networks of one kind trained by different people: of ResNet-20 one was at hand, so its siblings in the "
    "table of what predicts the cost were made of it. ResNet-32 and 44 were not at hand.",
    "A network that is not in a claim's table was not measured on that claim. Of a thousand classes most "
    "have one test image or none, too few to say which classes a group of channels serves.",
    "What tuning repairs where one layer alone was changed: all layers are tuned at once.",
    "Bits a kernel of networks that were penalised or constrained while they were trained: see [three "
    "ways](study_three_ways.md).",
    "Bytes at a budget of accuracy, beside other coders: see [the study of coding](study_coding.md), "
    "whose figures were not measured again here.",
)


PICTURES = "images/study"
"""Beside the page."""


def write_page(measured: Sequence[Row], command: str, target: Path) -> None:
    """Write the page of cells that were measured, and its figures beside it."""
    cells = pooled(measured)
    level = level_of(cells)
    figures = {"verdicts": overview(cells, level), **claim_figures(measured)}
    folder = target.parent / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, drawing) in figures.items():
        (folder / f"{name}.svg").write_text(drawing, encoding="utf-8")
    shown = {name: f"![{words}]({PICTURES}/{name}.svg)" for name, (words, _) in figures.items()}
    target.write_text(page(cells, level, command, shown), encoding="utf-8")


def page(cells: Sequence[Row], level: float, command: str, shown: Mapping[str, str]) -> str:
    """Return the page; `shown` are its figures by claim, that of all under `verdicts`."""
    lines = ["# Do the founding claims hold?", ""]
    lines += [f"- {words}: {told(here, level)}." for words, here in opened(cells).items()]
    lines += ["", shown["verdicts"], "", *wrapped(introduction(cells, command)), ""]
    for claim in CLAIMS:
        if here := [cell for cell in cells if cell["claim"] == claim]:
            lines += [*section(claim, here, level, shown.get(claim)), ""]
    lines += [
        "## What was not asked",
        "",
        *(line for text in UNANSWERED for line in wrapped(f"- {text}", "  ")),
    ]
    return "\n".join(lines) + "\n"


def opened(cells: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the cells of each line on top, of those that were measured."""
    found = {words: [cell for cell in cells if cell["claim"] in claims] for words, claims in OPENING.items()}
    return {words: here for words, here in found.items() if here}


def overview(cells: Sequence[Row], level: float) -> tuple[str, str]:
    """Return words and drawing of where the first comparison of every measure lies."""
    rows = {
        words: [sure for rows in by_network(here).values() for row in rows for sure in _sureness(row, level)]
        for words, here in opened(cells).items()
    }
    words = "First comparison of every measure and network, a dot each: its gap in halves of its interval"
    return words, sureness(words, rows)


def _sureness(row: Row, level: float) -> Iterator[float]:
    """Yield the first gap over half of its corrected interval, where that has a width."""
    gap = gap_in(row["gaps"][0])
    half = gap.interval(level)[1] - gap.mean
    if half > 0:
        yield gap.mean / half


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
        "measure, in brackets on how many of a network's measures; they say that a gap is there, not that "
        "it is large. A gap is by how much the first of two arms is better. Intervals are over units "
        "(images, channels, layers...) and draws (other calibration images, or seeds) by Student's t, with "
        "the degrees of freedom that so few draws leave; they err on the wide side. A verdict is that of the "
        f"corrected interval: there are {count} comparisons on this page, and of all that hold or do not "
        f"hold {WRONG:.0%} may be chance (Benjamini and Hochberg), so it misses with probability "
        f"{level_of(cells):.2g}. *Cannot be told* is what is left where it holds zero, "
        "often for want of draws. Those of digits, LeNet, MobileNetV1 and EfficientNet-Lite0 were "
        "raised after a look at fewer. What is not in the tables was not measured."
    )


def told(cells: Sequence[Row], level: float) -> str:
    """Return the verdicts on all networks by their measures' first comparisons.

    A network has a claim's verdict where one measure has it, and none the opposite.
    """
    words: dict[str, list[str]] = {}
    for network, rows in by_network(cells).items():
        verdicts = [verdict(row["gaps"][0], level) for row in rows]
        for word in decided(verdicts):
            share = f" ({verdicts.count(word)} of {len(rows)})" if verdicts.count(word) < len(rows) else ""
            words.setdefault(word, []).append(network + share)
    told_so = [f"**{word}** on {', '.join(words[word])}" for word in HELD if word in words]
    return "; ".join(told_so) or "**nothing to compare**"


def by_network(cells: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of every network that are compared, those of all claims together."""
    found: dict[str, list[Row]] = {}
    for cell in cells:
        found.setdefault(cell["network"], []).extend(row for row in cell["rows"] if row["gaps"])
    return {network: rows for network, rows in found.items() if rows}


def decided(verdicts: Sequence[str]) -> list[str]:
    """Return which words to say of a network: what holds or does not, or that nothing does either.

    >>> decided(["holds", "cannot be told"]), decided(["cannot be told"] * 2)
    (['holds'], ['cannot be told'])
    """
    return [word for word in HELD[:2] if word in verdicts] or [HELD[2]]


def verdict(gap: Row, level: float) -> str:
    """Return what the interval that misses with probability `level` says of the claim of more than zero.

    >>> verdict({"mean": 1.0, "error": 0.1, "freedom": 50.0}, 0.01)
    'holds'
    """
    low, high = gap_in(gap).interval(level)
    return HELD[0] if low > 0 else HELD[1] if high < 0 else HELD[2]


def gap_in(gap: Mapping[str, float]) -> Gap:
    return Gap(gap["mean"], gap["error"], gap["freedom"])


def section(claim: str, cells: Sequence[Row], level: float, shown: str | None) -> Iterator[str]:
    """Yield the lines of one claim: its words, what to know, its figure, its table."""
    entry = CLAIMS[claim]
    heads = ("network", "measure", "arms", "comparison", "gap", "95 %", "corrected", "verdict")
    spent = ", ".join(f"{cell['network']} {cell['seconds']:.0f}" for cell in cells)
    told_first = f"{entry.remark} Units: {entry.unit}. CPU seconds: {spent}."
    yield from (f"## {entry.words}", "", *wrapped(told_first), "")
    if shown:
        yield from (shown, "")
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
