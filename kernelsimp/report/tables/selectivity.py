"""What channels answer to, layer by layer, as a table and a line."""

from kernelsimp.error_text import printable
from kernelsimp.records.selectivity import LayerSelectivity, Selectivity
from kernelsimp.report import fmt
from kernelsimp.report.tables.table import Table

HEADS = (
    "layer",
    "channels",
    "named",
    "chance",
    "words",
    "bits",
    "explained",
    "chance",
    "alike",
    "mixed",
)


def selectivity_table(found: Selectivity) -> Table:
    """Return a row a layer, what was passed over last."""
    rows = [_row(layer) for layer in found.layers]
    blank = [""] * (len(HEADS) - 2)
    rows += [(printable(name), printable(reason), *blank) for name, reason in found.skipped]
    title = f"What channels answer to, on {fmt.count(found.images)} test images"
    return Table(title, HEADS, tuple(rows), least=(1, 4, 5))


def _row(layer: LayerSelectivity) -> tuple[str, ...]:
    named, chance = (fmt.share(share, 1.0) for share in (layer.named, layer.named_by_chance))
    own, random = (fmt.share(share, 1.0) for share in (layer.explained, layer.explained_by_chance))
    alike, mixed = (fmt.number(figure, 2) for figure in (layer.alike, layer.alike_mixed))
    sizes = fmt.count(layer.channels), fmt.count(layer.words), fmt.number(layer.bits, 2)
    return (printable(layer.name), sizes[0], named, chance, *sizes[1:], own, random, alike, mixed)


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
