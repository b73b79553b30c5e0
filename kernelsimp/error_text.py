"""An exception of other people's code on one line, for a message of ours to quote."""


def short(error: BaseException | str, limit: int = 120) -> str:
    """Return an exception's message on one line of at most `limit` characters; its type if it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def kind_and_words(error: BaseException, limit: int = 120) -> str:
    """Return `ValueError: its message` on one line of at most `limit` characters behind the colon."""
    return f"{type(error).__name__}: {short(error, limit)}"
