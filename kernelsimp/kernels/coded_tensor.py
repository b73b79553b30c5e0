"""A tensor as integers times one step: what is coded, and the numbers that it stands for."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class CodedTensor:
    """Integers, (outputs, cells of a filter) or one a bias, times one float32 step; `bits` of their code."""

    values: NDArray[np.int64]
    step: np.float32
    bits: float = 0.0

    def numbers(self) -> NDArray[np.float32]:
        """Return the values that the integers stand for: one float32 product each.

        >>> CodedTensor(np.array([3, -1]), np.float32(0.5)).numbers().tolist()
        [1.5, -0.5]
        """
        product: NDArray[np.float32] = self.values.astype(np.float32) * np.float32(self.step)
        return product
