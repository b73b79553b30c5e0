"""What the shell offers for the value of an option.

The names stand here a second time because asking the tables for them imports torch, which takes seconds; a
test holds the two together.
"""

import os
from collections.abc import Callable, MutableMapping
from pathlib import Path

from kernelsimp.settings_file import recipes

NAMES: dict[str, tuple[str, ...]] = {
    "networks": (
        *(f"zoo:{name}" for name in ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")),
        *("zoo:digits-cnn", "zoo:digits-depthwise"),
        "torchvision:",
        "timm:",
    ),
    "sources": ("digits", "npz:", "npy:", "imagefolder:", "torchvision:"),
    "families": (
        *("linear", "seventeen", "bent", "templates", "prototypes", "all"),
        *("mirror-h", "mirror-v", "transpose", "anti-transpose", "half-turn", "both-mirrors"),
        *("both-transposes", "full-square", "quarter-turn", "radial", "odd-h", "odd-v", "odd-transpose"),
        *("odd-anti-transpose", "odd-half-turn", "odd-h-even-v", "even-h-odd-v", "odd-turn-even-h"),
        *("odd-turn-odd-h", "odd-square", "equal-rows", "equal-columns", "constant", "centre-cell"),
        *("centre-row", "centre-column", "cross"),
    ),
    "denoisers": ("gaussian", "median", "tv", "bilateral", "dct", "svd", "wavelet", "pca", "wiener"),
    "corruptions": (
        *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
        *("gaussian_blur", "defocus_blur", "glass_blur", "zoom_blur"),
        *("fog", "brightness", "contrast", "elastic_transform"),
        *("pixelate", "jpeg_compression", "saturate"),
    ),
}


BASH = "complete_bash"


class _Tail(str):
    """The rest of a name behind its colon: typer drops what does not begin with all that was typed."""

    __slots__ = ()

    def startswith(self, *_: object) -> bool:
        """Agree: the whole name has been compared already."""
        return True


def join_colons(environment: MutableMapping[str, str]) -> None:
    """Undo what bash does to the words of a line that is to be completed: it takes `a:b` for three words."""
    if environment.get("_KERNELSIMP_COMPLETE") != BASH:
        return
    words = environment["COMP_WORDS"].split()
    place = int(environment["COMP_CWORD"])
    joined: list[str] = []
    for number, word in enumerate(words):
        glued = number > 0 and ":" in (word, words[number - 1])
        if glued:
            joined[-1] += word
        else:
            joined.append(word)
        if number <= int(environment["COMP_CWORD"]):
            place -= glued
    environment["COMP_WORDS"], environment["COMP_CWORD"] = " ".join(joined), str(place)


def completer(values: tuple[str, ...] | str) -> Callable[[str], list[str]]:
    """Return what completes a value, or the last item of a comma-separated one, from words or a table."""
    known = NAMES[values] if isinstance(values, str) else values

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return _offered([f"{before}{comma}{name}" for name in known if name.startswith(last)], incomplete)

    return complete


def complete_config(incomplete: str) -> list[str]:
    """Return the recipes and settings files whose names begin so."""
    named = [f"recipe:{name}" for name in recipes()]
    files = [str(path) for path in Path().glob("*.toml")]
    return _offered([name for name in (*named, *files) if name.startswith(incomplete)], incomplete)


def _offered(names: list[str], incomplete: str) -> list[str]:
    """Return the names, for bash without what stands before the colon that it has split at."""
    cut = incomplete.rfind(":") + 1 if os.environ.get("_KERNELSIMP_COMPLETE") == BASH else 0
    return [_Tail(name[cut:]) for name in names] if cut else names
