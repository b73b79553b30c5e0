"""How lower floors tell what they are doing, without printing.

The command line passes a `Watcher` that draws; libraries and tests pass the silent one.
"""


class Watcher:
    """Receive progress; this base class ignores all of it."""

    def start(self, stage: str, total: int | None = None) -> None:
        """Begin `stage`, with `total` steps if known. Beginning one ends the one before."""

    def step(self, amount: int = 1, **figures: float) -> None:
        """Advance the current stage and show `figures` (loss, accuracy...) beside it."""

    def row(self, **figures: float) -> None:
        """Add a row to the table of the current stages, one figure a column, NaN where there is none."""

    def note(self, text: str) -> None:
        """Say something the user should see once."""

    def warn(self, text: str) -> None:
        """Say something that the user should act on."""


SILENT = Watcher()
