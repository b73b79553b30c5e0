"""How exactly a card multiplies float32: with all 23 bits of a fraction, or with the 10 that TF32 keeps.

torch's convolutions take TF32 unless told otherwise. On a CPU, and on a card before Ampere, there is none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Have float32 mean float32 on a card within the block, in products and in convolutions."""
    with _float32_as("ieee"):
        yield


@contextmanager
def tf32() -> Iterator[None]:
    """Have a card take TF32 within the block, in products and in convolutions.

    >>> with full_float32(), tf32():
    ...     torch.backends.cuda.matmul.fp32_precision
    'tf32'
    """
    with _float32_as("tf32"):
        yield


@contextmanager
def _float32_as(kind: Literal["ieee", "tf32"]) -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = kind
    try:
        yield
    finally:
        for place, own in zip(places, before, strict=True):
            place.fp32_precision = own
