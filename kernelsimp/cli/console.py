"""The terminal: where progress, notes, tables and errors are drawn. Results on stdout, the rest on stderr."""

import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kernelsimp.error_text import one_line, printable
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_text
from kernelsimp.watch import Watcher, duration


class Pipe:
    """A stream that goes on when its reader has gone (`| head`) or was never there (`>&-`).

    Nothing is wrong then and nothing more can be said: what is written is dropped, and the exit code stays
    what the command has to say. Where the disk refuses a stream that has a `name`, `KernelsimpError` says so.
    """

    def __init__(self, stream: TextIO | None, name: str = "") -> None:
        self._name = name
        self._stream = stream or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (to the end)
        if isinstance(self._stream, io.TextIOWrapper):  # a terminal or a pipe that takes ASCII alone
            with suppress(OSError):  # a stream whose file was changed under it cannot be asked where it is
                self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write, or drop, `text`."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Hand on what is buffered, or drop it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if self._name and not isinstance(error, BrokenPipeError):
            raise KernelsimpError(
                f"{self._name}: cannot write: {error.strerror}; choose another place"
            ) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


out = Console(highlight=False, soft_wrap=sys.stdout is None or not sys.stdout.isatty())
err = Console(stderr=True, highlight=False, soft_wrap=True)


EVERY = 30.0
"""Seconds between two lines on a stage's progress where there is no bar."""


class Pace:
    """How a stage of `total` steps gets on, in a line now and then; for logs, where no bar is drawn."""

    def __init__(self, stage: str, total: int | None) -> None:
        self._stage, self._total, self._done = stage, total, 0
        self._began = self._told = time.monotonic()

    def step(self, amount: int) -> str | None:
        """Advance; return a line where it is time for one."""
        self._done += amount
        now = time.monotonic()
        if not self._total or not 0 < self._done < self._total or now - self._told < EVERY:
            return None
        self._told = now
        left = (now - self._began) * (self._total - self._done) / self._done
        return f"{self._stage}: {self._done:,} of {self._total:,}, about {duration(left)} left"


class TerminalWatcher(Watcher):
    """Draws a progress bar on a terminal, and plain lines for notes and stages elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._heads: tuple[str, ...] = ()
        self._phases: tuple[str, ...] = ()
        self._pace = Pace("", None)

    def expect(self, phases: Sequence[str]) -> None:
        """Number the stages that begin so from now on."""
        self._phases = tuple(phases)

    def start(self, stage: str, total: int | None = None) -> None:
        """Begin a stage: a new bar on a terminal, one line elsewhere."""
        if self._quiet:
            return
        self.stop()
        stage = f"{self._number(stage)}{printable(stage)}"
        if not err.is_terminal:
            self._pace = Pace(stage, total)
            err.print(f"{escape(stage)} ...")
            return
        figures = TextColumn("{task.fields[figures]}")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            figures,
        )
        self._bar = Progress(*columns, console=err, transient=True)
        self._task = self._bar.add_task(escape(stage), total=total, figures="")
        self._bar.start()

    def step(self, amount: int = 1, **figures: float) -> None:
        """Advance the bar; figures stand behind it."""
        if self._bar is None and not self._quiet and (line := self._pace.step(amount)):
            err.print(escape(line))
        if self._bar is not None and self._task is not None:
            text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self._bar.update(self._task, advance=amount)
            if text:
                self._bar.update(self._task, figures=text)

    def _number(self, stage: str) -> str:
        """Return which of the expected phases a stage is, the most exact one, or nothing."""
        fits = [name for name in self._phases if stage.startswith(name)]
        if not fits:
            return ""
        return f"{self._phases.index(max(fits, key=len)) + 1} of {len(self._phases)}: "

    def row(self, **figures: float) -> None:
        """Print one row, below its heads where the columns are new; it stays when the bar goes."""
        if self._quiet:
            return
        widths = [max(9, len(name)) for name in figures]
        if self._heads != tuple(figures):
            self._heads = tuple(figures)
            heads = (name.replace("_", " ") for name in figures)
            err.print("  ".join(f"{name:>{width}}" for name, width in zip(heads, widths, strict=True)))
        cells = (f"{value:.4g}" if value == value else "-" for value in figures.values())
        err.print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))

    def note(self, text: str) -> None:
        """Print one line."""
        if not self._quiet:
            err.print(escape(one_line(text)))

    def warn(self, text: str) -> None:
        """Print one line that stands out; shown even when quiet."""
        err.print(f"[yellow]warning:[/] {escape(one_line(text))}")

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class StoppedError(KernelsimpError):
    """Someone pressed Ctrl-C; `resumable` says whether the same command with --resume goes on from there."""

    exit_code = 130

    def __init__(self, *, resumable: bool) -> None:
        super().__init__("interrupted")
        self.resumable = resumable


@contextmanager
def watch_command(*, quiet: bool, json: str | None, run: Path | None = None) -> Iterator[TerminalWatcher]:
    """Yield a watcher, silent where stdout takes JSON.

    Raises `StoppedError` in place of `KeyboardInterrupt`; a `run` that has kept anything can go on.
    """
    watcher = TerminalWatcher(quiet=quiet or json == "-")
    try:
        yield watcher
    except KeyboardInterrupt as stop:
        kept = (run / "resume").rglob("*") if run is not None else ()
        raise StoppedError(resumable=any(path.is_file() for path in kept)) from stop
    finally:
        watcher.stop()


def emit_json(data: Any, target: str) -> None:
    """Write `data` as JSON to a path, or to stdout for '-'."""
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        write_text(Path(target), text)
