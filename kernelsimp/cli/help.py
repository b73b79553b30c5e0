"""What `--help` shows: options in groups by what they are for, those that matter first, with defaults.

Drawn here rather than by typer, whose table has five columns: at 80 it cuts names and wraps every text.
"""

from collections.abc import Container, Iterable, Mapping
from textwrap import wrap
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperArgument, TyperCommand, TyperGroup

from kernelsimp.cli.console import out
from kernelsimp.errors import KernelsimpError
from kernelsimp.option_fields import MORE, OUTPUT
from kernelsimp.records.glossary import GLOSSARY, meaning_of

ALL = "kernelsimp.all"
MOST = 16
"""A command with no more options than this shows all at once."""
LEFT, STACKED = 26, 72
"""Columns for the names of options, and the width of a terminal below which texts stand under them."""
ORDER, LAST = ("Network", "Images", "Budget", "How to choose"), (MORE, OUTPUT)
"""The groups that come first, and last; between them stand the others as the command has them."""


class Command(TyperCommand):
    """A command whose `--help` shows the options that matter, and `--help-all` every one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; `--help-all` asks for help with everything in it."""
        if "--help-all" in args:
            ctx.meta[ALL] = True
            args = ["--help"]
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "option_name", None) == "--out":  # it looks like --output, and means a file
                error.possibilities = self._files(ctx)  # type: ignore[attr-defined]
            raise

    def _files(self, ctx: Any) -> list[str]:
        """Return the options that say where to write."""
        options = [item for item in self.get_params(ctx) if not isinstance(item, TyperArgument)]
        return [item.opts[0] for item in options if str(item.metavar).startswith("PATH")]

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 (drawn at once, not collected)
        """Print usage, groups of options and examples."""
        everything = self.get_params(ctx)
        options = [item for item in everything if not isinstance(item, TyperArgument)]
        first: set[str] = getattr(self.callback, "first", set())
        all_of_them = ctx.meta.get(ALL) or len(options) <= MOST
        shown = options if all_of_them else [item for item in options if item.name in first]
        _title(ctx, self.help, [item for item in everything if isinstance(item, TyperArgument)])
        for title, group in grouped(shown, first).items():
            _section(title, [(flags_of(item), text_of(item)) for item in group])
        _print(Text("Defaults stand in brackets.", "dim"))
        left = len(options) - len(shown)
        if left:
            _print(Text(f"{left} more options: {ctx.command_path} --help-all", "bold"))
        if self.epilog:
            _print(Text("\nExamples", "bold"))
            for line in self.epilog.split("\n"):
                _print(Text(f"  {line}"))


class Group(TyperGroup):
    """The commands, with what each is for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 (drawn at once, not collected)
        """Print the commands and the few options that stand before one."""
        _title(ctx, self.help, [])
        rows = [(name, _first_sentence(self.commands[name].help)) for name in self.list_commands(ctx)]
        _section("Commands", rows)
        _section("Options", [(flags_of(item), text_of(item)) for item in self.get_params(ctx)])
        _print(Text("kernelsimp help COMMAND, or kernelsimp help WORD for the words of a report", "bold"))


def grouped(options: Iterable[Any], first: Container[str]) -> dict[str, list[Any]]:
    """Return options by their groups, those that matter (`first`) before the others of each."""
    groups: dict[str, list[Any]] = {}
    for item in options:
        groups.setdefault(getattr(item, "rich_help_panel", None) or OUTPUT, []).append(item)
    rest = [name for name in groups if name not in (*ORDER, *LAST)]
    names = [name for name in (*ORDER, *rest, *LAST) if name in groups]
    return {name: sorted(groups[name], key=lambda item: item.name not in first) for name in names}


def flags_of(item: Any) -> str:
    """Spell an option's names and what it takes: `-q, --quiet`, `--[no-]finetune`, `--epochs N`."""
    if any(flag.startswith("--no-") for flag in item.secondary_opts):
        return f"--[no-]{item.opts[0].removeprefix('--')}"
    names = ", ".join(sorted(item.opts, key=len))
    return names if item.is_flag else f"{names} {item.metavar or 'TEXT'}"


def text_of(item: Any) -> str:
    """Return an option's help text with its default."""
    if item.required:
        return f"{item.help} (required)"
    if item.name in ("help", "version", "install_completion", "show_completion") or item.help.endswith("]"):
        return str(item.help)
    usual = "off" if item.is_flag else item.default
    return f"{item.help} [{'none' if usual is None else usual}]"


def _title(ctx: Any, text: str | None, arguments: list[Any]) -> None:
    names = [str(item.metavar or item.name).upper() for item in arguments]
    takes = "COMMAND [OPTIONS]" if isinstance(ctx.command, TyperGroup) else " ".join([*names, "[OPTIONS]"])
    _print(Text.assemble(("Usage: ", "bold"), f"{ctx.command_path} {takes}"))
    _print(Text("\n").append_text(_wrapped(text or "")))
    _section("Arguments", [(name, item.help) for name, item in zip(names, arguments, strict=True)])


def draw_rows(rows: Iterable[tuple[str, str, tuple[str, str]]]) -> None:
    """Print rows of a name, a text and a (colour, word) that stands between them."""
    for name, text, (colour, word) in rows:
        first, *rest = wrap(text, max(out.width - 30, 24), break_long_words=False, break_on_hyphens=False)
        _print(Text.assemble(f"{name:<18}  ", (f"{word:<7}", colour), "  ", first))
        for line in rest:
            _print(Text(" " * 29 + line))


def _section(title: str, rows: list[tuple[str, str]]) -> None:
    if not rows:
        return
    _print(Text(f"\n{title}", "bold"))
    beside = out.width >= STACKED
    indent = " " * (LEFT + 4 if beside else 6)
    for names, text in rows:
        lines = wrap(text, out.width - len(indent), break_long_words=False, break_on_hyphens=False)
        if beside and len(names) <= LEFT:
            _print(Text.assemble("  ", (f"{names:<{LEFT}}", "cyan"), "  ", lines.pop(0)))
        else:
            _print(Text(f"  {names}", "cyan"))
        for line in lines:
            _print(Text(indent + line))


def _print(part: Text) -> None:
    out.print(part, soft_wrap=True)


def _wrapped(text: str) -> Text:
    return Text("\n".join(wrap(" ".join(text.split()), out.width, break_long_words=False)))


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split()).partition(". ")[0].removesuffix(".") + "."


def explain(
    ctx: typer.Context,
    word: Annotated[str | None, typer.Argument(metavar="[COMMAND|WORD]", help="what to explain")] = None,
) -> None:
    """Show the help of a COMMAND, or say what a WORD of tables and reports means."""
    commands: Mapping[str, Any] = ctx.parent.command.commands if ctx.parent else {}  # type: ignore[attr-defined]
    if word is None:
        _section("Commands", [(name, _first_sentence(item.help)) for name, item in commands.items()])
        _section("Words", list(GLOSSARY.items()))
    elif word in commands:
        own = commands[word]
        with type(ctx)(own, info_name=word, parent=ctx.parent) as below:
            own.get_help(below)
    else:
        try:
            _print(_wrapped(": ".join(meaning_of(word))))
        except KernelsimpError as error:
            raise KernelsimpError(f"{error} (kernelsimp help lists all)") from error
