"""How lower floors tell what they are doing, without printing.

The command line passes a `Watcher` that draws; libraries and tests pass the silent one.
"""

from collections.abc import Sequence


class Watcher:
    """Receive progress; this base class ignores all of it."""

    def expect(self, phases: Sequence[str]) -> None:
        """Learn what a command will go through, in order: how the names of its longer stages begin."""

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


class Within(Watcher):
    """Passes everything on to another watcher, with `words` behind the name of each stage."""

    def __init__(self, inner: Watcher, words: str) -> None:
        self._inner, self._words = inner, words

    def start(self, stage: str, total: int | None = None) -> None:
        self._inner.start(f"{stage}, {self._words}", total)

    def step(self, amount: int = 1, **figures: float) -> None:
        self._inner.step(amount, **figures)

    def row(self, **figures: float) -> None:
        self._inner.row(**figures)

    def note(self, text: str) -> None:
        self._inner.note(text)

    def warn(self, text: str) -> None:
        self._inner.warn(text)


SILENT = Watcher()


def duration(seconds: float) -> str:
    """Return a time in words of one or two parts.

    >>> duration(8.2), duration(200), duration(7500)
    ('8 s', '3 min', '2 h 5 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
