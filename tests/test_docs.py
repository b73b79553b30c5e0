"""The documents say what is true: the reference is made from the tables, links and commands exist."""

import re
import runpy
from pathlib import Path

import pytest

from kernelsimp.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_reference_is_up_to_date():
    made = runpy.run_path(str(ROOT / "scripts" / "make_reference"))["reference"]()
    assert (ROOT / "docs" / "reference.md").read_text() == made, "run scripts/make_reference"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_shown_exists(page):
    import typer

    commands = typer.main.get_command(app).commands
    for line in re.findall(r"^ *kernelsimp +(.+(?:\\\n.+)*)", page.read_text(), flags=re.MULTILINE):
        line = line.split("#")[0]
        name = line.split()[0]
        assert name in commands, line
        known = {flag for parameter in commands[name].params for flag in parameter.opts}
        for option in re.findall(r"(?<!\S)(--[a-z-]+)", line):
            assert option in known, f"{name} {option}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
