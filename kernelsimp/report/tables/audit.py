"""An audit as JSON and as tables."""

from typing import Any

from kernelsimp.analysis.alternatives import ALTERNATIVES
from kernelsimp.error_text import printable
from kernelsimp.records.audit import Alternative, Audit, LayerAudit
from kernelsimp.records.serialise import to_plain
from kernelsimp.report import fmt
from kernelsimp.report.tables.table import Table

BY_MACS = ("FFT",)
"""Alternatives that keep the weights: their ratio is told in MACs."""


def audit_json(found: Audit) -> dict[str, Any]:
    """Return the audit as JSON values under the keys of schema `kernelsimp.audit/1`."""
    return {"schema": found.schema, **to_plain(found)}


def audit_tables(found: Audit) -> tuple[Table, ...]:
    """Return costs, widths and alternatives, one row a layer each."""
    return _costs(found), _widths(found), _alternatives(found)


def audit_words(found: Audit) -> str:
    """Return the totals in one line."""
    totals = found.totals
    macs = f", {fmt.count(totals.macs)} MACs for one image" if totals.macs is not None else ""
    shape = f" of {fmt.shape(found.input_shape)}" if found.input_shape else ""
    layers = fmt.counted(totals.layers, "layer")
    return f"{layers}, {fmt.count(totals.parameters)} parameters{macs}{shape}{_dearest(found)}"


def _dearest(found: Audit) -> str:
    """Name the layer with most multiplications, else with most weights."""
    known = [(layer.mac_share, "multiplications", layer.name) for layer in found.layers if layer.mac_share]
    known = known or [(layer.parameter_share, "weights", layer.name) for layer in found.layers]
    if not known:
        return ""
    share, what, name = max(known)
    return f"; {printable(name)} has most {what}, {fmt.share(share)}"


def _costs(found: Audit) -> Table:
    heads = ("layer", "kind", "shape", "parameters", "share", "MACs", "share", "sees")
    rows = tuple(
        (
            printable(layer.name),
            layer.kind,
            fmt.shape(layer.weight_shape),
            fmt.count(layer.parameters),
            fmt.share(layer.parameter_share),
            _large(layer.macs),
            fmt.share(layer.mac_share),
            fmt.shape(layer.receptive_field) if layer.receptive_field else fmt.DASH,
        )
        for layer in found.layers
    )
    return Table("Cost", heads, rows, frozenset({0, 1, 2}))


def _large(value: int | None) -> str:
    """Spell a count in thousands, millions or milliards, so that a row fits a terminal."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value is not None and value >= factor:
            return f"{fmt.number(value / factor)} {unit}"
    return fmt.count(value)


def _widths(found: Audit) -> Table:
    heads = ("layer", "patch", "out / patch", "rank", "stable", "of")
    measured = any(layer.activations for layer in found.layers)
    more = ("outputs' rank", "of", "mean |r|") if measured else ()
    rows = tuple(_width(layer, measured=measured) for layer in found.layers)
    return Table("Width, ranks of weights and of outputs", heads + more, rows)


def _width(layer: LayerAudit, *, measured: bool) -> tuple[str, ...]:
    rank, seen = layer.weight_rank, layer.activations
    way = "widens" if layer.expansion > 1 else "narrows" if layer.expansion < 1 else "keeps"
    outputs = (
        (
            fmt.number(seen.effective),
            fmt.count(seen.full),
            fmt.number(seen.correlation, 2),
        )
        if seen
        else (fmt.DASH,) * 3
    )
    return (
        printable(layer.name),
        fmt.count(layer.patch),
        f"{fmt.number(layer.expansion, 2)} {way}",
        fmt.number(rank.effective),
        fmt.number(rank.stable),
        fmt.count(rank.full),
        *(outputs if measured else ()),
    )


def _alternatives(found: Audit) -> Table:
    """Return how many times fewer weights each alternative has; a column that no layer has is left out."""
    layers = [layer for layer in found.layers if layer.alternatives]
    named = {item.name for layer in layers for item in layer.alternatives}
    names = [name for name in ALTERNATIVES if name in named]
    heads = ("layer", *(f"{name}, MACs" if name in BY_MACS else name for name in names))
    rows = []
    for layer in layers:
        known = {item.name: item for item in layer.alternatives}
        rows.append((printable(layer.name), *(_ratio(known.get(name)) for name in names)))
    return Table("Alternatives: how many times fewer weights they have", heads, tuple(rows))


def _ratio(item: Alternative | None) -> str:
    if item is None:
        return fmt.DASH
    ratio = item.mac_ratio if item.name in BY_MACS else item.weight_ratio
    if ratio is None:
        return fmt.DASH
    return fmt.number(ratio) if ratio >= 1 else f"1/{fmt.number(1 / ratio)}"
