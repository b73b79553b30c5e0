"""The one error root, and what each child means to the command line.

An error message is one line that says what was found, what was expected, where, and what to do.
"""

import re
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

from kernelsimp.error_text import one_line

MOST_NAMED = 40
"""How many known names an error lists at most."""


class KernelsimpError(Exception):
    """Something the user can mend: bad input, a bad option, an unreadable file. Exit code 2.

    Its text is one line without control characters, whatever a file or an option had in it.
    """

    exit_code = 2

    def __str__(self) -> str:
        return one_line(Exception.__str__(self))  # not the quoted one of a KeyError


class CheckpointError(KernelsimpError):
    """A checkpoint that cannot be read; a directory scan lists it and goes on."""


class UnknownNameError(KernelsimpError, KeyError):
    """A name that a result does not have: `in` and `get` of a mapping take it for the KeyError that it is."""


class DamagedError(KernelsimpError):
    """A file of ours whose content is not what was written; where it can be made again, that is done."""


class HoldError(KernelsimpError):
    """A held kernel moved, which must be impossible. Exit code 3: our own bug."""

    exit_code = 3


EXTRAS = {
    "demo": "scikit-learn",
    "onnx": "onnx onnxruntime",
    "timm": "timm",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow-skinny",
    "coding": "numba",
    "zoo": "distributed pyarrow",
    "remote": "fsspec aiohttp",
}
"""The packages that each optional part needs."""


def how_to_install(extra: str) -> str:
    """Return the line that installs what an optional part needs.

    It names the package itself, which is right for a checkout, a wheel and an install from an index alike; an
    index need not have this program under its name.
    """
    return f"pip install {EXTRAS[extra]}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`; of two alike, the one whose number is nearer.

    >>> nearest("resnet21", ["resnet110", "resnet32", "resnet20"])
    'resnet20'
    """
    near = get_close_matches(name, sorted(known), n=8)

    def rank(other: str) -> tuple[float, int]:
        return -SequenceMatcher(None, other, name).ratio(), abs(_number(other) - _number(name))

    return min(near, key=rank, default=None)


def _number(name: str) -> int:
    digits = re.findall(r"\d+", name)
    return int(digits[-1][:18]) if digits else 0


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known name, or the list of known names.

    The answer is the tail of an error sentence: it begins with its own punctuation.
    """
    names = sorted(known)
    near = nearest(name, names)
    if near:
        return f"; did you mean '{near}'?"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"; known: {', '.join(names[:MOST_NAMED])}{more}"
