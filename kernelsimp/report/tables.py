"""What a report and a scan say, as tables of text: the command line, Markdown and HTML draw these same rows.

Cells are plain text, unescaped; a face that draws them escapes them in its own way. Columns of figures
are aligned right.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kernelsimp.kernels.families import ZERO
from kernelsimp.kernels.structures import DENOISED
from kernelsimp.records.report import LayerReport, Report
from kernelsimp.records.scan import Explanation, LayerScan, Scan
from kernelsimp.records.verdict import shown
from kernelsimp.report import words
from kernelsimp.report.store import family_totals


@dataclass(frozen=True)
class Table:
    """A title, column heads, rows of as many cells; `text` columns are left-aligned, the others right.

    `bars` gives for some columns a share 0..1 for each row, for faces that can draw a bar beside a figure.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: frozenset[int] = frozenset({0})
    bars: Mapping[int, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fact:
    """One figure of the headline: what it is, the figure, and what stands beside it."""

    name: str
    value: str
    note: str = ""


def stage_table(report: Report) -> Table:
    """Return accuracy at each stage; the change is against the first."""
    stages = report.accuracy.stages if report.accuracy else ()
    rows = [
        (
            shown(stage.stage),
            words.percent(stage.top1),
            words.right_of(stage),
            words.interval(*stage.ci95),
            words.points(stage.top1 - stages[0].top1) if place else words.DASH,
            words.number(stage.loss),
        )
        for place, stage in enumerate(stages)
    ]
    return Table("Accuracy", ("stage", "top-1", "correct", "95 % interval", "change", "loss"), tuple(rows))


def layer_table(report: Report) -> Table:
    """Return one row a layer; the output error only where it was measured."""
    heads = ("layer", "kind", "shape", "kernels", "simplified", "found", "DOF left", "weight error")
    measured = any(layer.output_error is not None for layer in report.layers)
    last = (*(["output error"] if measured else []), "structures")
    rows = tuple(_layer_row(layer, measured=measured) for layer in report.layers)
    simplified = tuple(layer.simplified / max(layer.kernels, 1) for layer in report.layers)
    left = tuple(layer.dof / max(layer_cells(layer), 1) for layer in report.layers)
    text = frozenset({0, 1, 2, len(heads + last) - 1})
    return Table("Layers", heads + last, rows, text, {4: simplified, 6: left})


def _layer_row(layer: LayerReport, *, measured: bool) -> tuple[str, ...]:
    return (
        shown(layer.name),
        layer.kind,
        words.shape(layer.weight_shape),
        words.count(layer.kernels),
        words.count(layer.simplified),
        words.count(layer.found),
        words.share(layer.dof, layer_cells(layer)),
        words.number(layer.weight_error),
        *([words.number(layer.output_error)] if measured else []),
        families_text(layer.families),
    )


def layer_cells(layer: LayerReport) -> int:
    """Return the cells in all kernels of a layer: its degrees of freedom before."""
    cells = 1
    for side in layer.weight_shape[2:]:
        cells *= side
    return layer.kernels * cells


def families_text(families: Mapping[str, int], most: int = 3) -> str:
    """Spell the commonest families with their counts, and how many others there are."""
    ranked = ranked_families(families)
    named = [f"{shown(name)} {number:,}" for name, number in ranked[:most]]
    rest = len(ranked) - most
    return ", ".join(named) + (f", {rest} more" if rest > 0 else "")


def family_table(report: Report) -> Table:
    """Return the kernels of each structure over all layers, found and imposed, the commonest first.

    Where a training held nothing, two more columns say how many are still in it, exactly and nearly.
    """
    totals, found = _summed(report, "families"), _summed(report, "families_found")
    told = bool(found) or not report.kernels.found  # reports of before this count do not tell
    ranked = ranked_families(totals)
    whole, left = report.kernels.total, report.survived
    rows = []
    for name, number in ranked:
        labelled = told and name != ZERO and not name.startswith(DENOISED)  # in no family, so neither
        seen = words.count(found.get(name, 0) if labelled else None)
        imposed = words.count(number - found.get(name, 0) if labelled else None)
        still = map(words.count, left.families.get(name, (None, None))) if left else ()
        rows.append((shown(name), words.count(number), seen, imposed, words.share(number, whole), *still))
    shares = tuple(number / max(whole, 1) for _, number in ranked)
    heads = ("structure", "kernels", "found", "imposed", "share of all")
    more = ("still exactly", "within 0.1") if left else ()
    return Table("Structures", heads + more, tuple(rows), bars={4: shares})


def _summed(report: Report, name: str) -> dict[str, int]:
    """Return one of the layers' counts by structure, summed over the layers."""
    totals: Counter[str] = Counter()
    for layer in report.layers:
        totals.update(getattr(layer, name))
    return dict(totals)


def figure_table(title: str, figures: Mapping[str, object] | None) -> Table:
    """Return nested figures as rows of dotted names."""
    rows = [(shown(name), _figure(value)) for name, value in flat(figures)]
    return Table(title, ("figure", "value"), tuple(rows))


def _figure(value: object) -> str:
    return words.number(value, 4) if isinstance(value, float) else shown(str(value))


def ranked_families(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the families that occur, the commonest first, names breaking ties."""
    return sorted(
        ((name, number) for name, number in counts.items() if number), key=lambda pair: (-pair[1], pair[0])
    )


def control_table(report: Report) -> Table:
    """Return the control arms: what else the same budget buys."""
    heads = ("control", "DOF left", "top-1", "correct", "change", "McNemar p", "to the run, 95 % interval")
    rows = [
        (
            shown(arm.name),
            words.share(arm.dof),
            words.percent(arm.top1),
            words.count(arm.correct),
            words.points(arm.change_pp),
            words.p_value(arm.mcnemar_p),
            f"{arm.outcome}, {words.interval(*arm.change_ci95)}" if arm.change_ci95 else words.DASH,
        )
        for arm in report.controls
    ]
    return Table("Controls", heads, tuple(rows), frozenset({0, 6}))


def scan_facts(scan: Scan) -> tuple[Fact, ...]:
    """Return the figures of a scan that a reader needs first."""
    kernels, dead = sum(layer.kernels for layer in scan.layers), sum(layer.dead for layer in scan.layers)
    matching = sum(int((layer.best >= 0).sum()) for layer in scan.layers)
    found = sum(int(layer.found.sum()) for layer in scan.layers)
    tolerance, fdr = (words.number(scan.settings.get(name)) for name in ("tolerance", "fdr"))
    skipped = f"tensors skipped: {len(scan.skipped):,}"
    rule = f"not explained by the {null_of(scan)} null, at a false discovery rate of {fdr}"
    return (
        Fact("layers larger than 1x1", words.count(len(scan.layers)), skipped),
        Fact("kernels", words.count(kernels), f"{dead:,} dead; {scan.pointwise:,} pointwise besides"),
        Fact("matching a family", words.count(matching), f"relative residual at most {tolerance}"),
        Fact("found", words.count(found), rule),
    )


def near_words(scan: Scan) -> str | None:
    """Say how many live kernels lie near any usual family, beside the same kernels with shuffled cells."""
    parts = [layer.extra["near_any"] for layer in scan.layers if layer.extra.get("near_any")]
    live = sum(part["live"] for part in parts)
    if not live:
        return None
    near, chance = (words.share(sum(part[key] for part in parts), live) for key in ("observed", "permuted"))
    tolerance = words.number(scan.settings.get("tolerance"))
    return (
        f"{near} of live kernels lie within {tolerance} of one of the 17 linear families or rank one, "
        f"{chance} when their cells are shuffled"
    )


def null_of(scan: Scan) -> str:
    """Return the null that the scan was asked for."""
    return str(scan.settings.get("null") or "white")


def scan_family_table(scan: Scan) -> Table:
    """Return each family over all layers beside what every null expects by chance."""
    totals, asked = family_totals(scan), null_of(scan)
    nulls = tuple(dict.fromkeys(null for total in totals.values() for null in total["null"]))
    heads = ("family", "layers", "matches", *(f"by chance, {null}" for null in nulls))
    rows = []
    for name, total in totals.items():
        chance = total["null"].get(asked, {})
        figures = (words.number(total["null"].get(null, {}).get("expected")) for null in nulls)
        counts = (str(total["layers"]), words.count(total["observed"]), *figures)
        last = (_times(chance.get("enrichment")), words.count(chance.get("found")))
        rows.append((shown(name), *counts, *last))
    return Table("Families", (*heads, f"matches / {asked}", f"found, {asked}"), tuple(rows))


def scan_family_brief(scan: Scan) -> Table:
    """Return the families that have matches beside the one null each is judged by: for a narrow terminal."""
    heads = ("family", "matches", "by chance", "matches / chance", "found", "null")
    rows = []
    for name, total in family_totals(scan).items():
        null = null_of(scan) if null_of(scan) in total["null"] else next(iter(total["null"]), "")
        chance = total["null"].get(null, {})
        if total["observed"]:
            figures = (words.number(chance.get("expected")), _times(chance.get("enrichment")))
            found = words.count(chance.get("found"))
            rows.append((shown(name), words.count(total["observed"]), *figures, found, null))
    return Table("Families", heads, tuple(rows), frozenset({0, 5}))


def most_structured(scan: Scan) -> tuple[LayerScan, ...]:
    """Return the layers by the share of their kernels that is found, then by the share that matches."""
    return tuple(sorted(scan.layers, key=_structured, reverse=True))


def _structured(layer: LayerScan) -> tuple[float, float]:
    count = max(layer.kernels, 1)
    return float(layer.found.sum()) / count, float((layer.best >= 0).sum()) / count


def sentence_table(scan: Scan) -> Table:
    """Return what the kernels of each layer look like in one sentence, the most structured layers first."""
    rows = tuple((shown(layer.name), shown(layer.sentence)) for layer in most_structured(scan))
    return Table("In words", ("layer", "what its kernels look like"), rows, frozenset({0, 1}))


def explanation_table(explained: Explanation) -> Table:
    """Return the structures a kernel was measured against, those that match first, with each null's p."""
    nulls = tuple(dict.fromkeys(null for item in explained.candidates for null in item.p))
    rows = tuple(
        (
            shown(item.name),
            str(item.dim),
            words.number(item.residual),
            "yes" if item.matches else "",
            *(words.p_value(item.p.get(null)) for null in nulls),
        )
        for item in explained.candidates
    )
    heads = ("structure", "DOF", "residual", "matches", *(f"p, {null}" for null in nulls))
    return Table("Candidates", heads, rows, frozenset({0, 3}))


def scan_layer_table(scan: Scan) -> Table:
    """Return one row a layer, the most structured first: matches, found, and the commonest families."""
    heads = ("layer", "kind", "shape", "kernels", "dead", "matching", "found", "best families")
    layers = most_structured(scan)
    rows = tuple(_scan_row(scan, layer) for layer in layers)
    shares = tuple(float((layer.best >= 0).mean()) if layer.best.size else 0.0 for layer in layers)
    return Table("Layers", heads, rows, frozenset({0, 1, 2, 7}), {5: shares})


def _scan_row(scan: Scan, layer: LayerScan) -> tuple[str, ...]:
    best = layer.best.reshape(-1)
    places = sorted(set(best[best >= 0].tolist()))
    counts = {scan.families[place]: int((best == place).sum()) for place in places}
    return (
        shown(layer.name),
        layer.kind,
        words.shape(layer.weight_shape),
        words.count(layer.kernels),
        words.count(layer.dead),
        words.count(sum(counts.values())),
        words.count(int(layer.found.sum())),
        families_text(counts),
    )


def skipped_table(scan: Scan) -> Table:
    """Return the tensors that were passed over, and why."""
    return Table("Skipped", ("tensor", "reason"), pairs(scan.skipped), frozenset({0, 1}))


def flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted name, value) of nested mappings; what is None is left out."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def pairs(items: Iterable[tuple[object, object]]) -> tuple[tuple[str, str], ...]:
    """Return rows of two cells of safe text."""
    return tuple((shown(str(name)), shown(str(value))) for name, value in items)


def _times(value: float | None) -> str:
    return words.DASH if value is None else f"{words.number(value)} x"
