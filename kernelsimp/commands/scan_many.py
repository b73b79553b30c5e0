"""The scan of many networks, by one process or many: a line each, whatever else was asked for beside it.

Workers open and scan; this process alone writes, so a worker may stand on another machine.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kernelsimp.analysis.scan import check, scan_bank
from kernelsimp.commands.cluster import HERE, Cluster, Lost, check_cluster, each_result
from kernelsimp.commands.scan_sources import Source, sources_of
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_text
from kernelsimp.models.scannable import open_to_scan
from kernelsimp.records.scan import Scan, ScanLine
from kernelsimp.records.serialise import json_text
from kernelsimp.report.store import scan_json
from kernelsimp.settings import Settings
from kernelsimp.watch import SILENT, Watcher


@dataclass(frozen=True)
class ManyJob:
    """What to do with every network: settings of the scan, the folder for JSONs, and who works."""

    settings: Settings
    json: Path | None = None
    cluster: Cluster = HERE


@dataclass(frozen=True)
class Scanned:
    """What a worker hands back of one network: its line, and its scan as JSON where that was asked for."""

    line: ScanLine
    json: str | None = None


def scan_many(texts: Iterable[str], job: ManyJob, watcher: Watcher = SILENT) -> tuple[ScanLine, ...]:
    """Scan every network that the sources stand for; return a line each, in the order of the sources.

    What cannot be read is a line with its reason. Raises `KernelsimpError` for sources that stand for no
    network, for settings that no scan can follow and for a cluster that cannot be had.
    """
    check(job.settings.scan)
    check_cluster(job.cluster)
    sources = sources_of(texts)
    watcher.start("scanning checkpoints", len(sources))
    lines: dict[int, ScanLine] = {}
    task = partial(scan_source, job.settings, with_json=job.json is not None)
    for number, result in each_result(task, sources, job.cluster):
        source = sources[number]
        done = Scanned(ScanLine(source.name, error=result.reason)) if isinstance(result, Lost) else result
        if job.json is not None and done.json is not None:
            write_text(job.json / json_name(source.name), done.json)
        lines[number] = done.line
        watcher.step()
    return tuple(lines[number] for number in sorted(lines))


def scan_source(settings: Settings, source: Source, *, with_json: bool = False) -> Scanned:
    """Scan one network; what the user can mend becomes a line."""
    try:
        opened = open_to_scan(Path(source.place), settings.model)
        scan = scan_bank(opened.bank, settings.scan, opened.source, strides=opened.strides)
    except KernelsimpError as error:
        return Scanned(ScanLine(source.name, error=str(error).removeprefix(f"{source.place}: ")))
    return Scanned(_line(source.name, scan), json_text(scan_json(scan)) if with_json else None)


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
