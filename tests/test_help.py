"""What `--help`, `help`, completion and the reference show: every option, in groups, with its default."""

import os
import re
import subprocess
import sys
from pathlib import Path
from shlex import split

import pytest
import typer
from saying import fails

from kernelsimp.cli.completion import NAMES, complete_config, completer, join_colons
from kernelsimp.cli.examples import EXAMPLES
from kernelsimp.cli.help import LEFT, flags_of
from kernelsimp.cli.main import app, run
from kernelsimp.option_fields import GROUPS, help_of, shown_of
from kernelsimp.settings import PlanSettings, ScanSettings, Settings

COMMANDS = typer.main.get_command(app).commands
REFERENCE = (Path(__file__).parents[1] / "docs" / "reference.md").read_text(encoding="utf-8")


def shown(arguments: list[str], capsys, monkeypatch, width: int = 80) -> str:
    monkeypatch.setattr("kernelsimp.cli.help.out.width", width)
    assert run(arguments) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_fits_a_screen_and_shows_whole_names_and_defaults(name, capsys, monkeypatch):
    text = shown([name, "--help"], capsys, monkeypatch)
    body, _, examples = text.partition("\nExamples\n")
    assert len(text.splitlines()) < 75
    assert max(map(len, body.splitlines())) <= 80
    assert "…" not in text
    assert "<bool>" not in text
    assert len(re.findall("^  kernelsimp ", examples, flags=re.MULTILINE)) == 3


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_all_options_stand_in_the_help_of_all_and_in_the_reference(name, capsys, monkeypatch):
    text = shown([name, "--help-all"], capsys, monkeypatch, 120)
    section = REFERENCE.split(f"\n### {name}\n")[1].split("\n#")[0]
    for item in COMMANDS[name].params:
        if isinstance(item, typer.core.TyperOption):
            flags = flags_of(item)
            assert flags in text
            assert f"`{flags.replace('|', '/')}`" in section


def test_options_are_grouped_and_those_that_matter_come_first(capsys, monkeypatch):
    text = shown(["simplify", "-h"], capsys, monkeypatch)
    groups = (
        "Network",
        "Images",
        "Budget",
        "How to choose",
        "Hold and train",
        "Extra measurements",
        "Output",
    )
    places = [text.index(f"\n{group}") for group in groups]
    assert places == sorted(places)
    assert "--dof X" in text
    assert "--pgd-steps" not in text
    assert "more options: kernelsimp simplify --help-all" in text
    everything = shown(["simplify", "--help-all"], capsys, monkeypatch)
    assert "--pgd-steps" in everything
    assert "[0.01,0.02,0.05,0.1]" in everything
    assert "[linear]" in everything


def test_the_first_help_of_export_has_the_form_and_the_place(capsys, monkeypatch):
    text = shown(["export", "-h"], capsys, monkeypatch)
    assert "--to FORM" in text
    assert "--out FILE" in text


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_an_option_has_one_default(name, capsys, monkeypatch):
    text = shown([name, "--help-all"], capsys, monkeypatch)
    assert not re.search(r"\s\[[^\]]*\]\s+\[", text.partition("\n")[2].partition("\nExamples")[0])


def test_pruning_trains_unless_it_is_told_not_to(capsys, monkeypatch):
    assert "[on where there are images]" in shown(["prune", "-h"], capsys, monkeypatch)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_word_of_the_help_is_broken(width, capsys, monkeypatch):
    text = shown(["simplify", "--help-all"], capsys, monkeypatch, width).partition("\nExamples")[0]
    assert max(map(len, text.splitlines())) <= width
    words = set(text.split())
    for stage in (PlanSettings, ScanSettings):
        known = {word for name, _, help_text in help_of(stage) for word in help_text.split()}
        if stage is PlanSettings:
            assert known <= words
    assert LEFT < 60


