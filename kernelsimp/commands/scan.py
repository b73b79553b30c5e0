"""The scan: of one checkpoint, of one kernel, of a folder."""

from pathlib import Path

from kernelsimp.analysis.explain import explain
from kernelsimp.analysis.scan import scan_bank
from kernelsimp.models.scannable import open_to_scan
from kernelsimp.records.scan import Explanation, Scan, ScanLine
from kernelsimp.report.folder_scan import FolderJob, folder_scan
from kernelsimp.settings import Settings
from kernelsimp.watch import SILENT, Watcher


def scan(path: Path, settings: Settings, watcher: Watcher = SILENT) -> Scan:
    """Scan one checkpoint: weights only, or with exact layer kinds where a graph or architecture tells."""
    opened = open_to_scan(path, settings.model)
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
