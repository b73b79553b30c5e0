"""An evaluation as JSON and as tables."""

from typing import Any

from kernelsimp.error_text import printable
from kernelsimp.records.evaluation import Evaluation
from kernelsimp.records.serialise import to_plain
from kernelsimp.report import fmt
from kernelsimp.report.tables.robustness import robustness_tables
from kernelsimp.report.tables.selectivity import selectivity_table, selectivity_words
from kernelsimp.report.tables.table import Table


def evaluation_json(found: Evaluation) -> dict[str, Any]:
    """Return the evaluation as JSON values under the keys of schema `kernelsimp.evaluate/1`."""
    return {"schema": found.schema, **to_plain(found)}


def evaluation_tables(found: Evaluation) -> tuple[Table, ...]:
    """Return accuracy or what stands in its place, robustness, and what channels answer to."""
    explained = (selectivity_table(found.selectivity),) if found.selectivity is not None else ()
    return (_first_table(found), *robustness_tables(found.robustness), *explained)


def evaluation_words(found: Evaluation) -> str:
    """Say in one line what an evaluation came to."""
    data = printable(str(found.source.get("data")))
    explained = (selectivity_words(found.selectivity),) if found.selectivity is not None else ()
    if found.accuracy is None:
        stages = found.metric.stages if found.metric is not None else ()
        named = printable(found.metric.name) if found.metric is not None else "nothing"
        figures = (f"{named} {fmt.number(item.value, 4)}" for item in stages)
        return ", ".join([*figures, f"on {data}", *explained])
    accuracy = found.accuracy
    parts = [
        f"{fmt.percent(accuracy.top1)} right ({fmt.right_of(accuracy)} test images of {data})",
        f"95 % interval {fmt.interval(*accuracy.ci95)} %",
    ]
    models = ((found.robustness or {}).get("models") or {}).values()
    corrupted = [f"{fmt.percent(model['mean_corrupted_top1'])} on corrupted pictures" for model in models]
    return ", ".join([*parts, *corrupted, *explained])


def _first_table(found: Evaluation) -> Table:
    heads, text = ("figure", "value", "beside it"), frozenset({0, 2})
    accuracy, metric, data = found.accuracy, found.metric, printable(str(found.source.get("data")))
    if accuracy is None:
        figures = metric.stages if metric is not None else ()
        name = printable(metric.name) if metric is not None else ""
        return Table(
            "Metric", heads, tuple((name, fmt.number(item.value, 4), data) for item in figures), text
        )
    rows = [
        ("top-1", fmt.percent(accuracy.top1), fmt.right_of(accuracy)),
        ("95 % interval", fmt.interval(*accuracy.ci95), "Wilson, percent"),
        ("loss", fmt.number(accuracy.loss), "mean cross-entropy, nats"),
        ("test images", fmt.count(accuracy.total), data),
    ]
    if found.top5 is not None:
        rows.insert(2, ("top-5", fmt.percent(found.top5), ""))
    return Table("Accuracy", heads, tuple(rows), text)
