"""In which precision the engine multiplies: float64 on a CPU, float32 on a card.

Consumer cards multiply float64 at 1/64 of the rate of float32. There the products that take the time are
taken in float32 and added up, or corrected, in float64: what is chosen and fitted stays that of float64.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

DOUBLE = frozenset({"cpu"})
"""The kinds of devices that multiply in float64."""


def product_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of products that cost as much as a fit does.

    >>> product_dtype(torch.device("cpu")), product_dtype(torch.device("cuda"))
    (torch.float64, torch.float32)
    """
    return torch.float64 if device.type in DOUBLE else torch.float32


@contextmanager
def full_float32() -> Iterator[None]:
    """Have float32 mean float32 on a card within the block, in products and in convolutions.

    TF32, which torch's convolutions use unless told otherwise, keeps 10 bits of 23.
    """
    cudnn: Any = torch.backends.cudnn
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, own in zip(places, before, strict=True):
            place.fp32_precision = own
