"""Threads: a scan works on pieces that stay in one core's cache, and gains nothing from more."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread for a while.

    Several wait for each other at every small step, and their waiting is CPU time; on a busy machine a
    scan then takes many times longer.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
