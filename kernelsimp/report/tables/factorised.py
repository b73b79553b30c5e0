"""A factorised export as JSON, tables and Markdown."""

from typing import Any

from kernelsimp.error_text import printable
from kernelsimp.records.factorised import Factorised, FactorisedLayer, Latency, Ratio, Timing
from kernelsimp.records.serialise import to_plain
from kernelsimp.report import fmt
from kernelsimp.report.markdown import escape_markdown, section
from kernelsimp.report.tables.table import Table

ENGINE_NAMES = {"eager": "torch", "compile": "torch.compile", "onnx": "ONNX Runtime"}


def factorised_json(made: Factorised) -> dict[str, Any]:
    """Return the export as JSON values under the keys of schema `kernelsimp.factorised/1`."""
    return {"schema": made.schema, **to_plain(made)}


def factorised_tables(made: Factorised) -> tuple[Table, ...]:
    """Return the layers, what the whole costs, its latency, and how its files were checked."""
    tables = (_layers(made), _whole(made), _latency(made), _outputs(made))
    return tuple(table for table in tables if table.rows)


def factorised_markdown(made: Factorised) -> str:
    """Return the export as Markdown: what was measured where, the tables, and what is worth saying."""
    lead = f"Measured on {escape_markdown(made.machine)}. Ranks chosen by {made.cost}."
    parts = ["# What thinner layers buy at run time", lead, *map(section, factorised_tables(made))]
    parts += [f"- {escape_markdown(note)}" for note in made.notes]
    return "\n\n".join(parts) + "\n"


def milliseconds(time: Timing | None) -> str:
    """Spell a median with its quartiles, in milliseconds."""
    if time is None:
        return fmt.DASH
    low, median, high = (fmt.number(1e3 * value) for value in (time.low, time.median, time.high))
    return f"{median} ({low} to {high})"


def ratio_words(ratio: Ratio | None) -> str:
    """Spell a ratio of times with its interval."""
    if ratio is None:
        return fmt.DASH
    return f"{fmt.number(ratio.value)} ({fmt.interval(ratio.low, ratio.high)})"


def _layers(made: Factorised) -> Table:
    heads = ("layer", "rank", "of", "MACs left", "times as fast", "ms whole", "ms now", "shape", "MACs", "")
    rows = tuple(_layer(layer) for layer in made.layers)
    title = f"Layers, timed at {made.batch} images, {made.layout}"
    return Table(title, heads, rows, frozenset({0, 7, 9}), least=(8, 7, 6, 5))


def _layer(layer: FactorisedLayer) -> tuple[str, ...]:
    thin = layer.rank > 0
    of = f"{layer.channels} channels" if layer.channels else fmt.count(layer.full_rank)
    note = layer.why or ("" if layer.exact else "fitted")
    return (
        printable(layer.name),
        fmt.count(layer.rank) if thin else "whole",
        of,
        fmt.share(layer.macs_after, layer.macs_before) if thin else fmt.DASH,
        ratio_words(layer.ratio),
        milliseconds(layer.before),
        milliseconds(layer.after),
        fmt.shape(layer.weight_shape),
        fmt.count(layer.macs_before),
        printable(note),
    )


def _whole(made: Factorised) -> Table:
    rows = [
        (name, fmt.count(old), fmt.count(new), fmt.share(new, old))
        for name, (old, new) in (("parameters", made.parameters), ("MACs", made.macs))
    ]
    if made.answers is not None:
        found = made.answers
        change = 100 * (found.after - found.before) / max(found.total, 1)
        name = f"right of {found.total:,} {found.split} images"
        rows.append((name, fmt.count(found.before), fmt.count(found.after), fmt.points(change)))
    return Table("Before and after", ("", "before", "after", "left, or change"), tuple(rows))


def _latency(made: Factorised) -> Table:
    heads = ("engine", "images", "times as fast", "so it is", "ms before", "ms after")
    rows = tuple(_latency_row(item) for item in made.latency)
    return Table("The whole network", heads, rows, frozenset({0, 3}), least=(5, 4))


def _latency_row(item: Latency) -> tuple[str, ...]:
    verdict = item.ratio.verdict if item.ratio else f"not measured: {item.why}"
    return (
        ENGINE_NAMES.get(item.engine, item.engine),
        fmt.count(item.batch),
        ratio_words(item.ratio),
        printable(verdict),
        milliseconds(item.before),
        milliseconds(item.after),
    )


def _outputs(made: Factorised) -> Table:
    heads = ("file", "relative error of outputs", "against", "on")
    rows = tuple(
        (printable(item.file), fmt.number(item.error, 2), item.against, item.images) for item in made.outputs
    )
    return Table("Checked", heads, rows, frozenset({0, 2, 3}))
