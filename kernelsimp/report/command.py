"""The command line that runs a run again, built from its settings: what a report offers to copy.

Every option that differs from what the command would take by itself is spelled out, so that the line does
not need the run's folder. Paths are as they were given: it holds where the run was started.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from shlex import join
from typing import Any

from kernelsimp.option_fields import help_of
from kernelsimp.settings import Settings
from kernelsimp.settings_file import CAN_NAME_CODE, names_code

UNSPOKEN = ("scan", "train", "prune", "audit", "compare")
"""Stages that `simplify` reads from a settings file alone; where one was set, the run's own file is named."""

LEFT_OUT = ("finetune.resume",)
"""What another folder has nothing for."""


def command_again(model: Path, settings: Settings, usual: Settings, run: Path) -> str:
    """Return the shell line that repeats the run into a folder beside `run`.

    `usual` is what the command takes where nothing is said: the defaults and the recipe of the architecture.
    """
    words = ["kernelsimp", "simplify", str(model)]
    if _needs_file(settings, usual):
        words += ["--config", str(run / "settings.toml")]
    return join([*words, *_options(settings, usual), "--out", f"{run}-again"])


def command_with(name: str, arguments: tuple[str, ...], settings: Settings, run: Path) -> str:
    """Return the shell line that repeats the run of command `name` from the settings file in its folder.

    Code is named on the line itself, because no settings file may have it run.
    """
    words = ["--config", f"{run}/settings.toml", "--no-resume", "--out", f"{run}-again"]
    return join(["kernelsimp", name, *arguments, *_code(settings), *words])


def _needs_file(settings: Settings, usual: Settings) -> bool:
    """Say whether something differs that no option of `simplify` says."""
    for item in fields(settings):
        given, otherwise = (getattr(whole, item.name) for whole in (settings, usual))
        silent = [name for name, _, _ in help_of(type(given), in_file=True)]
        if item.name in UNSPOKEN and given != otherwise:
            return True
        if any(getattr(given, name) != getattr(otherwise, name) for name in silent):
            return True
    return False


def _code(settings: Settings) -> Iterator[str]:
    if settings.model.trust_pickle:
        yield "--trust-pickle"
    for stage, key in CAN_NAME_CODE:
        value = getattr(getattr(settings, stage), key)
        if names_code(key, value):
            yield from (f"--{key.replace('_', '-')}", value)


def _options(settings: Settings, usual: Settings) -> Iterator[str]:
    for item in fields(settings):
        if item.name in UNSPOKEN:
            continue
        given, otherwise = (getattr(whole, item.name) for whole in (settings, usual))
        spoken = {name: getattr(given, name) for name, _, _ in help_of(type(given))}
        yield from _options_that_differ(item.name, spoken, vars(otherwise))


def _options_that_differ(stage: str, given: Mapping[str, Any], otherwise: Mapping[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        if value is None or value == otherwise[name] or f"{stage}.{name}" in LEFT_OUT:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield f"--{flag}"
            yield ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
