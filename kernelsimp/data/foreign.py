"""Data sets that others wrote: those of torchvision, and a function in the user's own file.

Nothing is downloaded. A data set is map-style: a length, and items (image, label).
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from kernelsimp.data.images import to_image
from kernelsimp.data.splits import FoundSplits, Request, Split
from kernelsimp.data.stores import ArrayStore, ForeignStore, Store, as_images, as_labels
from kernelsimp.error_text import kind_and_words, short
from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.files import tensors_only, user_function


def load_torchvision(request: Request) -> FoundSplits:
    """Open a torchvision data set that lies on disk: ``NAME?root=DIR``, further options behind ``&``.

    Raises `KernelsimpError` for an unknown name, a missing root, a data set without train and test, and
    where the files are not there.
    """
    name, _, query = request.where.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    where = f"torchvision:{name}"
    make = _maker(name)
    if "root" not in options:
        raise KernelsimpError(f"--data {where}: no root given; expected {where}?root=DIR")
    sets = _open(make, options, where)
    warnings: tuple[str, ...] = ()
    if "test" not in sets:  # ImageNet and the like publish labels for val only
        sets["test"] = sets.pop("val")
        warnings = (f"{where} has no labelled test split: its val is reported on and chooses nothing",)
    splits = {word: _as_split(items, where, request) for word, items in sets.items()}
    known = getattr(sets["test"], "classes", None)
    return FoundSplits(
        splits["test"], splits.get("train"), splits.get("val"), len(known) if known else None, warnings
    )


def _maker(name: str) -> Callable[..., Any]:
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        advice = "install the torchvision that matches this torch"
        raise KernelsimpError(f"torchvision cannot be imported: {short(error)}; {advice}") from error
    known = {key: item for key, item in vars(datasets).items() if inspect.isclass(item) and _flag(item)}
    if name not in known:
        raise KernelsimpError(f"torchvision has no data set '{name}' with splits{did_you_mean(name, known)}")
    maker: Callable[..., Any] = known[name]
    return maker


def _flag(make: Callable[..., Any]) -> str | None:
    """Return the parameter that chooses the split: train, or split, or none."""
    parameters = inspect.signature(make).parameters
    return next((word for word in ("train", "split") if word in parameters), None)


def _open(make: Callable[..., Any], options: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return the data sets of the splits there are: test or val at least."""
    if _flag(make) == "train":
        return {word: _make(make, options, where, train=word == "train") for word in ("train", "test")}
    sets: dict[str, Any] = {}
    for word in ("train", "val", "test"):
        try:
            sets[word] = _make(make, options, where, split=word)
        except ValueError:  # the data set has no split of this name
            continue
    if not {"val", "test"} & set(sets):
        raise KernelsimpError(f"{where}: found splits {', '.join(sets) or 'none'}; expected test")
    return sets


def _make(make: Callable[..., Any], options: Mapping[str, str], where: str, **chosen: Any) -> Any:
    try:
        with tensors_only():
            return make(**options, **chosen)
    except ValueError:
        raise
    except Exception as error:  # RuntimeError, OSError, TypeError, ImportError: each data set its own
        root = f"under {options['root']}"
        advice = "download it there with torchvision first, or name another root"
        raise KernelsimpError(f"{where}: cannot open it {root}: {short(error, 160)}; {advice}") from error


def load_callable(request: Request) -> FoundSplits:
    """Call the function of ``file.py:callable``; it returns {'train', 'val', 'test'} of data sets.

    Raises `KernelsimpError` where the file or the function is missing or fails, or returns something else;
    only 'test' must be there.
    """
    sets = _call(request.where)
    if not isinstance(sets, Mapping) or not set(sets) <= {"train", "val", "test"} or "test" not in sets:
        dictionary = isinstance(sets, Mapping)
        found = f"a dict of {', '.join(map(str, sets))}" if dictionary else f"a {type(sets).__name__}"
        wanted = "a dict with 'test' and, where there are, 'train' and 'val'"
        raise KernelsimpError(f"{request.where}: returned {found}; expected {wanted}")
    for word, items in sets.items():
        if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
            found = type(items).__name__
            raise KernelsimpError(
                f"{request.where}: '{word}' is a {found}; expected a data set with len() and [i]"
            )
    splits = {word: _as_split(items, request.where, request) for word, items in sets.items()}
    return FoundSplits(splits["test"], splits.get("train"), splits.get("val"))


def _call(text: str) -> Any:
    """Call the function of the user's file."""
    function = user_function(text)
    try:
        return function()
    except Exception as error:  # the user's code
        raise KernelsimpError(f"{text}: {kind_and_words(error, 200)}; mend the function") from error


def _as_split(items: Any, where: str, request: Request) -> Split:
    store: Store | None = _in_memory(items, where)
    if store is None:
        store = ForeignStore(items, where)
    return Split(store, np.arange(len(items)), request.geometry)


def _in_memory(items: Any, where: str) -> ArrayStore | None:
    """Return the arrays behind a data set that keeps them as `data` and `targets`, if they are the items.

    That is so where the first, middle and last item equal the rows, images and labels: a transform shows.
    """
    data, targets = getattr(items, "data", None), getattr(items, "targets", getattr(items, "labels", None))
    if not isinstance(data, np.ndarray | Tensor) or targets is None or not len(data) == len(targets) > 0:
        return None
    if any(
        getattr(items, name, None) is not None for name in ("transform", "transforms", "target_transform")
    ):
        return None
    try:
        store = ArrayStore(as_images(np.asarray(data), where), as_labels(np.asarray(targets), where))
    except KernelsimpError:
        return None
    same = len(items) == len(data) and all(_same(items, store, i) for i in {0, len(data) // 2, len(data) - 1})
    return store if same else None


def _same(items: Any, store: ArrayStore, index: int) -> bool:
    try:
        image, label = items[index]
    except Exception:  # the error comes again, with its place, when the image is asked for
        return False
    seen, kept = to_image(image, ""), store.images[index]
    return int(label) == int(store.labels[index]) and seen.dtype == kept.dtype and torch.equal(seen, kept)
