"""Images that a program already holds: tensors, data sets and loaders, just as a network takes them.

Nothing is resized or normalised: what the data set's own transforms give is the network's input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kernelsimp.data.images import Geometry
from kernelsimp.data.splits import Data, Split, carve
from kernelsimp.data.stores import as_targets
from kernelsimp.errors import KernelsimpError

EXPECTED = "expected a tensor (n, C, H, W), a pair (images, labels), a Dataset or a DataLoader"


@dataclass(frozen=True, eq=False)
class InputStore:
    """Inputs of a network in `items`: a tensor (n, C, H, W), or a data set of inputs or (input, label).

    Labels are 0 where there are none.
    """

    items: Any
    given_labels: Tensor | None = None

    @cached_property
    def labels(self) -> Tensor:
        """The class of each input, int64 (n,)."""
        known = self.given_labels if self.given_labels is not None else getattr(self.items, "targets", None)
        if known is not None and len(known) == len(self.items):
            return as_targets(known, "labels")
        if isinstance(self.items, Tensor) or not self.labelled:
            return torch.zeros(len(self.items), dtype=torch.int64)
        return as_targets([self.items[place][1] for place in range(len(self.items))], "labels")

    @property
    def labelled(self) -> bool:
        """Whether the inputs come with labels."""
        if self.given_labels is not None or isinstance(self.items, Tensor) or not len(self.items):
            return self.given_labels is not None
        return isinstance(self.items[0], tuple | list)

    def batch(self, indices: Sequence[int], geometry: Geometry) -> Tensor:  # noqa: ARG002 (already as it should be)
        """Return inputs (len(indices), C, H, W), float32."""
        if isinstance(self.items, Tensor):
            return self.items[torch.as_tensor(indices, dtype=torch.int64)].float()
        return torch.stack([self._input(place) for place in indices])

    def mark(self, index: int) -> bytes:
        """Return the bytes of an input."""
        return bytes(self.batch([index], _AS_IT_IS).contiguous().numpy().tobytes())

    def _input(self, place: int) -> Tensor:
        item = self.items[place]
        image = item[0] if isinstance(item, tuple | list) else item
        if not isinstance(image, Tensor):
            found = type(image).__name__
            raise KernelsimpError(f"item {place} is a {found}, expected a tensor (C, H, W): add ToTensor()")
        return image.float()


_AS_IT_IS = Geometry(None, None, None)


def split_in_memory(images: Any) -> Split:
    """Return inputs of a network as a split.

    `images` is a tensor (n, C, H, W), a pair of such a tensor and labels (n,), a map-style data set whose
    items are tensors (C, H, W) or pairs of one and a label, or a loader of such a data set. Raises
    `KernelsimpError` for anything else and for nothing.
    """
    items: Any = images.dataset if isinstance(images, DataLoader) else images
    labels: Tensor | None = None
    if (
        isinstance(items, tuple | list)
        and len(items) == 2
        and all(isinstance(part, Tensor) for part in items)
    ):
        items, labels = items
    if isinstance(items, Tensor | np.ndarray):
        items = torch.as_tensor(items).detach().cpu()
    if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")) or isinstance(items, str | dict):
        raise KernelsimpError(f"the images are a {type(images).__name__}; {EXPECTED}")
    if len(items) == 0:
        raise KernelsimpError(f"there are no images; {EXPECTED}")
    if isinstance(items, Tensor) and items.ndim < 3:
        raise KernelsimpError(f"the images have shape {tuple(items.shape)}; {EXPECTED}")
    return Split(InputStore(items, labels), range(len(items)), _AS_IT_IS)


def data_in_memory(images: Any, test: Any = None, *, seed: int = 0) -> Data:
    """Return images that choose and train, a seeded tenth to validate, and `test`, which only reports.

    Raises `KernelsimpError` as `split_in_memory` does.
    """
    whole = split_in_memory(images)
    train, val = carve(whole, seed)
    report = split_in_memory(test) if test is not None else whole.subset([])
    labels = whole.labels if labelled(whole) else torch.zeros(0, dtype=torch.int64)
    classes = int(labels.max()) + 1 if labels.ndim == 1 and labels.numel() else 0
    return Data("images in memory", train, val, report, classes)


def test_in_memory(images: Any) -> Data:
    """Return images that only report; none choose. Raises `KernelsimpError` as `split_in_memory` does."""
    whole = split_in_memory(images)
    return Data("images in memory", whole.subset([]), whole.subset([]), whole, 0)


def labelled(split: Split) -> bool:
    """Say whether the images of a split came with labels."""
    return split.store.labelled if isinstance(split.store, InputStore) else True
