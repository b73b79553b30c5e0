"""A factorised export as JSON and tables: of its own report, and of the report of the run that it is of."""

from pathlib import PurePath
from typing import Any

from kernelsimp.error_text import printable
from kernelsimp.records.factorised import Factorised, FactorisedLayer, Latency, Ratio, Timing
from kernelsimp.records.serialise import to_plain
from kernelsimp.report import fmt
from kernelsimp.report.tables.stages import accuracy_table, epoch_table
from kernelsimp.report.tables.table import Fact, Table, flat, pairs

TITLE = "Thinner layers"
"""How the titles of the tables begin: in a run's report they stand among others."""

LAYERS = (
    "Medians of interleaved runs, between their quartiles; times whole over times as two thinner ones, with "
    "95 % intervals. A layer that stays whole shows its fastest rank."
)
ACCURACY = "On test images, which chose nothing; before is the network that was exported."
LATENCY = "Times before over times after; faster or slower only where the 95 % interval says so."

ENGINE_NAMES = {"eager": "torch", "compile": "torch.compile", "onnx": "ONNX Runtime"}


def factorised_json(made: Factorised) -> dict[str, Any]:
    """Return the export as JSON values under the keys of schema `kernelsimp.factorised/1`."""
    return {"schema": made.schema, **to_plain(made)}


def factorised_tables(made: Factorised) -> tuple[Table, ...]:
    """Return the layers, what the whole costs, its accuracy, training and latency, its files, and how."""
    return tuple(table for table, _ in factorised_sections(made))


def factorised_sections(made: Factorised | None) -> tuple[tuple[Table, str], ...]:
    """Return the tables that have rows, each with the sentence under it; none of no export."""
    if made is None:
        return ()
    tables = (
        (_layers(made), LAYERS),
        (_whole(made), ""),
        (_accuracy(made), ACCURACY),
        (epoch_table(f"{TITLE}, fine-tuning", made.training), ""),
        (_latency(made), LATENCY),
        (_outputs(made), ""),
        (_how(made), ""),
    )
    return tuple((table, says) for table, says in tables if table.rows)


def alone_title(table: Table) -> str:
    """Return the title of a table where it stands among no others than these."""
    title = table.title.removeprefix(f"{TITLE}, ")
    return title[:1].upper() + title[1:]


def factorised_facts(made: Factorised) -> tuple[Fact, ...]:
    """Return the figures of the first screen: what is left, where it is faster, and the accuracy."""
    (_, before), (_, after) = zip(made.parameters, made.macs, strict=True)
    thin = sum(layer.rank > 0 for layer in made.layers)
    faster = sum(item.faster for item in made.latency)
    measured = sum(item.ratio is not None for item in made.latency)
    facts = [
        Fact("multiplications left", fmt.share(after, before), f"{fmt.count(before)} → {fmt.count(after)}"),
        Fact("layers that run as two", fmt.count(thin), f"of {fmt.count(len(made.layers))} larger than 1x1"),
        Fact("measured to be faster", f"{faster} of {measured}", "engines and batches, by 95 % intervals"),
    ]
    if made.accuracy is not None:
        change = fmt.interval(*made.accuracy.change_ci95, "+.2f")
        facts.append(
            Fact("accuracy change", fmt.points(made.accuracy.change_pp), f"95 % interval {change} pp")
        )
    return tuple(facts)


def factorised_title(made: Factorised) -> tuple[str, str]:
    """Return which network it is, and in one line what the export came to."""
    facts = {fact.name: fact.value for fact in factorised_facts(made)}
    said = [f"{facts['multiplications left']} of the multiplications"]
    if any(item.ratio is not None for item in made.latency):
        said.append(f"measured to be faster in {facts['measured to be faster']} ways")
    if "accuracy change" in facts:
        said.append(facts["accuracy change"])
    name = PurePath(str(made.source.get("path") or made.source.get("arch") or "network")).stem
    return printable(f"{name} in thinner layers"), ", ".join(said)


def run_facts(made: Factorised | None) -> tuple[Fact, ...]:
    """Return the row that the headline of a run has of its export: the first engine and batch measured."""
    if made is None:
        return ()
    left = f"{fmt.share(made.macs[1], made.macs[0])} of the multiplications"
    first = next((item for item in made.latency if item.ratio is not None), None)
    if first is None or first.ratio is None:
        return (Fact("as thinner layers", "not timed", left),)
    where = f"{ENGINE_NAMES.get(first.engine, printable(first.engine))}, {fmt.count(first.batch)} images"
    told = f"{where}: {first.ratio.verdict}; {left}"
    return (Fact("times as fast, as thinner layers", ratio_words(first.ratio), told),)


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
    heads = ("layer", "rank", "of", "MACs left", "times as fast", "ms whole", "ms now")
    more = ("shape", "MACs", "parameters left", "parameters", "")
    rows = tuple(_layer(layer) for layer in made.layers)
    return Table(TITLE, heads + more, rows, frozenset({0, 7, 11}), least=(10, 9, 8, 7, 6, 5))


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
        fmt.share(layer.parameters_after, layer.parameters_before) if thin else fmt.DASH,
        fmt.count(layer.parameters_before),
        printable(note),
    )


def _whole(made: Factorised) -> Table:
    rows = [
        (name, fmt.count(old), fmt.count(new), fmt.share(new, old))
        for name, (old, new) in (("parameters", made.parameters), ("MACs", made.macs))
    ]
    return Table(f"{TITLE}, size", ("", "before", "after", "left"), tuple(rows))


def _accuracy(made: Factorised) -> Table:
    """Return the stages; a training of which no epoch was kept has tuned nothing."""
    stages = made.accuracy.stages if made.accuracy else ()
    kept = any(epoch.kept for epoch in made.training)
    spelled = {"finetuned": "fine-tuned" if kept else "factorised, no epoch kept"}
    words = [spelled.get(stage.stage, stage.stage) for stage in stages]
    return accuracy_table(f"{TITLE}, accuracy", stages, words)


def _latency(made: Factorised) -> Table:
    heads = ("engine", "images", "times as fast", "so it is", "ms before", "ms after")
    rows = tuple(_latency_row(item) for item in made.latency)
    return Table(f"{TITLE}, latency", heads, rows, frozenset({0, 3}), least=(5, 4))


def _latency_row(item: Latency) -> tuple[str, ...]:
    verdict = item.ratio.verdict if item.ratio else f"not measured: {item.why}"
    return (
        printable(ENGINE_NAMES.get(item.engine, item.engine)),
        fmt.count(item.batch),
        ratio_words(item.ratio),
        printable(verdict),
        milliseconds(item.before),
        milliseconds(item.after),
    )


def _outputs(made: Factorised) -> Table:
    heads = ("file", "relative error of outputs", "against", "on")
    rows = tuple(
        (printable(item.file), fmt.number(item.error, 2), printable(item.against), printable(item.images))
        for item in made.outputs
    )
    return Table(f"{TITLE}, files", heads, rows, frozenset({0, 2, 3}))


def _how(made: Factorised) -> Table:
    """Return where and how it was measured, and what is worth saying."""
    facts = [
        ("machine", made.machine),
        ("layout", made.layout),
        ("images at once, layers", fmt.count(made.batch)),
        ("ranks chosen by", made.cost),
        *flat(made.source, "source"),
        *(("note", note) for note in made.notes),
    ]
    return Table(f"{TITLE}, how", ("what", "value"), pairs(facts), frozenset({0, 1}))
