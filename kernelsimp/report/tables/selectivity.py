"""What channels answer to, layer by layer, as a table and a line: every figure beside what chance gives."""

from collections.abc import Mapping
from dataclasses import replace

from kernelsimp.error_text import printable
from kernelsimp.records.selectivity import LayerSelectivity, Selectivity
from kernelsimp.report import fmt
from kernelsimp.report.tables.table import Table

HEADS = ("layer", "channels", "named", "names", "bits", "explained", "alike")


def selectivity_table(found: Selectivity) -> Table:
    """Return a row a layer; those that were passed over come last, with the reason."""
    rows = [_row(layer) for layer in found.layers]
    blank = [""] * (len(HEADS) - 1)
    rows += [(printable(f"{name}: {reason}"), *blank) for name, reason in found.skipped]
    title = f"What channels answer to, on {fmt.count(found.images)} test images (figure / by chance)"
    return Table(title, HEADS, tuple(rows), least=(1, 4, 3))


def selectivity_tables(stages: Mapping[str, Selectivity] | None) -> tuple[Table, ...]:
    """Return a table a stage of a report."""
    tables = ((name, selectivity_table(found)) for name, found in (stages or {}).items())
    return tuple(replace(table, title=f"{printable(name)}: {table.title}") for name, table in tables)


def _row(layer: LayerSelectivity) -> tuple[str, ...]:
    return (
        printable(layer.name),
        fmt.count(layer.channels),
        f"{100 * layer.named:.0f} / {100 * layer.named_by_chance:.0f} %",
        fmt.count(layer.words),
        f"{layer.bits:.1f}",
        f"{100 * layer.explained:.0f} / {100 * layer.explained_by_chance:.0f} %",
        f"{layer.alike:.2f} / {layer.alike_mixed:.2f}",
    )


def selectivity_words(found: Selectivity) -> str:
    """Say in one line what it comes to, means over channels."""
    if not found.layers:
        return "no layer to explain"
    share = {name: fmt.share(found.mean(name), 1.0) for name in ("explained", "explained_by_chance")}
    alike, mixed = (fmt.number(found.mean(name), 2) for name in ("alike", "alike_mixed"))
    return (
        f"named kernels explain {share['explained']} of a channel's variance (shuffled cells: "
        f"{share['explained_by_chance']}), its top patches are {alike} alike (mixed: {mixed})"
    )
