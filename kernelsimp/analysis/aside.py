"""Room for what a scan keeps of every kernel: a network of 10 GB has 300 million of them."""

import tempfile
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

LARGE = 1 << 18
"""Arrays of more entries go to a file."""


def aside(array: NDArray[T]) -> NDArray[T]:
    """Return the array; a large one as a map of a nameless temporary file, which goes when the array goes."""
    if array.size <= LARGE:
        return array
    with tempfile.TemporaryFile() as file:
        array.tofile(file)
        file.flush()
        return np.memmap(file, dtype=array.dtype, mode="r+", shape=array.shape)
