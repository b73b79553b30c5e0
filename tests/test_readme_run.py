"""The terminal run in the README is real: its lines are what the command prints, in their order.

A line of three dots stands for lines left out; runs of blanks count as one.
"""

import re
import shlex
from pathlib import Path

import pytest
from planted import write

from kernelsimp.cli.main import run

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"<!-- run -->\n```\n\$ (.+?)\n(.*?)```", re.S)


def clean(text: str) -> list[str]:
    lines = (" ".join(line.replace("─", "").split()) for line in text.splitlines())
    return [line for line in lines if line]


def test_the_run_in_the_readme_is_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    match = BLOCK.search(README.read_text(encoding="utf-8"))
    assert match is not None, "the README has no block marked <!-- run -->"
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "planted.safetensors")
    program, *words = shlex.split(match[1])
    assert program == "kernelsimp"
    assert run(words) == 0
    printed = iter(clean(capsys.readouterr().out))
    for line in clean(match[2]):
        assert line == "..." or line in printed, f"not printed, or not here: {line}"
