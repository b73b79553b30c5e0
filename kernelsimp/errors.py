"""The one error root, and what each child means to the command line.

An error message is one line that says what was found, what was expected, where, and what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches

MOST_NAMED = 40
"""How many known names an error lists at most."""


class KernelsimpError(Exception):
    """Something the user can mend: bad input, a bad option, an unreadable file. Exit code 2."""

    exit_code = 2


class CheckpointError(KernelsimpError):
    """A checkpoint that cannot be read; a directory scan lists it and goes on."""


class DamagedError(KernelsimpError):
    """A file of ours whose content is not what was written; where it can be made again, that is done."""


class HoldError(KernelsimpError):
    """A held kernel moved, which must be impossible. Exit code 3: our own bug."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known name, or the list of known names.

    The answer is the tail of an error sentence: it begins with its own punctuation.
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"; known: {', '.join(names[:MOST_NAMED])}{more}"
