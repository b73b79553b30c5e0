"""The scan of many networks, by one process or many: a line each, whatever else was asked for beside it.

Workers open and scan; this process alone writes, so a worker may stand on another machine.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kernelsimp.analysis.scan import check, scan_bank
from kernelsimp.commands.cluster import HERE, Cluster, Lost, check_cluster, each_result
from kernelsimp.commands.scan import open_within
from kernelsimp.commands.scan_sources import Source, sources_of
from kernelsimp.commands.scan_store import ScanStore, stamp_of
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_text
from kernelsimp.models.remote import is_address
from kernelsimp.models.scannable import Scannable, open_address
from kernelsimp.records.scan import Scan, ScanLine
from kernelsimp.records.serialise import json_text
from kernelsimp.report.dataset_rows import (
    failed_row,
    family_rows,
    kernel_columns,
    network_row,
    settings_text,
)
from kernelsimp.report.store import scan_json
from kernelsimp.settings import Settings
from kernelsimp.watch import SILENT, Watcher


@dataclass(frozen=True)
class ManyJob:
    """What to do with every network, and who works.

    `json` is the folder for JSONs; `dataset` that of the data set which the scans are added to, with a row
    a kernel where `kernels` says so.
    """

    settings: Settings
    json: Path | None = None
    cluster: Cluster = HERE
    dataset: Path | None = None
    kernels: bool = False


@dataclass(frozen=True)
class Scanned:
    """What a worker hands back of one network: its line, and as JSON and as rows what was asked for."""

    line: ScanLine
    json: str | None = None
    rows: Mapping[str, Any] = field(default_factory=dict)


def scan_many(texts: Iterable[str], job: ManyJob, watcher: Watcher = SILENT) -> tuple[ScanLine, ...]:
    """Scan every network that the sources stand for; return a line each, in the order of the sources.

    What cannot be read is a line with its reason; a network that the data set has is not scanned again.
    Raises `KernelsimpError` for sources that stand for no network, for settings that no scan can follow,
    for a data set that cannot be added to and for a cluster that cannot be had.
    """
    check(job.settings.scan)
    check_cluster(job.cluster)
    sources = sources_of(texts)
    store = _store_of(job)
    watcher.start("scanning checkpoints", len(sources))
    lines: dict[int, ScanLine] = {}
    taken: list[int] = []
    try:
        todo = _todo(sources, store, (lines, taken), watcher)
        for number, result in each_result(partial(scan_source, job), todo, job.cluster):
            source = sources[taken[number]]
            done = _failure(source, result.reason) if isinstance(result, Lost) else result
            lines[taken[number]] = done.line
            _keep(done, source, job, store)
            watcher.step()
    finally:
        if store is not None:
            store.flush()
    return tuple(lines[number] for number in sorted(lines))


def _store_of(job: ManyJob) -> ScanStore | None:
    if job.dataset is None:
        if job.kernels:
            raise KernelsimpError("--kernels adds rows to a data set; pass --dataset DIR")
        return None
    return ScanStore(job.dataset, settings_text(job.settings.scan, kernels=job.kernels))


def _todo(
    sources: tuple[Source, ...],
    store: ScanStore | None,
    seen: tuple[dict[int, ScanLine], list[int]],
    watcher: Watcher,
) -> Iterator[Source]:
    """Yield the sources to scan, noting the place of each; those that are there are lines at once."""
    lines, taken = seen
    for place, source in enumerate(sources):
        line = store.line_of(source) if store is not None else None
        if line is None:
            taken.append(place)
            yield source
        else:
            lines[place] = line
            watcher.step()


def _keep(done: Scanned, source: Source, job: ManyJob, store: ScanStore | None) -> None:
    if job.json is not None and done.json is not None:
        write_text(job.json / json_name(source.name), done.json)
    if store is not None:
        store.add(dict(done.rows), stamp_of(source))


def scan_source(job: ManyJob, source: Source) -> Scanned:
    """Scan one network; what the user can mend becomes a line."""
    try:
        opened = _opened(source.place, job)
        scan = scan_bank(opened.bank, job.settings.scan, opened.source, strides=opened.strides)
    except KernelsimpError as error:
        return _failure(source, str(error).removeprefix(f"{source.place}: "))
    line = _line(source.name, scan)
    text = json_text(scan_json(scan)) if job.json is not None else None
    return Scanned(line, text, _rows(scan, line, source, job) if job.dataset is not None else {})


def _opened(place: str, job: ManyJob) -> Scannable:
    if is_address(place):
        return open_address(place, job.settings.model)
    memory = job.cluster.memory
    return open_within(Path(place), job.settings, memory / job.cluster.jobs if memory else None)


def _failure(source: Source, reason: str) -> Scanned:
    row = failed_row(source.name, source.task, reason)
    return Scanned(ScanLine(source.name, error=reason), rows={"network": row})


def _rows(scan: Scan, line: ScanLine, source: Source, job: ManyJob) -> dict[str, Any]:
    return {
        "network": network_row(scan, line, source.task),
        "families": list(family_rows(scan)),
        "kernels": kernel_columns(scan) if job.kernels else None,
    }


def json_name(name: str) -> Path:
    """Return the file for a network's JSON inside the folder for them, whatever its name.

    >>> json_name("deep/b.pth"), json_name("/nets/../a.pt"), json_name("https://host/a.pt")
    (PosixPath('deep/b.pth.json'), PosixPath('nets/_/a.pt.json'), PosixPath('https/host/a.pt.json'))
    """
    parts = [part for part in name.replace("://", "/").split("/") if part not in ("", ".")]
    return Path(*("_" if part == ".." else part for part in parts[:-1]), f"{parts[-1]}.json")


def _line(name: str, scan: Scan) -> ScanLine:
    return ScanLine(
        name,
        len(scan.layers),
        sum(layer.kernels for layer in scan.layers),
        sum(int((layer.best >= 0).sum()) for layer in scan.layers),
        sum(int(layer.found.sum()) for layer in scan.layers),
    )
