"""Accuracy at the stages of a network, and the epochs of a training, as tables."""

from collections.abc import Sequence

from kernelsimp.error_text import printable
from kernelsimp.records.measured import Epoch, Stage
from kernelsimp.report import fmt
from kernelsimp.report.tables.table import Table


def accuracy_table(title: str, stages: Sequence[Stage], words: Sequence[str] = ()) -> Table:
    """Return accuracy at each stage, by its word or else its name; the change is against the first."""
    names = [stage.stage for stage in stages]
    rows = [
        (
            printable(word),
            fmt.percent(stage.top1),
            fmt.right_of(stage),
            fmt.interval(*stage.ci95),
            fmt.points(stage.top1 - stages[0].top1) if place else fmt.DASH,
            fmt.number(stage.loss),
        )
        for place, (word, stage) in enumerate(zip(words or names, stages, strict=True))
    ]
    heads = ("stage", "top-1", "correct", "95 % interval", "change", "loss")
    return Table(title, heads, tuple(rows), least=(5, 3))


def epoch_table(title: str, epochs: Sequence[Epoch]) -> Table:
    """Return one row an epoch of a training."""
    heads = ("epoch", "training loss", "validation loss", "validation top-1", "learning rate", "seconds")
    rows = [
        (
            f"{epoch.epoch}, kept" if epoch.kept else str(epoch.epoch),
            fmt.number(epoch.train_loss),
            fmt.number(epoch.val_loss),
            fmt.percent(epoch.val_top1),
            fmt.number(epoch.lr),
            fmt.number(epoch.seconds),
        )
        for epoch in epochs
    ]
    return Table(title, heads, tuple(rows), frozenset())
