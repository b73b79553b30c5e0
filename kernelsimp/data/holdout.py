"""Other labelled images to judge a budget by, where the validation split is no fair judge."""

from dataclasses import replace

from kernelsimp.data.sources import load_data
from kernelsimp.data.splits import Data, Split
from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.settings import DataSettings


def holdout_split(data: Data, settings: DataSettings, text: str, seed: int) -> Split:
    """Return the split that `--holdout` names: `train` or `val` of the data, or the test split of another.

    `text` is one of these words or anything that --data takes. Images of the data's own test split are
    refused, wherever they come from: they may not choose anything. Raises `KernelsimpError` for an unknown
    word, no images, and labels beyond the data's classes.
    """
    if text == "test":
        message = "--holdout test: the test split is reported and chooses nothing"
        raise KernelsimpError(f"{message}; name train, val or other data")
    own = {"train": data.train, "val": data.val}
    if text not in own and ":" not in text:
        raise KernelsimpError(f"--holdout is '{text}'{did_you_mean(text, own)}, or any form of --data")
    found = own[text] if text in own else load_data(replace(settings, data=text), seed).test
    if not len(found):
        raise KernelsimpError(f"--holdout {text}: no images there; name other data")
    if text not in own:
        _check(data, found, text)
    return found


def _check(data: Data, found: Split, text: str) -> None:
    largest = int(found.labels.max()) if found.labels.ndim == 1 else -1
    if largest >= data.classes:
        message = f"--holdout {text} has label {largest}, the data classes 0..{data.classes - 1}"
        raise KernelsimpError(f"{message}; name images of the same classes")
    tested = {data.test.store.mark(place) for place in data.test.places.tolist()}
    shared = sum(found.store.mark(place) in tested for place in found.places.tolist())
    if shared:
        message = f"--holdout {text}: {shared} of its {len(found)} images are in the test split"
        raise KernelsimpError(f"{message}, which chooses nothing; name others")
