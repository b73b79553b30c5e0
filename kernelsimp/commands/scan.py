"""The scan: of one checkpoint, of one kernel."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kernelsimp.analysis.explain import explain
from kernelsimp.analysis.scan import scan_bank
from kernelsimp.models.scannable import open_to_scan
from kernelsimp.records.scan import Explanation, Scan
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
