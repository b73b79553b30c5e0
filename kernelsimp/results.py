"""What the functions of `kernelsimp` return: records that show themselves in a notebook and on a terminal.

A result holds one record of `kernelsimp.records`, whose fields are its own; printed, it says the same words
as the command of its name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape
from torch import Tensor, nn

from kernelsimp.commands.simplify import Simplified
from kernelsimp.errors import KernelsimpError, UnknownNameError, did_you_mean
from kernelsimp.kernels.families import Offered
from kernelsimp.records.comparison import Comparison
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Report
from kernelsimp.records.scan import LayerScan, Scan
from kernelsimp.records.verdict import Verdict
from kernelsimp.report import report_json, scan_html, scan_json, verdict_json
from kernelsimp.report.notebook import scan_fragment, table_fragment
from kernelsimp.report.scan_csv import HEADS, kernel_rows
from kernelsimp.report.tables.comparison import comparison_json, comparison_tables
from kernelsimp.report.terminal import (
    as_text,
    draw,
    family_catalogue,
    report_tables,
    scan_tables,
    verdict_tables,
)

if TYPE_CHECKING:
    import pandas


class Kernels:
    """The kernels of a scan as columns: layer, out, in, family, residual, p, found, beyond, dead, name.

    `residual` is relative, to `family`, or to the nearest family where that is empty.
    """

    def __init__(self, layers: tuple[LayerScan, ...], families: tuple[str, ...]) -> None:
        self._layers, self._families = layers, families

    def __len__(self) -> int:
        return sum(layer.kernels for layer in self._layers)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for layer in self._layers:
            for row in kernel_rows(layer, self._families):
                yield dict(zip(HEADS, row, strict=True))

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the columns by name, each a list of one value a kernel."""
        columns: dict[str, list[Any]] = {head: [] for head in HEADS}
        for row in self:
            for head, value in row.items():
                columns[head].append(value)
        return columns

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a DataFrame with one row a kernel; raises `KernelsimpError` where pandas is missing."""
        try:
            import pandas
        except ImportError as error:
            raise KernelsimpError("pandas is not installed; pip install pandas, or use to_dict()") from error
        return pandas.DataFrame(self.to_dict())

    def __repr__(self) -> str:
        return f"<{len(self):,} kernels of {', '.join(layer.name for layer in self._layers[:3])}>"


class _OfRecord:
    """Fields that are not its own are those of its `record`."""

    record: Any

    def __getattr__(self, name: str) -> Any:
        if name == "record" or name.startswith("__"):  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.record, name)


@dataclass(frozen=True, eq=False, repr=False)
class LayerResult(_OfRecord):
    """One layer of a scan; the fields are those of `record`."""

    record: LayerScan
    kernels: Kernels

    def __repr__(self) -> str:
        return f"{self.record.name} ({self.record.kind}): {self.record.sentence}"


@dataclass(frozen=True, eq=False, repr=False)
class ScanResult(Mapping[str, LayerResult]):
    """What a scan found, layer by layer: `result["layer1.0.conv1"].kernels.to_pandas()`."""

    record: Scan

    def __getitem__(self, name: str) -> LayerResult:
        known = {layer.name: layer for layer in self.record.layers}
        if name not in known:
            raise UnknownNameError(f"no layer '{name}'{did_you_mean(name, known)}")
        return LayerResult(known[name], Kernels((known[name],), self.record.families))

    def __iter__(self) -> Iterator[str]:
        return (layer.name for layer in self.record.layers)

    def __len__(self) -> int:
        return len(self.record.layers)

    @property
    def kernels(self) -> Kernels:
        """The kernels of all layers."""
        return Kernels(self.record.layers, self.record.families)

    def to_dict(self) -> dict[str, Any]:
        """Return the scan as JSON values, the same as `kernelsimp scan --json` writes."""
        return scan_json(self.record)

    def to_html(self) -> str:
        """Return the scan as one self-contained page, the same as `kernelsimp scan --html` writes."""
        return scan_html(self.record)

    def __repr__(self) -> str:
        return as_text(scan_tables(self.record))

    def _repr_html_(self) -> str:
        return str(scan_fragment(self.record))


@dataclass(frozen=True, eq=False, repr=False)
class SimplifyResult:
    """A simplified network, the plan that made it and the report of what it cost.

    `done` holds the networks of every stage; with `out` the run's files lie in that folder.
    """

    report: Report
    done: Simplified
    out: Path | None = None

    @property
    def plan(self) -> Plan:
        """Which kernel became what."""
        return self.done.chosen.plan

    @property
    def model(self) -> nn.Module:
        """The network with its simplified weights, a new module in evaluation mode."""
        return self.done.last.module()

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The simplified weights under the network's own names."""
        return dict(self.done.last.checkpoint.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, the same as a run's report.json."""
        return report_json(self.report)

    def __repr__(self) -> str:
        return as_text(report_tables(self.report, everything=True))

    def _repr_html_(self) -> str:
        return str(_preformatted(repr(self)))


@dataclass(frozen=True, eq=False, repr=False)
class CheckResult(_OfRecord):
    """A verdict: `passed`, and the findings where it is not."""

    record: Verdict

    @property
    def passed(self) -> bool:
        """Whether all limits hold."""
        return self.record.exit_code == 0

    def __bool__(self) -> bool:
        return self.passed

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values, the same as `kernelsimp check --json` writes."""
        return verdict_json(self.record)

    def __repr__(self) -> str:
        return as_text(verdict_tables(self.record))

    def _repr_html_(self) -> str:
        return str(_preformatted(repr(self)))


@dataclass(frozen=True, eq=False, repr=False)
class CompareResult(_OfRecord):
    """Two networks, layer by layer; the fields are those of `record`."""

    record: Comparison

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values, the same as `kernelsimp compare --json` writes."""
        return comparison_json(self.record)

    def __repr__(self) -> str:
        return as_text(draw(table) for table in comparison_tables(self.record))

    def _repr_html_(self) -> str:
        return str(Markup("").join(table_fragment(table) for table in comparison_tables(self.record)))


@dataclass(frozen=True, eq=False, repr=False)
class FamiliesResult(Mapping[str, Offered]):
    """The families for kernels of `shape`, by name."""

    shape: tuple[int, int]
    families: Mapping[str, Offered]

    def __getitem__(self, name: str) -> Offered:
        if name not in self.families:
            raise UnknownNameError(f"no family '{name}'{did_you_mean(name, self.families)}")
        return self.families[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.families)

    def __len__(self) -> int:
        return len(self.families)

    def __repr__(self) -> str:
        return as_text([family_catalogue(self.shape)])

    def _repr_html_(self) -> str:
        return str(_preformatted(repr(self)))


def _preformatted(text: str) -> Markup:
    return Markup("<pre>{}</pre>").format(escape(text))
