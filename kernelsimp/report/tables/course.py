"""How a run went: epochs, rounds, what each layer cost alone, and the figure that stood in for accuracy."""

from kernelsimp.error_text import printable
from kernelsimp.records.report import Report
from kernelsimp.report import fmt
from kernelsimp.report.tables.factorised import factorised_sections
from kernelsimp.report.tables.stages import epoch_table
from kernelsimp.report.tables.table import Table

ROUNDS = (
    "Losses are in nats an image, on calibration images that nothing was fitted to, before each round's "
    "training; kappa is measured over predicted. A round that was undone was taken again at half its step."
)

SENSITIVITY = (
    "How far the answers move (KL, in nats an image) when one layer alone is as it came out: as measured, "
    "and as predicted from the curvature of the loss before any filter was re-solved."
)


TRAINED = "trained"
"""The one stage of a network that was trained from scratch."""


def course_tables(report: Report) -> tuple[tuple[Table, str], ...]:
    """Return the tables that have rows, each with the sentence under it; an export to thinner layers last."""
    tables = (
        (metric_table(report), ""),
        (round_table(report), ROUNDS),
        (sensitivity_table(report), SENSITIVITY),
        *factorised_sections(report.factorised),
    )
    return tuple((table, says) for table, says in tables if table.rows)


def metric_table(report: Report) -> Table:
    """Return the figure that stands in place of accuracy at each stage; the change is against the first."""
    metric = report.metric
    if metric is None:
        return Table("Metric", (), ())
    first = metric.stages[0].value
    rows = tuple(
        (
            printable(item.stage),
            fmt.number(item.value, 4),
            fmt.number(item.value - first, 3) if place else fmt.DASH,
        )
        for place, item in enumerate(metric.stages)
    )
    better = "higher" if metric.higher_is_better else "lower"
    return Table("Metric", ("stage", f"{printable(metric.name)} ({better} is better)", "change"), rows)


def round_table(report: Report) -> Table:
    """Return one row a round, those that were undone too."""
    heads = ("round", "DOF left", "predicted loss", "measured loss", "kappa", "change on validation", "kept")
    rows = tuple(
        (
            str(item.round),
            fmt.share(item.dof),
            fmt.number(item.predicted),
            fmt.number(item.measured),
            fmt.number(item.kappa),
            fmt.DASH if item.drop is None else fmt.points(0.0 - item.drop),
            "yes" if item.kept else ("no: surprising" if item.surprising else "no: beyond the budget"),
        )
        for item in report.rounds
    )
    return Table("Rounds", heads, rows, frozenset({6}))


def sensitivity_table(report: Report) -> Table:
    """Return predicted and measured loss of each layer that was measured alone, the costliest first."""
    measured = [
        (layer.name, layer.predicted_loss, layer.measured_loss)
        for layer in report.layers
        if layer.predicted_loss is not None and layer.measured_loss is not None
    ]
    measured.sort(key=lambda item: -item[2])
    rows = tuple(
        (
            printable(name),
            fmt.number(predicted),
            fmt.number(loss),
            fmt.number(loss / predicted) if predicted else fmt.DASH,
        )
        for name, predicted, loss in measured
    )
    heads = ("layer", "predicted loss", "measured loss", "measured / predicted")
    return Table("Sensitivity of layers", heads, rows)


def training_table(report: Report) -> Table:
    """Return one row an epoch of fine-tuning."""
    return epoch_table(training_word(report), report.training)


def training_word(report: Report) -> str:
    """Return what the training was: from the first step, or of what was simplified."""
    stages = report.accuracy.stages if report.accuracy is not None else ()
    return "Training" if [stage.stage for stage in stages] == [TRAINED] else "Fine-tuning"


def kept_words(report: Report) -> str:
    """Say which epoch was kept; nothing where there was no training."""
    if not report.training:
        return ""
    kept = next((epoch.epoch for epoch in report.training if epoch.kept), None)
    if kept is None:
        return (
            "No epoch was kept: none was better on the validation images than what came before the training."
        )
    marked = "; a dashed line marks it" if len(report.training) > 1 else ""
    return f"Epoch {kept} of {len(report.training)} was kept, the best on the validation images{marked}."
