"""One hostile name through every face: nothing of it acts on a terminal, a page, a table or a CI system."""

import csv
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest
from builders import white, write_legacy, write_zip

from kernelsimp.cli.main import run
from kernelsimp.error_text import csv_cell, printable, short
from kernelsimp.errors import KernelsimpError

NAME = "=cmd|' /C calc'!A0\x1b[2J\x00\u202e\n::error::x|<script>alert(1)</script>&%0A"


def is_clean(text: str) -> bool:
    """Say whether every character is a space of some kind or has no effect."""
    return "".join(text.split()).isprintable()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder with a network whose one layer has the hostile name."""
    monkeypatch.chdir(tmp_path)
    write_zip({f"{NAME}.weight": white(8, 4, 3, 3)}, tmp_path / "m.pt")
    return tmp_path


def test_every_face_of_a_scan(place: Path, capsys) -> None:
    assert run(["scan", "m.pt", "--json", "s.json", "--csv", "s.csv", "--html", "s.html"]) == 0
    said = capsys.readouterr()
    for text in (said.out, said.err, (place / "s.html").read_text(), (place / "s.csv").read_text()):
        assert is_clean(text)
    assert "<script>alert" not in (place / "s.html").read_text()
    with (place / "s.csv").open(newline="") as file:
        cells = [row[0] for row in csv.reader(file)][1:]
    assert len(cells) == 32
    assert all(cell.startswith("'=cmd") for cell in cells)
    assert json.loads((place / "s.json").read_text())["layers"][0]["name"] == NAME


def test_errors_and_warnings(place: Path, capsys) -> None:
    assert run(["scan", "m.pt", "--explain", f"{NAME}[0,0"]) == 2
    assert run(["scan", "m.pt", "--layers", NAME + "x"]) == 2
    assert run(["scan", NAME.replace("\x00", "")]) == 2
    assert run(["scan", "m.pt", f"--{NAME}"]) == 2
    (place / "c.toml").write_text(f"[data]\ndata = {json.dumps(NAME)}\n")
    assert run(["evaluate", "m.pt", "--arch", "zoo:resnet20", "--config", "c.toml"]) == 2
    (place / "d.toml").write_text('["\\u001b[2J"]\nx = 1\n')
    assert run(["scan", "m.pt", "--config", "d.toml"]) == 2
    write_legacy({"c.weight": white(1, 1, 3, 3).sum().expand(1 << 14, 1 << 14, 3, 3)}, place / "\x1b[2J.pt")
    assert run(["scan", "\x1b[2J.pt"]) == 2
    lines = capsys.readouterr().err
    assert is_clean(lines)
    assert len(lines.splitlines()) == 7


def test_every_face_of_a_run_and_of_the_gate(place: Path, capsys, monkeypatch) -> None:
    assert run(["simplify", "m.pt", "--tolerance", "0.6", "--out", "run"]) == 0
    changed = write_zip({f"{NAME}.weight": white(8, 4, 3, 3, seed=1)}, place / "n.pt")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place / "summary.md"))
    check = ["check", str(changed), "--baseline", "run", "--junit", "j.xml", "--gitlab", "g.json"]
    assert run(check) == 1
    said = capsys.readouterr()
    pages = [place / "run" / name for name in ("report.md", "report.html")]
    faces = [
        said.out,
        said.err,
        *(path.read_text() for path in (*pages, place / "j.xml", place / "summary.md")),
    ]
    assert [text for text in faces if not is_clean(text)] == []
    assert not any("<script>alert" in text for text in faces[2:])
    commands = [line for line in said.out.splitlines() if line.startswith("::")]
    assert commands
    assert all(
        line.startswith(("::error title=kernelsimp", "::warning title=kernelsimp")) for line in commands
    )
    ElementTree.parse(place / "j.xml")
    assert is_clean(json.dumps(json.loads((place / "g.json").read_text()), ensure_ascii=False))


def test_text_is_cut_and_surrogates_can_be_written() -> None:
    assert printable("a" * 5_000) == "a" * 1_997 + "..."
    assert len(short(ValueError("\x1b" * 5_000))) == 120
    assert str(KernelsimpError("a\x1b\n  b\ud800")) == r"a\x1b b\ud800"
    assert printable(os.fsdecode(b"net\xff.pt")) == r"net\udcff.pt"
    for cell in ("=1", "+1", "-1", "@x", "  =1"):
        assert csv_cell(cell) == f"'{cell}"


def test_a_name_that_is_no_text_is_refused(tmp_path: Path, capsys) -> None:
    path = write_zip({"a\ud800.weight": white(8, 4, 3, 3)}, tmp_path / "m.pt")
    for command in (["scan"], ["simplify", "--tolerance", "0.6", "--out", str(tmp_path / "run")]):
        assert run([command[0], str(path), *command[1:]]) == 2
        assert r"'a\ud800.weight' is no Unicode text" in capsys.readouterr().err
