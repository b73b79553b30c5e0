"""What is said: the line with which something is refused, by a command line too, and what a watcher hears."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kernelsimp.cli.main import run
from kernelsimp.errors import CheckpointError, KernelsimpError
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.settings import ModelSettings
from kernelsimp.watch import Watcher


def refusal(call: Callable[[], object], kind: type[KernelsimpError] = KernelsimpError) -> str:
    """Return the one line with which a call is refused."""
    with pytest.raises(kind) as caught:
        call()
    words = str(caught.value)
    assert "\n" not in words
    assert caught.value.exit_code == 2
    return words


def file_refusal(path: Path, read: Callable[[Path], object] | None = None, **settings: object) -> str:
    """Return the line with which a checkpoint, or what `read` reads, is refused, its path left out."""
    if read is not None:
        return refusal(lambda: read(path)).replace(str(path), "FILE")
    words = refusal(lambda: load_checkpoint(path, ModelSettings(**settings)), CheckpointError)  # type: ignore[arg-type]
    return words.replace(str(path), "FILE")


def command_refusal(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Run a command that cannot be done; return the one line that it says on stderr, without its prefix."""
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    quiet = {"-q", "--quiet"} & set(arguments)
    lines = [line for line in captured.err.splitlines() if quiet or not line.endswith(" ...")]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("kernelsimp: ")
    return lines[0].removeprefix("kernelsimp: ")


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], words: str, code: int = 2) -> None:
    """Expect the words in the one line of a command that cannot be done."""
    assert words in command_refusal(arguments, capsys, code)


class Heard(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.stages: list[tuple[str, int | None]] = []
        self.steps = 0

    def start(self, stage: str, total: int | None = None) -> None:
        self.stages.append((stage, total))

    def step(self, amount: int = 1, **figures: float) -> None:
        self.steps += amount

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
