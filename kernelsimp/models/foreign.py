"""Around calls into other people's code: its warnings kept quiet, its exceptions put on one line."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's own warnings about old formats and defaults to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def short(error: BaseException, limit: int = 120) -> str:
    """Return an exception's message on one line of at most `limit` characters; its type if it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def kind_and_words(error: BaseException) -> str:
    """Return `ValueError: its message` on one line."""
    return f"{type(error).__name__}: {short(error)}"
