"""In which precision the engine multiplies: float64 on a CPU, float32 on a card.

Consumer cards multiply float64 at 1/64 of the rate of float32. There the products that take the time are
taken in float32 and added up, or corrected, in float64: what is chosen and fitted stays that of float64.
"""

import torch

DOUBLE = frozenset({"cpu"})
"""The kinds of devices that multiply in float64."""


def product_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of products that cost as much as a fit does.

    >>> product_dtype(torch.device("cpu")), product_dtype(torch.device("cuda"))
    (torch.float64, torch.float32)
    """
    return torch.float64 if device.type in DOUBLE else torch.float32
