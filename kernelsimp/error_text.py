r"""The one place that makes text of what is foreign: names in files, and the words of other exceptions.

Terminals obey control characters and text runs backwards after an override, so nothing foreign is shown, in
errors, tables, pages, CSV or the reports of CI systems, but through these functions.
"""

MOST_SHOWN = 2_000
"""Characters of a name that are shown."""

MOST_SAID = 10_000
"""Characters of a message that are shown: a sentence and two of the longest paths there are, so that no path
pushes out what is wrong with it."""

FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet takes for the beginning of a formula."""


def printable(text: str, limit: int = MOST_SHOWN) -> str:
    r"""Return text on one line and without effects, of at most `limit` characters.

    Covers ANSI codes, line ends, direction overrides and lone surrogates, which no file could be
    written with; printable characters of any script stay.

    >>> printable("conv\x1b[2J\u202e")
    'conv\\x1b[2J\\u202e'
    """
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _escape(char) for char in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def one_line(text: str, limit: int = MOST_SAID) -> str:
    """Return a message on one line: white space of any kind is a space, the rest as `printable` has it."""
    return printable(" ".join(text.split()), limit)


def csv_cell(text: str) -> str:
    """Return text as a cell of CSV that no spreadsheet takes for a formula: those begin with an apostrophe.

    >>> csv_cell("=1+1"), csv_cell("conv1")
    ("'=1+1", 'conv1')
    """
    text = printable(text)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


def short(error: BaseException | str, limit: int = 120) -> str:
    """Return an exception's message on one line of at most `limit` characters; its type if it has none."""
    return one_line(str(error), limit) or type(error).__name__


def kind_and_words(error: BaseException, limit: int = 120) -> str:
    """Return `ValueError: its message` on one line of at most `limit` characters behind the colon."""
    return f"{type(error).__name__}: {short(error, limit)}"


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")
