"""What a network returns, whatever its form: a tensor, or tensors under keys, attributes or places.

`--output KEY` keeps one of them: a hook on the network, so that everything that runs it sees that one.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError

MOST_NAMED = 6


def entries_of(output: object) -> list[tuple[str, Any]]:
    """Return (key, value) of what a network returned, none of a tensor; a sequence's keys are its places."""
    if isinstance(output, Tensor) or output is None:
        return []
    if isinstance(output, Mapping):
        return [(str(key), value) for key, value in output.items()]
    if is_dataclass(output) and not isinstance(output, type):
        return [(item.name, getattr(output, item.name)) for item in fields(output)]
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", None) or range(len(output))
        return [(str(name), value) for name, value in zip(names, output, strict=True)]
    return list(vars(output).items()) if hasattr(output, "__dict__") else []


def describe_output(output: object) -> str:
    """Spell what a network returned: its shape, or the type with the shapes of its parts."""
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    parts = entries_of(output)
    listed = ", ".join(f"{key} {_short(value)}" for key, value in parts[:MOST_NAMED])
    more = f" and {len(parts) - MOST_NAMED} more" if len(parts) > MOST_NAMED else ""
    return f"{type(output).__name__} of {listed}{more}" if parts else type(output).__name__


def pick_output(output: object, key: str) -> object:
    """Return the part of an output that `key` names: a key, an attribute or a place, dots going deeper.

    A lone tensor is taken as it is: a network may return the others in training alone. Raises
    `KernelsimpError` where there is no such part, naming those that there are.
    """
    if isinstance(output, Tensor):
        return output
    whole = dict(entries_of(output))
    if key in whole:
        return whole[key]
    first, _, rest = key.partition(".")
    if rest and first in whole:
        return pick_output(whole[first], rest)
    values = list(whole.values())
    if key.removeprefix("-").isdigit() and -len(values) <= int(key) < len(values):
        return values[int(key)]
    raise KernelsimpError(f"--output {key}: the network returns {describe_output(output)}; name one of these")


def keep_output(model: nn.Module, key: str | None) -> nn.Module:
    """Make a network, in place, return only the part of its output that `key` names; None changes nothing."""
    if key is not None:
        model.register_forward_hook(lambda _module, _inputs, output: pick_output(output, key))
    return model


def _short(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
