"""A data set of scans: three Parquet tables in one folder, only ever added to.

`networks/`, `families/` and `kernels/` hold parts that are written aside and renamed, under names that no
other run can choose, the row of a network last: a network that has one is whole. Every part says the schema
and the settings that its rows were scanned with; a data set has one of each.
"""

import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

from kernelsimp.errors import KernelsimpError, how_to_install
from kernelsimp.files import sweep, write_atomically
from kernelsimp.report.dataset_rows import NULLS, QUANTILES

SCHEMA = "kernelsimp.zoo"
VERSION = 1
SETTINGS = "kernelsimp.settings"

TABLES = ("kernels", "families", "networks")
"""In the order in which they are written."""

STALE = 600
"""Seconds after which rows whose network never came are those of a run that was killed."""

TEXT, WHOLE, REAL, TRUTH, TEXTS, WHOLES, REALS = (
    "text",
    "int64",
    "float64",
    "bool",
    "[text",
    "[int64",
    "[float32",
)

NETWORKS = {
    **dict.fromkeys(("source", "sha256", "stamp", "format", "architecture", "task"), TEXT),
    **dict.fromkeys(
        ("weights", "layers", "kernels", "pointwise", "dead", "matching", "found", "beyond"), WHOLE
    ),
    "near": WHOLE,
    "near_by_chance": REAL,
    "near_of": WHOLE,
    "kinds": TEXT,
    "warnings": TEXTS,
    "error": TEXT,
    "version": TEXT,
}
FAMILIES = {
    "sha256": TEXT,
    "layer": TEXT,
    "place": WHOLE,
    "depth": REAL,
    "kind": TEXT,
    "kind_source": TEXT,
    "shape": WHOLES,
    "kernels": WHOLE,
    "dead": WHOLE,
    "layer_found": WHOLE,
    "layer_beyond": WHOLE,
    "near": WHOLE,
    "near_by_chance": REAL,
    "near_of": WHOLE,
    **{f"residual_q{round(100 * q):02}": REAL for q in QUANTILES},
    **dict.fromkeys(("bits_structure", "bits_uniform", "bits_codebook"), REAL),
    "family": TEXT,
    "dim": WHOLE,
    "observed": WHOLE,
    **{f"expected_{null}": REAL for null in NULLS},
    "found": WHOLE,
    "best": WHOLE,
    "beyond": WHOLE,
    "median_residual": REAL,
    "median_residual_mean_removed": REAL,
    "nearest": REALS,
    "nearest_shape": WHOLES,
}
KERNELS = {
    "sha256": TEXT,
    "layer": TEXT,
    "out": WHOLE,
    "in": WHOLE,
    "family": TEXT,
    "residual": REAL,
    "p": REAL,
    "found": TRUTH,
    "beyond": TRUTH,
    "dead": TRUTH,
}
COLUMNS = {"networks": NETWORKS, "families": FAMILIES, "kernels": KERNELS}
"""The columns of each table, and what they hold."""


