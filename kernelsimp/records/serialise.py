"""Records as JSON: the field names are the keys, NaN and infinity become null, tuples become lists.

`plain` turns records into JSON values and `restored` turns JSON values back into a record by its type
hints. Unknown keys are passed over, because additions to a schema are free.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

T = TypeVar("T")


class MisfitError(ValueError):
    """A JSON value that does not fit the record; the text names the key."""


def to_plain(value: Any) -> Any:
    """Return `value` as JSON values only; anything foreign as its text."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value)


def json_text(data: Any) -> str:
    """Return `data` as JSON text of one key a line, in ASCII, ending in a line end."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def restore(record: type[T], value: Any, where: str = "") -> T:
    """Return the dataclass `record` from the JSON object `value`.

    Raises `MisfitError` with the key of the first missing or mistyped value.
    """
    hints = get_type_hints(record)
    known = fields(record)  # type: ignore[arg-type]
    if not isinstance(value, dict):
        raise MisfitError(f"key '{where}' is {_spell(value)}; expected an object")
    return record(
        **{
            item.name: _fit_to_hint(hints[item.name], value[item.name], _under(where, item.name))
            for item in known
            if _there(item, value, where)
        }
    )


def _there(item: Field[Any], value: Mapping[str, Any], where: str) -> bool:
    optional = item.default is not MISSING or item.default_factory is not MISSING
    if item.name not in value and not optional:
        raise MisfitError(f"key '{_under(where, item.name)}' is missing")
    return item.name in value


def _fit_to_hint(hint: Any, value: Any, where: str) -> Any:
    """Return `value` as `hint` asks; a null where a number belongs is what a NaN was written as."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        inner = [item for item in get_args(hint) if item is not type(None)]
        return None if value is None else _fit_to_hint(inner[0], value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return restore(hint, value, where)
    if origin is tuple:
        return _fitted_tuple(get_args(hint), value, where)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise MisfitError(f"key '{where}' is {_spell(value)}; expected an object")
        return {key: _fit_to_hint(get_args(hint)[1], item, _under(where, key)) for key, item in value.items()}
    return _fitted_scalar(hint, value, where)


def _fitted_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise MisfitError(f"key '{where}' is {_spell(value)}; expected a list")
    hints = [items[0]] * len(value) if items[-1] is Ellipsis else list(items)
    if len(hints) != len(value):
        raise MisfitError(f"key '{where}' has {len(value)} items; expected {len(hints)}")
    pairs = zip(hints, value, strict=True)
    return tuple(_fit_to_hint(hint, item, f"{where}[{place}]") for place, (hint, item) in enumerate(pairs))


def _fitted_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and value is None:
        return math.nan
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise MisfitError(f"key '{where}' is {_spell(value)}; expected {_NAMES[hint]}")


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _under(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _spell(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
