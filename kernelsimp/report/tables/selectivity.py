"""What channels answer to, layer by layer, as a table and a line: every figure beside what chance gives."""

from collections.abc import Mapping

from kernelsimp.error_text import printable
from kernelsimp.records.selectivity import LayerSelectivity, Selectivity
from kernelsimp.report import fmt
from kernelsimp.report.tables.table import Table

HEADS = ("layer", "channels", "named", "names", "bits", "explained", "alike")

BY_STAGE = ("named", "explained", "alike")
"""The figures that a report compares between its stages."""

TITLE = "What channels answer to"

SAYS = (
    "Each figure stands before what chance gives: kernels with a name; the share of a channel's variance "
    "that its named kernels explain alone; how alike the patches of test images are that drive it most."
)


def selectivity_table(found: Selectivity) -> Table:
    """Return a row a layer; those that were passed over come last, with the reason."""
    rows = [_row(layer) for layer in found.layers]
    blank = [""] * (len(HEADS) - 1)
    rows += [(printable(f"{name}: {reason}"), *blank) for name, reason in found.skipped]
    title = f"{TITLE}, on {fmt.count(found.images)} test images (figure / by chance)"
    return Table(title, HEADS, tuple(rows), least=(1, 4, 3))


def selectivity_tables(stages: Mapping[str, Selectivity] | None) -> tuple[Table, ...]:
    """Return one table of all stages of a report: a row a layer, and each figure stage beside stage."""
    if not stages:
        return ()
    rows = {name: {layer.name: _row(layer) for layer in found.layers} for name, found in stages.items()}
    blank = ("",) * len(HEADS)
    places = [HEADS.index(figure) for figure in BY_STAGE]
    names = list(dict.fromkeys(layer for stage in rows.values() for layer in stage))
    heads = (f"{HEADS[place]}, {printable(stage)}" for place in places for stage in rows)
    cells = (
        (printable(name), *(stage.get(name, blank)[place] for place in places for stage in rows.values()))
        for name in names
    )
    skipped = dict.fromkeys(item for found in stages.values() for item in found.skipped)
    width = len(BY_STAGE) * len(stages)
    notes = ((printable(f"{name}: {reason}"), *[""] * width) for name, reason in skipped)
    return (Table(TITLE, ("layer", *heads), (*cells, *notes)),)


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
