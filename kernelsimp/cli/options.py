"""Options of the command line, made from the settings dataclasses so that none is written twice."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer

from kernelsimp.cli.completion import complete_config, completer
from kernelsimp.option_fields import help_of, shown_of, usual_of
from kernelsimp.settings import Given
from kernelsimp.settings_file import given_from

RunOrModel = Annotated[str, typer.Argument(metavar="RUN|MODEL", help="a run, or a checkpoint file")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="a checkpoint file")]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", help="settings file, or recipe:NAME", autocompletion=complete_config
    ),
]
JsonOption = Annotated[str | None, typer.Option("--json", metavar="PATH|-", help="write JSON here")]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="RUN", help="directory for everything")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="replace the run that --out already has")]
AllOption = Annotated[bool, typer.Option("--all", help="every row of every table")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="no progress, no tables")]


def with_settings(**stages: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for every field of the settings `stages`, named by their TOML heading.

    The command takes them back in one mapping, its keyword argument `given`: {stage: {key: value}}, None
    where the user said nothing. An option that two stages share goes to both; one that the command spells
    itself goes to the stage that has a field of its name.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [item for item in signature.parameters.values() if item.name != "given"]
        extra = {
            name: parameter
            for stage in stages.values()
            for name, parameter in _parameters(stage).items()
            if name not in {item.name for item in own}
        }

        def run(**values: Any) -> None:
            values = {name: None if value == [] else value for name, value in values.items()}
            known = {key for stage in stages.values() for key, _, _ in help_of(stage)}
            given = given_from({key: values[key] for key in known & values.keys()}, stages)
            rest = {item.name: values[item.name] for item in own}
            command(given=given, **rest)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.first = first_options(stages.values())  # type: ignore[attr-defined]
        keyword = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own]
        run.__signature__ = inspect.Signature([*keyword, *extra.values()])  # type: ignore[attr-defined]
        return run

    return decorate


FIRST_OF_OWN = {
    "out_dir",
    "folder",
    "freeze",
    "tie",
    "dry_run",
    "config",
    "baseline",
    "html",
    "explain",
    "limits",
    "max_drop",
    "finetune",
    "to",
    "file",
}
"""Of the options that commands spell themselves, those that matter first."""


def first_options(stages: Iterable[type[Any]]) -> set[str]:
    """Return the names of the options that matter first, of these settings and of the commands' own."""
    named = {name for stage in stages for name, _, _ in help_of(stage) if shown_of(stage, name).first}
    return named | FIRST_OF_OWN


def put(given: Given, stage: str, key: str, value: Any) -> Given:
    """Return `given` with one value set, when it was said."""
    if value is None:
        return given
    return {**given, stage: {**given.get(stage, {}), key: value}}


def _parameters(stage: type[Any]) -> dict[str, inspect.Parameter]:
    """One keyword parameter for each field; None stands for 'not given', so the help shows the default."""
    return {
        name: inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[_plain(hint) | None, _option(stage, name, hint, text)],
        )
        for name, hint, text in help_of(stage)
    }


def _option(stage: type[Any], name: str, hint: Any, text: str) -> Any:
    shown = shown_of(stage, name)
    takes = "LIST" if _is_list(hint) else {int: "N", float: "X"}.get(_plain(hint), "TEXT")
    return typer.Option(
        *_flags(name, hint),
        help=f"{text} [{usual_of(stage, name)}]",
        metavar=takes,
        show_default=False,
        rich_help_panel=shown.group,
        autocompletion=completer(shown.values) if shown.values else None,
    )


def _flags(name: str, hint: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    return [f"{flag}/--no-{name.replace('_', '-')}"] if hint is bool else [flag]


def _is_list(hint: Any) -> bool:
    return any(get_origin(item) is tuple for item in (hint, *get_args(hint)))


def _plain(hint: Any) -> Any:
    """The type that typer reads: sequences come as comma-separated text."""
    if _is_list(hint):
        return str
    return next((item for item in get_args(hint) if item is not NoneType), hint)
