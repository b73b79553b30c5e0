"""The scan: of one checkpoint, of one kernel, of a folder."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kernelsimp.analysis.explain import explain
from kernelsimp.analysis.scan import check, scan_bank
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_text
from kernelsimp.models.folders import files_of, is_in_parts
from kernelsimp.models.scannable import open_to_scan
from kernelsimp.records.scan import Explanation, Scan, ScanLine
from kernelsimp.records.serialise import json_text
from kernelsimp.report.store import scan_json
from kernelsimp.settings import Settings
from kernelsimp.watch import SILENT, Watcher


def scan(model: Path | nn.Module | Mapping[str, Any], settings: Settings, watcher: Watcher = SILENT) -> Scan:
    """Scan one network: weights only, or with exact layer kinds where a module, graph or --arch tells."""
    opened = open_to_scan(model, settings.model)
    for warning in opened.warnings:
        watcher.warn(warning)
    result = scan_bank(opened.bank, settings.scan, opened.source, watcher, opened.strides)
    for note in result.warnings:
        if note not in opened.warnings:
            watcher.note(note)
    return result


def scan_explained(path: Path, place: str, settings: Settings, watcher: Watcher = SILENT) -> Explanation:
    """Explain the kernel at `place`, 'LAYER[OUT,IN]', of one checkpoint."""
    opened = open_to_scan(path, settings.model)
    for warning in opened.warnings:
        watcher.warn(warning)
    return explain(opened.bank, place, settings.scan)


def scan_folder(
    folder: Path, settings: Settings, to: tuple[Path | None, int], watcher: Watcher = SILENT
) -> tuple[ScanLine, ...]:
    """Scan every checkpoint under `folder`; `to` is where their JSONs go, and how many run at once."""
    return folder_scan(FolderJob(folder, settings, *to), watcher)


SUFFIXES = (".pt", ".pth", ".th", ".tar", ".bin", ".ckpt", ".safetensors", ".kspack", ".pt2", ".onnx")
"""Names that a folder's checkpoints end in; other files are passed over."""


@dataclass(frozen=True)
class FolderJob:
    """What to scan and how; `json` is the folder for the JSONs, `jobs` how many run at once."""

    folder: Path
    settings: Settings
    json: Path | None = None
    jobs: int = 1


def folder_scan(job: FolderJob, watcher: Watcher = SILENT) -> tuple[ScanLine, ...]:
    """Scan every checkpoint under the folder, in the order of their names.

    Raises `KernelsimpError` where the folder holds none, and for settings that no scan can follow.
    """
    check(job.settings.scan)
    if job.jobs < 1:
        raise KernelsimpError(f"--jobs is {job.jobs}; expected 1 or more")
    paths = checkpoints_in(job.folder)
    if not paths:
        raise KernelsimpError(
            f"{job.folder}: a directory without checkpoints; expected files ending in {', '.join(SUFFIXES)}"
        )
    watcher.start("scanning checkpoints", len(paths))
    lines = []
    for line in _lines(job, paths):
        lines.append(line)
        watcher.step()
    return tuple(lines)


def checkpoints_in(folder: Path) -> tuple[Path, ...]:
    """Return the checkpoints under a folder by their names.

    A network in parts is one, by its folder; its files are none. Left out are hidden files and what a run
    keeps beside its report: its plan, and states to go on from.
    """
    places = [path for path in folder.rglob("*") if not path.name.startswith(".")]
    parted = [path for path in places if path.is_dir() and is_in_parts(path)]
    parts = {part for path in parted for part in files_of(path)}
    found = {path for path in places if path.suffix.lower() in SUFFIXES and path.is_file()}
    return tuple(sorted(path for path in (found - parts) | set(parted) if not _of_a_run(path, folder)))


def _of_a_run(path: Path, folder: Path) -> bool:
    if path.name == "plan.safetensors" and (path.parent / "report.json").is_file():
        return True
    above = [folder, *(folder / part for part in path.relative_to(folder).parents)]
    resumed = [place for place in above if place.name == "resume"]
    return any(
        (place.parent / name).is_file() for place in resumed for name in ("report.json", "settings.toml")
    )


def scan_one(job: FolderJob, path: Path) -> ScanLine:
    """Scan one checkpoint of the folder and write its JSON; what the user can mend becomes a line."""
    name = path.relative_to(job.folder).as_posix()
    try:
        opened = open_to_scan(path, job.settings.model)
        scan = scan_bank(opened.bank, job.settings.scan, opened.source, strides=opened.strides)
        if job.json is not None:
            write_text(job.json / f"{name}.json", json_text(scan_json(scan)))
    except KernelsimpError as error:
        return ScanLine(name, error=str(error).removeprefix(f"{path}: "))
    return _line(name, scan)


def _lines(job: FolderJob, paths: tuple[Path, ...]) -> Iterator[ScanLine]:
    if job.jobs == 1:
        yield from (scan_one(job, path) for path in paths)
        return
    # spawned, not forked: PyTorch's threads do not survive a fork
    with ProcessPoolExecutor(
        min(job.jobs, len(paths)),
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        yield from pool.map(scan_one, [job] * len(paths), paths)


def _line(name: str, scan: Scan) -> ScanLine:
    return ScanLine(
        name,
        len(scan.layers),
        sum(layer.kernels for layer in scan.layers),
        sum(int((layer.best >= 0).sum()) for layer in scan.layers),
        sum(int(layer.found.sum()) for layer in scan.layers),
    )
