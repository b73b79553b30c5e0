"""A comparison of two networks as JSON, tables and heat maps; and the table of it in a run's report."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from kernelsimp.error_text import printable
from kernelsimp.records.comparison import Comparison, LayerSimilarity
from kernelsimp.records.serialise import MisfitError, restore, to_plain
from kernelsimp.report import fmt
from kernelsimp.report.pictures.charts import Heat, heat_map
from kernelsimp.report.pictures.depth import FEWEST, Strip, strip_rows
from kernelsimp.report.tables.table import Fact, Table, figure_table

SAYS = (
    "1 is alike. CKA, NBS and Procrustes do not see rotations, shifts and one common scale; CCA sees no "
    "invertible map at all. Relative error and correlation compare channel with channel, so they say "
    "nothing of two networks that were trained apart."
)
COLUMNS: Mapping[str, str] = {
    "cka": "CKA",
    "cka_debiased": "CKA debiased",
    "cka_minibatch": "CKA batches",
    "cka_rbf": "CKA RBF",
    "cka_rbf_debiased": "CKA RBF debiased",
    "cca": "CCA",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "pwcca_b": "PWCCA by B",
    "nbs": "NBS",
    "procrustes": "Procrustes",
    "angular": "angle",
    "relative_error": "relative error",
    "channel_correlation": "correlation",
    "channel_correlation_lowest": "lowest correlation",
    "weight_error": "weight error",
}
"""The heads of the measures, in the order of every table."""
BRIEF = ("cka", "cka_debiased", "cca", "pwcca", "nbs", "relative_error")
"""What a terminal has room for."""
SHARES = ("cka", "cka_debiased", "cka_rbf", "cca", "svcca", "pwcca", "nbs")
"""What a heat map shows: 1 is alike, 0 is not."""
IN_REPORT = ("cka", "pwcca", "nbs", "relative_error")
LEFT_OUT = ("a", "b", "settings", "provenance", "schema")
"""What a run's report says elsewhere."""


