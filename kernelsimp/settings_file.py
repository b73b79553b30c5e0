"""Settings from files, options and programs: the one place where what somebody asked for becomes values."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.settings import Given, S, Settings

REGISTRIES = ("zoo", "torchvision", "timm", "hf-hub")
"""Where an architecture is looked up by name; any other source is Python code of the user's."""


CAN_NAME_CODE = (
    ("model", "arch"),
    ("compare", "arch_b"),
    ("data", "data"),
    ("plan", "holdout"),
    ("plan", "metric"),
)
"""Settings whose value may be Python code to run."""


def names_code(key: str, value: Any) -> bool:
    """Say whether a setting of `CAN_NAME_CODE` holds Python code: a file, or for networks a module too.

    A metric is always code, whatever its file is called.
    """
    source, _, name = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if key == "metric":
        return bool(value)
    if key.startswith("arch"):
        return bool(source) and source not in REGISTRIES
    return source.endswith(".py") or name.endswith(".py")


def given_from(options: Mapping[str, Any], stages: Iterable[str]) -> Given:
    """Return options by name as what was asked of each of the `stages`; one that two share goes to both.

    Raises `KernelsimpError` for a name that none of them knows, with the nearest one.
    """
    hints = get_type_hints(Settings)
    known = {name: {item.name for item in fields(hints[name])} for name in stages}
    everything = set().union(*known.values())
    for option in options:
        if option not in everything:
            raise KernelsimpError(f"unknown option '{option}'{did_you_mean(option, everything)}")
    return {
        name: {key: options[key] for key in sorted(keys & options.keys())} for name, keys in known.items()
    }


def settle(command_line: Given, config: str | None = None, base: Given | None = None) -> Settings:
    """Return all settings: the command line wins over the `config` file, that over `base`, then defaults.

    `config` is a path or `recipe:NAME`. Raises `KernelsimpError` for what cannot be read or is unknown, and
    where the file would run code that the command line does not name.
    """
    file = read_toml(config_path(config)) if config else {}
    _check_runs_no_code(file, command_line, str(config))
    hints = get_type_hints(Settings)
    for name in file:
        if name not in hints:
            raise KernelsimpError(f"{config}: unknown stage [{name}]{did_you_mean(name, hints)}")
    if config:  # whoever names a settings file has chosen
        file = {**file, "run": {"recipe": "none", **file.get("run", {})}}
    given = (command_line, file, base or {})
    where = config or "settings"
    return Settings(
        **{
            name: build(stage, *(layer.get(name, {}) for layer in given), where=f"{where} [{name}]")
            for name, stage in hints.items()
        }
    )


def _check_runs_no_code(file: Given, command_line: Given, where: str) -> None:
    """Raise `KernelsimpError` where a file names code; only the command line is surely the user's own."""
    if file.get("model", {}).get("trust_pickle") not in (None, False):
        advice = "no file may allow it: take it out, and pass --trust-pickle if you trust the checkpoint"
        raise KernelsimpError(f"{where} [model]: 'trust_pickle' is set; {advice}")
    for stage, key in CAN_NAME_CODE:
        value = file.get(stage, {}).get(key)
        if names_code(key, value) and command_line.get(stage, {}).get(key) is None:
            flag = f"--{key.replace('_', '-')}"
            raise KernelsimpError(
                f"{where} [{stage}]: '{key}' is the Python code {value}, which no file may have run; "
                f"pass {flag} {value} too if you trust it"
            )


def recipe(name: str) -> Given:
    """Return the [data] stage of a recipe that comes with the package: what an architecture brings along."""
    return {"data": read_toml(config_path(f"recipe:{name}")).get("data", {})}


def config_path(config: str) -> Path:
    """Return the file of a `--config` value: a path, or `recipe:NAME` for one that comes with the package."""
    if not config.startswith("recipe:"):
        return Path(config)
    name, known = config.removeprefix("recipe:"), recipes()
    if name not in known:
        raise KernelsimpError(f"unknown recipe '{name}'{did_you_mean(name, known)}")
    return known[name]


def recipes() -> dict[str, Path]:
    """Return the settings files that come with the package by their names."""
    package = Path(__file__).parent
    folders = (package / "configs", package.parent / "configs")  # in a wheel, in a checkout
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def read_toml(path: Path) -> dict[str, dict[str, Any]]:
    """Read a settings file into {stage: {key: value}}; dashes in keys become underscores.

    Raises `KernelsimpError` where the file is missing, is no TOML or has keys outside a stage.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise KernelsimpError(f"{path}: no such file of settings; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise KernelsimpError(f"{path}: cannot read settings: {said}") from error
    except tomllib.TOMLDecodeError as error:
        raise KernelsimpError(f"{path}: not a TOML file: {error}") from error
    for stage, table in raw.items():
        if not isinstance(table, dict):
            advice = "put it under its heading, such as [data]"
            raise KernelsimpError(f"{path}: key '{stage}' stands outside a stage; {advice}")
    return {
        stage: {key.replace("-", "_"): value for key, value in table.items()} for stage, table in raw.items()
    }


def build(stage: type[S], *layers: Mapping[str, Any], where: str = "settings") -> S:
    """Return the settings of one stage from mappings in falling order of precedence.

    A value of None does not count as given. Raises `KernelsimpError` for an unknown key (with the nearest
    known one) or a value of the wrong type.
    """
    hints = get_type_hints(stage)
    values: dict[str, Any] = {}
    for layer in reversed(layers):
        for key, value in layer.items():
            if key not in hints:
                raise KernelsimpError(f"{where}: unknown key '{key}'{did_you_mean(key, hints)}")
            if value is not None:
                values[key] = _coerce(value, hints[key], f"{where}: '{key}'")
    return stage(**values)


def as_toml(settings: Settings) -> str:
    """Write settings as TOML that `settle` reads back to the same; None is left out.

    So is trust in pickles, which no file may give.
    """
    lines: list[str] = []
    for name, stage in asdict(settings).items():
        stage.pop("trust_pickle", None)
        lines.append(f"[{name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in stage.items() if value is not None]
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return repr(value)


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Turn a TOML or command-line value into the field's type, or say what was expected."""
    choices = [item for item in get_args(hint) if item is not type(None)]
    if get_origin(hint) is not tuple and choices:  # X | None
        hint = choices[0]
    try:
        if get_origin(hint) is tuple:
            return _sequence(value, get_args(hint)[0], where)
        if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if hint is not float and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
            return value
    except (TypeError, ValueError):
        pass
    raise KernelsimpError(f"{where} is {value!r}; expected {_spell(hint)}")


def _sequence(value: Any, item: Any, where: str) -> tuple[Any, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if item is float:
        return tuple(float(part) for part in parts)
    return tuple(_coerce(part.strip() if isinstance(part, str) else part, item, where) for part in parts)


def _spell(hint: Any) -> str:
    if get_origin(hint) in (tuple, Union):
        return f"a list of {get_args(hint)[0].__name__}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))
