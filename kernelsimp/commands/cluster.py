"""Many equal tasks: one after another here, or by Dask's workers, which schedule, retry and restart them.

A task is a function of one item that can be pickled. Results come as they are ready, each with the number of
its item, so whoever needs an order sorts; what a task returns does not hang on where it ran.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, islice
from typing import Any, TypeVar

import torch

from kernelsimp.error_text import short
from kernelsimp.errors import KernelsimpError, how_to_install
from kernelsimp.memory import GB, free_bytes
from kernelsimp.version import __version__

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = 10
"""Seconds that a scheduler has to answer, and to have a first worker."""

AHEAD = 4
"""Tasks that each thread has waiting: the scheduler never holds more, however many items there are."""

CONFIG = {
    "logging.distributed": "critical",
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.tick.limit": "60s",
    "distributed.admin.system-monitor.interval": "10s",
}
"""Dask's own, for its workers too: profiling and watching for a page nobody sees takes 6 % of the time."""


@dataclass(frozen=True)
class Cluster:
    """Who works: `jobs` processes on this machine, or the workers of a running Dask `scheduler`.

    `memory` is in gigabytes, for all workers on this machine together; None takes half of what is free.
    """

    jobs: int = 1
    scheduler: str | None = None
    memory: float | None = None

    @property
    def is_serial(self) -> bool:
        """Whether everything runs in this process."""
        return self.jobs == 1 and self.scheduler is None


HERE = Cluster()
"""Nobody but this process."""


@dataclass(frozen=True)
class Lost:
    """What stands for a result where a task ended its worker each time it was tried."""

    reason: str


def check_cluster(cluster: Cluster) -> None:
    """Raise `KernelsimpError` for numbers that no cluster can have, or options that exclude each other."""
    if cluster.jobs < 1:
        raise KernelsimpError(f"--jobs is {cluster.jobs}; expected 1 or more")
    if cluster.memory is not None and not cluster.memory > 0:
        raise KernelsimpError(f"--memory is {cluster.memory:g}; expected gigabytes, such as 4")
    if cluster.scheduler is None:
        return
    for option, given in (("--jobs", cluster.jobs != 1), ("--memory", cluster.memory is not None)):
        if given:
            raise KernelsimpError(
                f"{option} is for workers on this machine; those of --scheduler have theirs"
            )


def each_result(
    task: Callable[[T], R], items: Iterable[T], cluster: Cluster
) -> Iterator[tuple[int, R | Lost]]:
    """Yield (number of the item, what `task` returns for it), in any order; items are taken as needed.

    What a task raises is raised here. Raises `KernelsimpError` where Dask is not installed, no scheduler or
    worker answers, or a worker has another version of this program.
    """
    check_cluster(cluster)
    if cluster.is_serial:
        yield from ((number, task(item)) for number, item in enumerate(items))
        return
    items = iter(items)
    first = tuple(islice(items, 1))
    if not first:
        return  # nobody is started for nothing
    with _client(cluster) as client:
        yield from _as_ready(client, task, chain(first, items))


def _as_ready(client: Any, task: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[int, R | Lost]]:
    distributed = _distributed()
    numbered = enumerate(items)
    waiting: dict[str, int] = {}
    ready = distributed.as_completed(loop=client.loop)

    def submit(number: int, item: T) -> None:
        future = client.submit(checked, __version__, task, item, pure=False)
        waiting[future.key] = number
        ready.add(future)

    for number, item in islice(numbered, AHEAD * max(1, sum(client.nthreads().values()))):
        submit(number, item)
    for future in ready:
        yield waiting.pop(future.key), _result(future, distributed)
        future.release()
        for number, item in islice(numbered, 1):
            submit(number, item)


def _result(future: Any, distributed: Any) -> Any:
    try:
        return future.result()
    except distributed.KilledWorker:
        return Lost("ended its worker each time it was tried, most likely for want of memory; raise --memory")
    except (distributed.client.FutureCancelledError, distributed.comm.CommClosedError, OSError) as error:
        raise KernelsimpError(f"--scheduler: lost in mid-work: {short(error)}; start it again") from error


def checked(version: str, task: Callable[[T], R], item: T) -> R:
    """Return `task(item)`; raises `KernelsimpError` on a worker of another version, come late."""
    if version != __version__:
        raise KernelsimpError(_other_version("a worker", __version__, version))
    return task(item)


def worker_version() -> str:
    """Return the version of this program where this runs."""
    from kernelsimp import version

    return version.__version__


@contextmanager
def _client(cluster: Cluster) -> Iterator[Any]:
    distributed = _distributed()
    import_module("dask").config.set(CONFIG)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if cluster.scheduler is None:
        with (
            distributed.LocalCluster(**_local(cluster)) as local,
            distributed.Client(local, set_as_default=False) as client,
        ):
            yield client
        return
    with _joined(cluster.scheduler, distributed) as client:
        _check_workers(client, cluster.scheduler)
        yield client


def _local(cluster: Cluster) -> dict[str, Any]:
    whole = cluster.memory * GB if cluster.memory else free_bytes(torch.device("cpu")) / 2
    return {
        "n_workers": cluster.jobs,
        "threads_per_worker": 1,
        "processes": True,
        "memory_limit": int(whole / cluster.jobs),
        "dashboard_address": "127.0.0.1:0",  # it serves its state in any case; two runs must not meet there
        "scheduler_kwargs": {"dashboard": False},
        "host": "127.0.0.1",
        "silence_logs": logging.CRITICAL,
    }


def _joined(address: str, distributed: Any) -> Any:
    try:
        return distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise KernelsimpError(
            f"--scheduler {address}: nobody answers ({short(error)}); start one with 'dask scheduler'"
        ) from error


def _check_workers(client: Any, address: str) -> None:
    """Raise `KernelsimpError` unless there are workers and all have this version of the program."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as error:
        raise KernelsimpError(
            f"--scheduler {address}: it has no workers; start some with 'dask worker {address}'"
        ) from error
    for worker, version in client.run(worker_version, on_error="return").items():
        if isinstance(version, BaseException):
            raise KernelsimpError(f"worker {worker}: has no kernelsimp {__version__}: {short(version)}")
        if version != __version__:
            raise KernelsimpError(_other_version(f"worker {worker}", version, __version__))


def _other_version(who: str, theirs: str, ours: str) -> str:
    return f"{who} has kernelsimp {theirs}, this is {ours}; install the same version on both"


def _distributed() -> Any:
    try:
        return import_module("distributed")
    except ImportError as error:
        raise KernelsimpError(
            f"more than one job, and --scheduler, need Dask; {how_to_install('zoo')}"
        ) from error
