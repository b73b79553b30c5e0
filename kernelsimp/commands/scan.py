"""The scan: of one checkpoint, of one kernel."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kernelsimp.analysis.explain import explain
from kernelsimp.analysis.room import check_room, needs_of
from kernelsimp.analysis.scan import scan_bank
from kernelsimp.analysis.select import EASY
from kernelsimp.memory import GB
from kernelsimp.models.header import convolutions_in, header_of
from kernelsimp.models.scannable import Scannable, open_to_scan
from kernelsimp.models.stored_order import tensor_name
from kernelsimp.records.scan import Explanation, Scan
from kernelsimp.settings import Settings
from kernelsimp.watch import SILENT, Watcher


def scan(
    model: Path | nn.Module | Mapping[str, Any],
    settings: Settings,
    watcher: Watcher = SILENT,
    memory: float | None = None,
) -> Scan:
    """Scan one network: weights only, or with exact layer kinds where a module, graph or --arch tells.

    Raises `KernelsimpError` where it takes more than `memory` gigabytes, None being what is free.
    """
    opened = open_within(model, settings, memory, watcher)
    for warning in opened.warnings:
        watcher.warn(warning)
    result = scan_bank(opened.bank, settings.scan, opened.source, watcher, opened.strides)
    for note in result.warnings:
        if note not in opened.warnings:
            watcher.note(note)
    return result


def open_within(
    model: Path | nn.Module | Mapping[str, Any],
    settings: Settings,
    memory: float | None,
    watcher: Watcher = SILENT,
) -> Scannable:
    """Open a network to scan it, unless its scan takes more than `memory` gigabytes.

    What its header says is looked at before it is read, and what was read before it is scanned; what is to
    come is said of a large one. Raises `KernelsimpError` where it takes more.
    """
    if isinstance(model, Path):
        header = header_of(model, settings.model)
        needs = needs_of(convolutions_in(header), settings.scan)
        whole = check_room(needs, header.held, memory, str(model))
        if needs.kernels > EASY:
            watcher.note(f"{model}: {needs.words()}, about {whole / GB:.1f} GB of memory")
    opened = open_to_scan(model, settings.model)
    shapes = {tensor_name(layer.name): tuple(layer.kernels.shape) for layer in opened.bank.layers}
    check_room(needs_of(shapes, settings.scan), 0, memory, str(opened.source["path"]))
    return opened


def scan_explained(path: Path, place: str, settings: Settings, watcher: Watcher = SILENT) -> Explanation:
    """Explain the kernel at `place`, 'LAYER[OUT,IN]', of one checkpoint."""
    opened = open_to_scan(path, settings.model)
    for warning in opened.warnings:
        watcher.warn(warning)
    return explain(opened.bank, place, settings.scan)
