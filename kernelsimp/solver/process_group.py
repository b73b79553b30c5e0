"""What several processes that plan together exchange: sums over their images, and what the first one decides.

Every process goes the same way through the survey and the re-solve, each with its own part of every batch of
images. Sums over images are added up over all of them; whatever is chosen or fitted is so by the first one
alone, and told to the others: no two can come to differ by rounding. It all goes by gloo and over the CPU,
whatever the network runs on. A process that is alone exchanges nothing.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from kernelsimp.error_text import short
from kernelsimp.errors import KernelsimpError

PATIENCE = timedelta(days=30)
"""How long a process waits for the others: the first one may measure a large test split meanwhile."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class OtherProcessError(KernelsimpError):
    """Another process could not go on, and says why itself."""


class _Failed:
    """Is told in place of what the first process could not make."""


@dataclass(frozen=True, eq=False)
class ProcessGroup:
    """This process's `rank` among `size`; `link` is torch's group of them, None for one that is alone.

    >>> ALONE.total([1.0, 2.0]), ALONE.from_first(lambda: "a plan")
    ([1.0, 2.0], 'a plan')
    """

    rank: int = 0
    size: int = 1
    link: Any = None

    @staticmethod
    def of_launched() -> "ProcessGroup":
        """Return the group of all processes that `torch.distributed` knows; each of them must call this."""
        with _told():
            link = dist.new_group(backend="gloo", timeout=PATIENCE)
        return ProcessGroup(dist.get_rank(), dist.get_world_size(), link)

    @property
    def first(self) -> bool:
        """Whether this is the process that decides, writes and talks."""
        return self.rank == 0

    def sums(self, tensors: Mapping[K, Tensor]) -> dict[K, Tensor]:
        """Return each tensor summed over the processes, in its own dtype; one that is not there counts as 0.

        A tensor that another process alone has is on the CPU, the others are on their own device.
        """
        if self.size == 1:
            return dict(tensors)
        everyone: dict[K, tuple[torch.Size, torch.dtype]] = {}
        for forms in self.gather({key: (value.shape, value.dtype) for key, value in tensors.items()}):
            everyone |= forms
        found = {}
        for key, (shape, dtype) in everyone.items():
            total = torch.zeros(shape, dtype=dtype)
            if key in tensors:
                total.copy_(tensors[key])
            with _told():
                dist.all_reduce(total, group=self.link)
            found[key] = total.to(tensors[key].device) if key in tensors else total
        return found

    def total(self, values: Sequence[float]) -> list[float]:
        """Return each number summed over the processes."""
        return list(self.sums({"": torch.tensor(values, dtype=torch.float64)})[""].tolist())

    def gather(self, value: T) -> list[T]:
        """Return what each process gives, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _told():
            dist.all_gather_object(found, value, group=self.link)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what `make` gives in the first process; the others do not call it, and get a copy.

        `make` must exchange nothing itself. Raises `OtherProcessError` in the others where it fails.
        """
        if self.size == 1:
            return make()
        if not self.first:
            told = self._broadcast(None)
            if isinstance(told, _Failed):
                raise OtherProcessError("the first process could not go on; it says why")
            return told  # type: ignore[no-any-return]
        try:
            made = make()
        except BaseException:
            with suppress(OtherProcessError):  # what went wrong first is said
                self._broadcast(_Failed())
            raise
        self._broadcast(made)
        return made

    def _broadcast(self, value: object) -> Any:
        box = [value]
        with _told():
            dist.broadcast_object_list(box, src=0, group=self.link)
        return box[0]


ALONE = ProcessGroup()


@contextmanager
def _told() -> Iterator[None]:
    """Turn what torch says of a lost process into one line."""
    try:
        yield
    except RuntimeError as error:
        raise OtherProcessError(
            f"another process of this run has ended; see what it said ({short(error)})"
        ) from error
