"""Scans kept in a data set: which networks are there already, and what is not written yet."""

import time
from pathlib import Path
from typing import Any

from kernelsimp.commands.scan_sources import Source
from kernelsimp.errors import KernelsimpError
from kernelsimp.models.remote import is_address, stamp_at
from kernelsimp.models.snapshot import file_sha256
from kernelsimp.records.scan import ScanLine
from kernelsimp.report.dataset import Dataset

NETWORKS_A_PART = 64
SECONDS_A_PART = 60
"""A part is written at this many networks or after this time: what a run that is killed may lose."""


class ScanStore:
    """A data set that a scan adds to. Rows wait until a part is worth a file; `flush` writes them."""

    def __init__(self, folder: Path, settings: str) -> None:
        self._dataset = Dataset(folder, settings)
        rows = self._dataset.networks
        self._by_sha = {row["sha256"]: row for row in rows if row["sha256"]}
        self._by_stamp = {
            (row["source"], row["stamp"]): row for row in rows if row["sha256"] and row["stamp"]
        }
        self._failed = {(row["source"], row["error"]) for row in rows if row["error"]}
        self._waiting: dict[str, list[Any]] = {"networks": [], "families": [], "kernels": []}
        self._since = time.monotonic()

    def line_of(self, source: Source) -> ScanLine | None:
        """Return the line of a network that is there, by its size and time or its SHA-256; else None."""
        row = self._by_stamp.get((source.name, stamp_of(source)))
        if row is None and self._by_sha and Path(source.place).is_file():
            try:
                row = self._by_sha.get(file_sha256(Path(source.place)))
            except KernelsimpError:  # the scan says why
                return None
        return None if row is None else _line(source.name, row)

    def add(self, rows: dict[str, Any], stamp: str | None) -> None:
        """Add one network's rows unless it, or the same failure, is there."""
        network = rows["network"]
        if network["error"] is not None:
            key = (network["source"], network["error"])
            if key in self._failed:
                return
            self._failed.add(key)
        elif network["sha256"] in self._by_sha:
            return
        else:
            self._by_sha[network["sha256"]] = network
        self._waiting["networks"].append({**network, "stamp": stamp})
        self._waiting["families"] += rows.get("families", [])
        self._waiting["kernels"] += [rows["kernels"]] if rows.get("kernels") else []
        full = len(self._waiting["networks"]) >= NETWORKS_A_PART
        if full or self._waiting["kernels"] or time.monotonic() - self._since > SECONDS_A_PART:
            self.flush()

    def flush(self) -> None:
        """Write what waits, as one part."""
        if self._waiting["networks"]:
            self._dataset.append(**self._waiting)
        self._waiting = {name: [] for name in self._waiting}
        self._since = time.monotonic()


def stamp_of(source: Source) -> str | None:
    """Return what tells one state of a source from another without reading it, such as its size and time."""
    if is_address(source.place):
        return stamp_at(source.place)
    try:
        told = Path(source.place).stat()
    except OSError:
        return None
    return f"{told.st_size}:{told.st_mtime_ns}" if Path(source.place).is_file() else None


def _line(name: str, row: dict[str, Any]) -> ScanLine:
    return ScanLine(name, *(row[key] for key in ("layers", "kernels", "matching", "found")))
