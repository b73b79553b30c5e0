"""Settings fields: a default, a help text, and how the command line shows it.

Help, completion and the reference all read this metadata, so that no option is described twice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Shown:
    """How an option is shown: under which group of the help, and whether among those that matter first.

    `values` are the words it takes, or the name of a table of them; `usual` says what holds where nothing is
    said and the default is None.
    """

    group: str = ""
    first: bool = False
    values: tuple[str, ...] | str = ()
    usual: str = ""


FIRST = Shown(first=True)


def option(default: Any, text: str, shown: Shown = Shown()) -> Any:
    """Return a settings field with its default, its help text and how the command line shows it."""
    return field(default=default, metadata={"help": text, "shown": shown})


def in_file(default: Any, text: str) -> Any:
    """Return a settings field that a settings file or a program sets, and no option of the command line."""
    return field(default=default, metadata={"help": text, "in_file": True})


def words(*values: str, group: str = "", first: bool = False) -> Shown:
    """Return how an option is shown that takes one of a few words."""
    return Shown(group, first, values)


BUDGET, MORE, OUTPUT = "Budget", "Extra measurements", "Output and machine"
LAYERS, NO_LAYERS = Shown(usual="all"), Shown(usual="none")


GROUPS: Mapping[str, str] = {
    "ModelSettings": "Network",
    "DataSettings": "Images",
    "ScanSettings": "What to look for",
    "PlanSettings": "How to choose",
    "FinetuneSettings": "Hold and train",
    "RobustnessSettings": MORE,
    "PruneSettings": "What to remove",
    "AuditSettings": "Cheaper layers",
    "CompareSettings": "How to compare",
    "CodingSettings": BUDGET,
    "FactorisingSettings": BUDGET,
    "RunSettings": OUTPUT,
    "TrainSettings": "Constraints and penalties",
}
"""The group of the help in which the options of a stage stand, where a field does not name its own."""


def help_of(stage: type[Any], *, in_file: bool = False) -> Iterator[tuple[str, Any, str]]:
    """Yield (field, type, help text) for each option of a settings dataclass, or for what files alone set."""
    hints = get_type_hints(stage)
    for item in fields(stage):
        if bool(item.metadata.get("in_file")) == in_file:
            yield item.name, hints[item.name], item.metadata["help"]


def shown_of(stage: type[Any], name: str) -> Shown:
    """Return how a field is shown, its group filled in."""
    shown: Shown = _metadata(stage, name).get("shown", Shown())
    return replace(shown, group=shown.group or GROUPS[stage.__name__])


def usual_of(stage: type[Any], name: str) -> str:
    """Spell what holds where nothing is said, as help and reference show it."""
    default = getattr(stage(), name)
    if isinstance(default, bool):
        return "on" if default else "off"
    if default is None:
        return shown_of(stage, name).usual or "none"
    return ",".join(f"{item:g}" for item in default) if isinstance(default, tuple) else str(default)


def _metadata(stage: type[Any], name: str) -> Mapping[str, Any]:
    return next(item.metadata for item in fields(stage) if item.name == name)
