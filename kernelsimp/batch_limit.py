"""How many images go through a network at once: all that there are, and half wherever memory does not do."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.memory import is_out_of_memory
from kernelsimp.shelf import batch_size, smaller_batches
from kernelsimp.watch import SILENT, Watcher

T = TypeVar("T")

ONE_IS_TOO_MANY = "memory does not do for one image at once; pass a smaller --input-size, or --device cpu"


@dataclass(eq=False)
class BatchLimit:
    """`most` images at once, None for any number; halved for good where memory does not do, and told so.

    Fewer than `least` are never tried.

    >>> import torch
    >>> BatchLimit(most=2).in_parts(lambda images: images.sum().item(), torch.ones(5))
    [2.0, 2.0, 1.0]
    """

    watcher: Watcher = SILENT
    most: int | None = None
    least: int = 1

    def in_parts(
        self, work: Callable[..., T], *rows: Any, restart: Callable[[], object] | None = None
    ) -> list[T]:
        """Return what `work` gives for `rows` (tensors or ranges of one length), at once or in parts.

        A part that memory does not do for is done again, halved; with `restart`, which takes back what `work`
        has left behind, all parts are. Raises `KernelsimpError` where memory does not do for one image, or
        what torch raised where it does not do for `least` of them.
        """
        made: list[T] = []
        count, done = len(rows[0]), 0
        while done < count:
            left = count - done
            stop = done + math.ceil(left / math.ceil(left / (self.most or left)))  # parts of about one size
            failed = False
            try:
                made.append(work(*(item[done:stop] for item in rows)))
            except (RuntimeError, MemoryError) as error:
                self._halve(error, stop - done)
                failed = True
            if failed:  # by now what did not fit, which the error held on to, is gone
                stop = done
                if restart is not None:
                    restart()
                    made, stop = [], 0
            done = stop
        return made

    def in_batches(self, work: Callable[[Sequence[Tensor]], T], batches: Sequence[Tensor]) -> T:
        """Return what `work` gives for all batches; where memory does not do, for smaller ones.

        Raises `KernelsimpError` where memory does not do for one image.
        """
        while True:
            some = batches if self.most is None else smaller_batches(batches, self.most)
            try:
                return work(some)
            except (RuntimeError, MemoryError) as error:
                self._halve(error, batch_size(some))

    def _halve(self, error: BaseException, images: int) -> None:
        if not is_out_of_memory(error):
            raise error
        if images // 2 < self.least > 1:
            raise error
        if images // 2 < 1 or images // 2 == self.most:  # a mirrored pair goes together
            raise KernelsimpError(ONE_IS_TOO_MANY) from error
        self.most = images // 2
        self.watcher.warn(f"out of memory with {images} images at once: going on with {self.most}")
