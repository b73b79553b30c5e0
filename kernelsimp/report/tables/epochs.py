"""The epochs of a training, as a table."""

from collections.abc import Sequence

from kernelsimp.records.measured import Epoch
from kernelsimp.report import fmt
from kernelsimp.report.tables.table import Table


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
