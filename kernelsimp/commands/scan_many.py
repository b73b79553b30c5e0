"""The scan of many networks, by one process or many: a line each, whatever else was asked for beside it.

Workers open and scan; this process alone writes, so a worker may stand on another machine.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kernelsimp.analysis.room import needs_of
from kernelsimp.analysis.scan import check, scan_part
from kernelsimp.analysis.scan_parts import WHOLE, Part, ScannedPart, join_parts
from kernelsimp.commands.cluster import HERE, Cluster, Lost, check_cluster, each_result
from kernelsimp.commands.scan import open_within
from kernelsimp.commands.scan_sources import Source, sources_of
from kernelsimp.commands.scan_store import ScanStore, stamp_of
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_text
from kernelsimp.memory import reuse_freed_memory
from kernelsimp.models.header import convolutions_in, header_of
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

LARGE_FILE = 1 << 25
"""Bytes of a file (32 MiB) whose header is looked into before it is given to a worker."""

KERNELS_A_PIECE = 500_000
"""Kernels that a worker scans at once, about: some seconds of work."""


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
class Piece:
    """What one worker scans at once: a network, or a part of the layers of a very large one."""

    source: Source
    part: Part = WHOLE


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
    lines: dict[str, ScanLine] = {}
    pieces: list[Piece] = []
    open_parts: dict[str, dict[int, ScannedPart]] = {}
    try:
        todo = _todo(sources, job, store, (lines, pieces), watcher)
        for number, result in each_result(partial(scan_piece, job), todo, job.cluster):
            piece = pieces[number]
            failed = piece.source.place in lines  # by another part
            done = None if failed else join_piece(piece, result, open_parts, job)
            if done is None:
                continue
            lines[piece.source.place] = done.line
            _keep(done, piece.source, job, store)
            watcher.step()
    finally:
        if store is not None:
            store.flush()
    return tuple(lines[source.place] for source in sources)


def _store_of(job: ManyJob) -> ScanStore | None:
    if job.dataset is None:
        if job.kernels:
            raise KernelsimpError("--kernels adds rows to a data set; pass --dataset DIR")
        return None
    return ScanStore(job.dataset, settings_text(job.settings.scan, kernels=job.kernels))


def _todo(
    sources: tuple[Source, ...],
    job: ManyJob,
    store: ScanStore | None,
    seen: tuple[dict[str, ScanLine], list[Piece]],
    watcher: Watcher,
) -> Iterator[Piece]:
    """Yield what to scan and note it; networks that are there are lines at once."""
    lines, pieces = seen
    for source in sources:
        line = store.line_of(source) if store is not None else None
        if line is None:
            for piece in pieces_of(source, job):
                pieces.append(piece)
                yield piece
        else:
            lines[source.place] = line
            watcher.step()


def pieces_of(source: Source, job: ManyJob) -> tuple[Piece, ...]:
    """Return a network whole, or by layers where several work and its file says that it has many kernels."""
    path = Path(source.place)
    if job.cluster.is_serial or not path.is_file() or path.stat().st_size < LARGE_FILE:
        return (Piece(source),)
    shapes = convolutions_in(header_of(path, job.settings.model))
    count = math.ceil(needs_of(shapes, job.settings.scan).kernels / KERNELS_A_PIECE) or 1
    return tuple(Piece(source, Part(number, count)) for number in range(count))


def join_piece(
    piece: Piece,
    result: Scanned | ScannedPart | Lost,
    open_parts: dict[str, dict[int, ScannedPart]],
    job: ManyJob,
) -> Scanned | None:
    """Return what a network came to once its last part is there, or at its first that failed; else None."""
    if isinstance(result, Lost):
        return _failure(piece.source, result.reason)
    if isinstance(result, Scanned):
        return result
    parts = open_parts.setdefault(piece.source.place, {})
    parts[piece.part.number] = result
    if len(parts) < piece.part.count:
        return None
    del open_parts[piece.source.place]
    if len({item.scan.source["sha256"] for item in parts.values()}) > 1:
        return _failure(piece.source, "changed while it was read; wait until it is written, then try again")
    return _scanned([parts[number] for number in range(piece.part.count)], piece.source, job)


def _keep(done: Scanned, source: Source, job: ManyJob, store: ScanStore | None) -> None:
    if job.json is not None and done.json is not None:
        write_text(job.json / json_name(source.name), done.json)
    if store is not None:
        store.add(dict(done.rows), stamp_of(source))


def scan_piece(job: ManyJob, piece: Piece) -> Scanned | ScannedPart:
    """Scan one network, or a part of one; what the user can mend becomes a line."""
    source = piece.source
    reuse_freed_memory()  # here, since this runs on the workers
    try:
        opened = _opened(source.place, job)
        part = scan_part(
            opened.bank, job.settings.scan, opened.source, strides=opened.strides, part=piece.part
        )
    except KernelsimpError as error:
        return _failure(source, str(error).removeprefix(f"{source.place}: "))
    return part if piece.part.count > 1 else _scanned([part], source, job)


def _scanned(parts: Sequence[ScannedPart], source: Source, job: ManyJob) -> Scanned:
    scan = join_parts(parts)
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