def comparison_json(found: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON values under the keys of schema `kernelsimp.compare/1`."""
    return {"schema": found.schema, **to_plain(found)}


def comparison_facts(found: Comparison) -> tuple[Fact, ...]:
    """Return the figures that a reader needs first."""
    answers = found.predictions
    named = f"of {fmt.count(answers.classes)} classes" if answers.classes else "not classifiers alike"
    lowest = min((row for row in found.layers if row.cka is not None), key=_cka, default=None)
    least = () if lowest is None else (Fact("lowest CKA", fmt.number(lowest.cka, 4), printable(lowest.a)),)
    return (
        Fact("images", fmt.count(found.images), f"{fmt.counted(len(found.layers), 'layer')} side by side"),
        Fact("same answer", fmt.share(answers.agreement, 1.0), named),
        Fact("KL(A || B)", fmt.number(answers.kl), "nats an image"),
        *least,
    )


def compared_names(found: Comparison) -> str:
    """Return which two networks were compared: their files, by as much of the paths as tells them apart."""
    paths = [printable(str(side.get("path") or side.get("arch") or "network")) for side in (found.a, found.b)]
    return " and ".join(fmt.short_names([PurePath(path) for path in paths]))


def comparison_words(found: Comparison) -> str:
    """Say in one line what a comparison came to."""
    parts = [f"{fmt.counted(len(found.layers), 'layer')} compared on {fmt.count(found.images)} images"]
    answers = found.predictions
    if answers.agreement is not None:
        parts.append(f"the same answer for {fmt.share(answers.agreement)} of them")
    if answers.kl is not None:
        parts.append(f"KL {fmt.number(answers.kl)} nats an image")
    lowest = min((row for row in found.layers if row.cka is not None), key=_cka, default=None)
    if lowest is not None:
        parts.append(f"least alike {printable(lowest.a)}, CKA {fmt.number(lowest.cka)}")
    return ", ".join(parts)


def _cka(row: LayerSimilarity) -> float:
    return 0.0 if row.cka is None else row.cka


def comparison_table(found: Comparison, *, brief: bool = False) -> Table:
    """Return one row a layer; only the measures that were computed somewhere."""
    known = [
        name for name in (BRIEF if brief else COLUMNS) if any(_figure(row, name) for row in found.layers)
    ]
    two = any(row.a != row.b for row in found.layers)
    rows = tuple(_row(row, known, two=two) for row in found.layers)
    bars = {} if brief else _bars(found.layers, known, 3 if two else 2)
    heads = ("A", "B", "n") if two else ("layer", "n")
    text = frozenset({0, 1} if two else {0})
    return Table("Layers", (*heads, *(COLUMNS[name] for name in known)), rows, text, bars)


def _row(row: LayerSimilarity, known: Sequence[str], *, two: bool) -> tuple[str, ...]:
    names = (printable(row.a), printable(row.b)) if two else (printable(row.a),)
    return (*names, fmt.count(row.n), *(_figure(row, name) or fmt.DASH for name in known))


def _figure(row: LayerSimilarity, name: str) -> str:
    value = getattr(row, name)
    return "" if value is None else fmt.number(value, 4)


def _bars(
    layers: Sequence[LayerSimilarity], known: Sequence[str], first: int
) -> dict[int, tuple[float, ...]]:
    shares = {place: name for place, name in enumerate(known, first) if name in ("cka", "pwcca", "nbs")}
    return {place: tuple(getattr(row, name) or 0.0 for row in layers) for place, name in shares.items()}


def comparison_strips(found: Comparison) -> tuple[Markup, ...]:
    """Return the layers, first to last, as one strip a measure."""
    known = [name for name in SHARES if any(getattr(row, name) is not None for row in found.layers)]
    if not known or len(found.layers) < FEWEST:
        return ()
    names = [
        printable(row.a) if row.a == row.b else f"{printable(row.a)} / {printable(row.b)}"
        for row in found.layers
    ]
    strips = []
    for name in known:
        values = tuple(getattr(row, name) for row in found.layers)
        words = tuple(fmt.number(value, 4) for value in values)
        least = min(value for value in values if value is not None)
        strips.append(Strip(COLUMNS[name], values, 1.0, words, f"least {fmt.number(least)}"))
    return (strip_rows(strips, names),)


def matrix_words(found: Comparison) -> str:
    """Say what the cells of the matrix are of."""
    samples = found.matrix.samples if found.matrix else ""
    return f"Rows are layers of A, columns layers of B, first to last; a sample is one of the {samples}."


def matrix_maps(found: Comparison) -> tuple[Markup, ...]:
    """Return one heat map a measure of all layers of A (rows) against all of B (columns)."""
    if found.matrix is None:
        return ()
    rows, columns = (tuple(map(printable, names)) for names in (found.matrix.rows, found.matrix.columns))
    return tuple(
        heat_map(Heat(COLUMNS[name], rows, columns, found.matrix.values[name]))
        for name in SHARES
        if name in found.matrix.values
    )


def comparison_tables(found: Comparison) -> tuple[Table, ...]:
    """Return what a terminal shows: the answers, then one row a layer."""
    facts = tuple((fact.name, fact.value, fact.note) for fact in comparison_facts(found))
    head = Table("Comparison", ("what", "value", "beside it"), facts, frozenset({0, 2}))
    return head, comparison_table(found, brief=True)


def in_report(stages: Mapping[str, Comparison]) -> dict[str, Any]:
    """Return comparisons of the original network with later stages, as a report holds them."""
    return {"stages": {name: _without(to_plain(found)) for name, found in stages.items()}}


def _without(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in LEFT_OUT}


def similarity_tables(figures: Mapping[str, Any] | None) -> tuple[Table, ...]:
    """Return the tables of a report's `similarity`; what is not of the known form becomes dotted names."""
    stages = _stages(figures)
    if stages is None:
        table = figure_table("Similarity", figures)
        return (table,) if table.rows else ()
    return _similarity_table(stages), _answer_table(stages)


def _stages(figures: Mapping[str, Any] | None) -> dict[str, Comparison] | None:
    try:
        return {
            name: restore(Comparison, stage) for name, stage in dict((figures or {})["stages"]).items()
        } or None
    except (MisfitError, KeyError, TypeError, ValueError):
        return None


def _similarity_table(stages: Mapping[str, Comparison]) -> Table:
    """Return one row a layer of the original, and its figures at each stage."""
    found = {name: {row.a: row for row in stage.layers} for name, stage in stages.items()}
    layers = dict.fromkeys(layer for rows in found.values() for layer in rows)
    heads = tuple(f"{COLUMNS[name]}, {printable(stage)}" for stage in found for name in IN_REPORT)
    rows = tuple(
        (
            printable(layer),
            *(
                (_figure(rows[layer], name) if layer in rows else "") or fmt.DASH
                for rows in found.values()
                for name in IN_REPORT
            ),
        )
        for layer in layers
    )
    return Table("Similarity", ("layer", *heads), rows)


def _answer_table(stages: Mapping[str, Comparison]) -> Table:
    """Return how often each stage answers as the original does, and the notes of its comparison."""
    rows = tuple(
        (
            printable(name),
            fmt.count(stage.images),
            fmt.share(stage.predictions.agreement, 1.0, 2),
            fmt.number(stage.predictions.kl),
            printable("; ".join(stage.notes)) or fmt.DASH,
        )
        for name, stage in stages.items()
    )
    heads = ("stage", "images", "same answer", "KL, nats", "notes")
    return Table("Answers beside the original's", heads, rows, frozenset({0, 4}))