def test_every_option_has_a_group():
    for name, stage in vars(Settings()).items():
        assert all(shown_of(type(stage), key).group for key, _, _ in help_of(type(stage))), name
    assert set(GROUPS) == {type(stage).__name__ for stage in vars(Settings()).values()}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_examples_name_options_that_there_are(name):
    assert set(EXAMPLES) == set(COMMANDS)
    known = {flag for item in COMMANDS[name].params for flag in item.opts}
    for line in EXAMPLES[name]:
        words = split(line)
        assert words[:2] == ["kernelsimp", name]
        assert {word for word in words if word.startswith("--")} <= known
    assert len(set(EXAMPLES[name])) == 3


def test_nothing_asked_prints_the_help_and_is_no_error(capsys, monkeypatch):
    text = shown([], capsys, monkeypatch)
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert text == shown(["--help"], capsys, monkeypatch)
    assert shown(["-V"], capsys, monkeypatch).startswith("kernelsimp 0.")


def test_help_explains_commands_and_words(capsys, monkeypatch):
    assert shown(["help", "scan"], capsys, monkeypatch) == shown(["scan", "-h"], capsys, monkeypatch)[:-1]
    for word in ("KL", "mcnemar", "PWCCA", "multipliers", "dof", "found", "imposed", "freeze"):
        assert len(shown(["help", word], capsys, monkeypatch)) > 30
    everything = shown(["help"], capsys, monkeypatch)
    assert "McNemar" in everything
    assert "simplify" in everything
    fails(["help", "mcnemr"], capsys, "no command and no word 'mcnemr'; did you mean 'mcnemar'?")


def test_completion_offers_what_the_tables_have():
    from kernelsimp.data.corruptions import CORRUPTIONS
    from kernelsimp.data.sources import SOURCES
    from kernelsimp.kernels.denoisers import DENOISERS
    from kernelsimp.kernels.families import FAMILIES
    from kernelsimp.kernels.structures import GROUPS as WORDS
    from kernelsimp.models.zoo import ZOO

    assert set(NAMES["networks"]) == {f"zoo:{name}" for name in ZOO} | {"torchvision:", "timm:"}
    assert set(NAMES["families"]) == {row.name for row in FAMILIES} | set(WORDS)
    assert set(NAMES["denoisers"]) == {row.name for row in DENOISERS}
    assert {name.rstrip(":") for name in NAMES["sources"]} == set(SOURCES)
    assert set(NAMES["corruptions"]) == set(CORRUPTIONS)


def test_values_are_completed(monkeypatch):
    assert "recipe:digits" in complete_config("recipe:d")
    assert completer("networks")("zoo:digits-c") == ["zoo:digits-cnn"]
    assert completer("families")("mirror-h,odd-sq") == ["mirror-h,odd-square"]
    assert completer(("auto", "absolute"))("ab") == ["absolute"]
    monkeypatch.setenv("_KERNELSIMP_COMPLETE", "complete_bash")
    assert completer("networks")("zoo:digits-c") == ["digits-cnn"]


@pytest.mark.parametrize(
    ("words", "place", "joined", "after"),
    [
        ("kernelsimp scan m --arch zoo : res", 6, "kernelsimp scan m --arch zoo:res", 4),
        ("kernelsimp scan m --config recipe :", 5, "kernelsimp scan m --config recipe:", 4),
        ("kernelsimp scan m --cost ab", 4, "kernelsimp scan m --cost ab", 4),
    ],
)
def test_words_that_bash_split_at_colons_are_joined(words, place, joined, after):
    environment = {"_KERNELSIMP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
    join_colons(environment)
    assert (environment["COMP_WORDS"], environment["COMP_CWORD"]) == (joined, str(after))


def test_a_shell_gets_completions_of_a_value():
    line = {"_KERNELSIMP_COMPLETE": "complete_bash", "COMP_WORDS": "kernelsimp scan m --arch zoo : resnet2"}
    done = subprocess.run(
        [sys.executable, "-m", "kernelsimp"],
        env={**os.environ, **line, "COMP_CWORD": "6"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["resnet20"]