class Dataset:
    """A folder of Parquet tables that runs add to.

    Raises `KernelsimpError` where a newer version wrote it, it was scanned with other settings, or the
    package that reads it is not installed.
    """

    def __init__(self, folder: Path, settings: str | None = None) -> None:
        self.folder, self._arrow, self._parquet = folder, _library("pyarrow"), _library("pyarrow.parquet")
        if folder.exists() and not folder.is_dir():
            raise KernelsimpError(f"{folder}: a file; a data set is a folder")
        self._settings = self._check(settings)
        self._remove_orphans()

    @cached_property
    def networks(self) -> list[dict[str, Any]]:
        """The rows of all networks, one a SHA-256, and those of sources that could not be had."""
        rows = self.read("networks")
        whole = {row["sha256"]: row for row in reversed(rows) if row["sha256"]}
        failed = {(row["source"], row["error"]): row for row in rows if not row["sha256"]}
        return [*reversed(whole.values()), *failed.values()]

    def read(self, table: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
        """Return a table's rows; raises `KernelsimpError` for a part that cannot be read."""
        rows: list[dict[str, Any]] = []
        for part in self._whole_parts(table):
            try:
                rows += self._parquet.ParquetFile(part).read(columns).to_pylist()
            except (OSError, self._arrow.ArrowException) as error:
                raise KernelsimpError(f"{part}: cannot read this part of a data set: {error}") from error
        return rows

    def append(self, **tables: Any) -> None:
        """Add rows: lists of them for `networks` and `families`, a list of columns for `kernels`."""
        name = f"part-{time.time_ns():020}-{uuid.uuid4().hex}.parquet"
        for table in TABLES:
            if tables.get(table):
                whole = self._table(table, tables[table])
                write_atomically(self.folder / table / name, partial(self._write, whole))
        self.__dict__.pop("networks", None)

    def _write(self, rows: Any, place: Path) -> None:
        self._parquet.write_table(rows, place, compression="zstd")

    def _table(self, table: str, rows: Iterable[Mapping[str, Any]]) -> Any:
        schema = self._schema(table)
        if table == "kernels":
            return self._arrow.concat_tables(self._arrow.table(dict(item), schema=schema) for item in rows)
        return self._arrow.Table.from_pylist(list(rows), schema=schema)

    def _schema(self, table: str) -> Any:
        arrow = self._arrow
        kinds = {
            "text": arrow.string(),
            "int64": arrow.int64(),
            "bool": arrow.bool_(),
            "float64": arrow.float64(),
            "float32": arrow.float32(),
        }
        fields = [
            (name, arrow.list_(kinds[kind[1:]]) if kind[0] == "[" else kinds[kind])
            for name, kind in COLUMNS[table].items()
        ]
        return arrow.schema(fields, metadata={SCHEMA: str(VERSION), SETTINGS: self._settings or ""})

    def _check(self, settings: str | None) -> str | None:
        """Return the settings of the data set, whose every part must have been written with them."""
        known = settings
        for part in (part for table in TABLES for part in self._parts(table)):
            try:
                told = self._parquet.read_schema(part).metadata or {}
                version = int(told.get(SCHEMA.encode(), b"0"))
            except (OSError, ValueError) as error:
                raise KernelsimpError(f"{part}: cannot read this part of a data set: {error}") from error
            if version > VERSION:
                raise KernelsimpError(
                    f"{part}: schema {SCHEMA}/{version} is newer than {SCHEMA}/{VERSION}, which this version "
                    "reads; install a newer kernelsimp"
                )
            if version < 1:
                raise KernelsimpError(f"{part}: not a part of a data set of ours; choose another folder")
            own = told.get(SETTINGS.encode(), b"").decode()
            if settings is not None and own != settings:
                raise KernelsimpError(
                    f"{self.folder}: its networks were scanned with {own}, now {settings}; use another folder"
                )
            known = own
        return known

    def _parts(self, table: str) -> list[Path]:
        return sorted((self.folder / table).glob("part-*.parquet"))

    def _whole_parts(self, table: str) -> list[Path]:
        """Return the parts of a table whose networks are there; without them one is half written."""
        whole = {part.name for part in self._parts(TABLES[-1])}
        return [part for part in self._parts(table) if part.name in whole]

    def _remove_orphans(self) -> None:
        """Remove what runs that were killed left: parts half written, and rows whose network never came."""
        for table in TABLES:
            sweep(self.folder / table, ".part-")
        whole = {part.name for part in self._parts(TABLES[-1])}
        for part in (part for table in TABLES[:-1] for part in self._parts(table)):
            with suppress(OSError):
                if part.name not in whole and time.time() - part.stat().st_mtime > STALE:
                    part.unlink()


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise KernelsimpError(f"a data set is written with pyarrow; {how_to_install('zoo')}") from error
