"""Compile loops over integers with numba where it is installed; without it, the same code runs as Python.

What is written for both uses plain integers below 2^62 and sequences that are indexed one place at a time:
there, and only there, the two give the same bits on every machine.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar, cast

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

AVAILABLE = find_spec("numba") is not None
"""Whether there is a compiler; extra `coding`."""


def compiled(function: F) -> F:
    """Return the function compiled at its first call, and kept on the disk; or as it is, without numba."""
    return _compile(function, {})


def compiled_freely(function: F) -> F:
    """Do the same for arithmetic of floats whose order may change: faster, and not the same everywhere."""
    return _compile(function, {"fastmath": True})


def _compile(function: F, options: dict[str, Any]) -> F:
    if not AVAILABLE:
        return function
    from numba import njit

    try:
        return cast(F, njit(cache=True, **options)(function))
    except RuntimeError:  # there is no folder to keep it in
        return cast(F, njit(**options)(function))


def vector(values: Any) -> Any:
    """Return integers as what compiled code reads fastest: an array, or a list where nothing is compiled."""
    array = np.ascontiguousarray(values, np.int64).reshape(-1)
    return array if AVAILABLE else array.tolist()
