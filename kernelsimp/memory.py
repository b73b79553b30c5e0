"""How much memory a command may take: what is free on the machine, in its control group and on the GPU.

All figures are bytes. Nothing is reserved: a stage asks what is left before it chooses how much it does at
once.
"""

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

GB = 1e9

BESIDE = 0.25
"""The share of the memory that stays for what is not counted: copies of the network, tables, fragments."""

ENOUGH = 1 << 30
"""On a CPU more than this at once (1 GiB) makes nothing faster."""

PIXELS_AT_ONCE = 16 * 224 * 224
"""On a CPU a pass without gradients takes so many pixels at once: larger batches are no faster there."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""What glibc's `mallopt` calls the free bytes it keeps, the size from which it asks the system, its heaps."""

REUSED = 1 << 25
"""Pieces up to this (32 MiB, the most that every glibc takes) are worth keeping for the next of that size."""

SHARE_AT_ONCE = 1 / 8
"""The share of a GPU's free memory that the numbers of one step may take."""

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""The limit and the use of the second and the first version of Linux's control groups."""


@dataclass(frozen=True)
class Room:
    """What a stage may take: `bytes` of the whole process, `batch` images at once, `folder` for the rest.

    >>> Room(bytes=4 * 10**9, batch=64).kept
    200000000
    """

    bytes: float = 8 * GB
    batch: int = 128
    folder: Path | None = None

    @property
    def kept(self) -> int:
        """What one store may keep in memory before it goes to files: a twentieth, and never over 256 MiB."""
        return int(min(self.bytes / 20, 1 << 28))

    def left(self, device: torch.device) -> int:
        """Return what is left of the room now, less a part for what is not counted."""
        give_back()  # what was freed before is not in use
        return int((1 - BESIDE) * self.bytes) - used_bytes(device)

    def working(self, device: torch.device) -> int:
        """Return what the activations of one pass may take now."""
        return self.left(device) if device.type == "cuda" else min(self.left(device), ENOUGH)


USUAL = Room()


def free_bytes(device: torch.device) -> int:
    """Return what is free: on the GPU, or on the machine and within its control group."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        share = torch.cuda.get_per_process_memory_fraction(device)
        ours = min(free + torch.cuda.memory_reserved(device), int(share * total))
        return int(max(0, ours - torch.cuda.memory_allocated(device)))
    return min([_machine_free(), *(_group_free(*files) for files in CGROUPS)])


def resident_bytes() -> int:
    """Return what this process holds in memory of its own now; 0 where the system does not tell.

    Pages of libraries and of other mapped files, up to a gigabyte of them with a large torch, are not
    counted: the system takes them back when it needs them.
    """
    try:
        _, resident, mapped, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
        return (int(resident) - int(mapped)) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def used_bytes(device: torch.device) -> int:
    """Return what this process holds on a device: of its own on the CPU, allocated on a GPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def numbers_at_once(device: torch.device, usual: int, each: int) -> int:
    """Return how many numbers one step may work on, where each takes `each` bytes with all its copies.

    On a CPU it is `usual`: more is no faster there. On a GPU it is what the card has room for.

    >>> numbers_at_once(torch.device("cpu"), 1 << 20, 16)
    1048576
    """
    if device.type == "cpu":
        return usual
    return max(1, int(SHARE_AT_ONCE * free_bytes(device)) // each)


def give_back() -> None:
    """Hand freed memory back to the system, which the C library may keep: gigabytes of it, in a long run."""
    with suppress(AttributeError, OSError, TypeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)


def share_one_heap() -> None:
    """Let threads that start from now on share one heap of the C library's.

    Each has its own otherwise, and keeps tens of megabytes in it of what it has freed: worth it for threads
    that run at once, not for those that take turns.
    """
    _set_heap(M_ARENA_MAX, 1)


def reuse_freed_memory() -> None:
    """Let this process keep what it frees and use it again, up to 256 MiB of it.

    For work that takes and frees the same middling pieces without end: a third of a scan of many networks is
    the system's clearing of pages otherwise.
    """
    _set_heap(M_MMAP_THRESHOLD, REUSED)
    _set_heap(M_TRIM_THRESHOLD, 8 * REUSED)


def _set_heap(what: int, value: int) -> None:
    with suppress(AttributeError, OSError, TypeError):  # glibc's alone
        ctypes.CDLL(None).mallopt(what, value)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether torch failed for want of memory, on a GPU or on the CPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _machine_free() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _group_free(limit: str, used: str) -> int:
    """Return what a control group leaves; a great number where there is none, or none that limits."""
    try:
        return int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" is no number
        return 1 << 62
