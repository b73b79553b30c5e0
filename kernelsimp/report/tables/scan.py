"""What a scan says, as tables: its figures, families beside chance, layers, sentences, one kernel."""

from kernelsimp.error_text import printable
from kernelsimp.records.scan import Explanation, LayerScan, Scan
from kernelsimp.report import fmt
from kernelsimp.report.store import family_totals
from kernelsimp.report.tables.table import Fact, Table, families_text, pairs


def scan_facts(scan: Scan) -> tuple[Fact, ...]:
    """Return the figures of a scan that a reader needs first."""
    kernels, matching, found, both = counts_of(scan)
    dead = sum(layer.dead for layer in scan.layers)
    tolerance, fdr = (fmt.number(scan.settings.get(name)) for name in ("tolerance", "fdr"))
    skipped = f"tensors skipped: {len(scan.skipped):,}"
    rule = f"not explained by the {null_of(scan)} null, at a false discovery rate of {fdr}"
    return (
        Fact("layers larger than 1x1", fmt.count(len(scan.layers)), skipped),
        Fact("kernels", fmt.count(kernels), f"{dead:,} dead; {scan.pointwise:,} pointwise besides"),
        Fact("matching a structure", fmt.count(matching), f"relative residual at most {tolerance}"),
        Fact("found", fmt.count(found), f"{both:,} of them matching; {rule}"),
    )


def scan_title(scan: Scan) -> str:
    """Return what a scan came to, in the words of a title."""
    kernels, matching, found, _ = map(fmt.count, counts_of(scan))
    return f"{found} of {kernels} kernels found beyond chance, {matching} near a simple structure"


def near_words(scan: Scan) -> str | None:
    """Say how many live kernels lie near any usual family, beside the same kernels with shuffled cells."""
    parts = [layer.extra["near_any"] for layer in scan.layers if layer.extra.get("near_any")]
    live = sum(part["live"] for part in parts)
    if not live:
        return None
    near, chance = (fmt.share(sum(part[key] for part in parts), live) for key in ("observed", "permuted"))
    tolerance = fmt.number(scan.settings.get("tolerance"))
    return (
        f"{near} of live kernels lie within {tolerance} of one of the 17 linear families or rank one (other "
        f"structures, such as pairs of lines, aside), {chance} when their cells are shuffled"
    )


def found_by_family(scan: Scan) -> dict[str, int]:
    """Return how many of the kernels that are found match each family best; with those of none, all found."""
    counts = dict.fromkeys(scan.families, 0)
    for layer in scan.layers:
        for place in layer.best[layer.found & (layer.best >= 0)].tolist():
            counts[scan.families[place]] += 1
    return counts


def counts_of(scan: Scan) -> tuple[int, int, int, int]:
    """Return how many kernels there are, match a family, are found, and are both."""
    kernels = sum(layer.kernels for layer in scan.layers)
    matching = sum(int((layer.best >= 0).sum()) for layer in scan.layers)
    found = sum(int(layer.found.sum()) for layer in scan.layers)
    return kernels, matching, found, sum(found_by_family(scan).values())


def scan_words(scan: Scan) -> str:
    """Say in one line what a scan came to."""
    kernels, matching, found, both = map(fmt.count, counts_of(scan))
    if not scan.layers:
        return f"no kernel larger than 1x1 among {fmt.count(scan.pointwise)} pointwise ones"
    layers = fmt.counted(len(scan.layers), "layer")
    tolerance = fmt.number(scan.settings.get("tolerance"))
    return (
        f"{kernels} kernels in {layers}: {found} found (nearer to a family than chance explains), "
        f"{matching} matching (within {tolerance} of any structure), {both} both"
    )


def null_of(scan: Scan) -> str:
    """Return the null that the scan was asked for."""
    return str(scan.settings.get("null") or "white")


def scan_family_table(scan: Scan) -> Table:
    """Return each family over all layers beside what every null expects by chance."""
    totals, asked, found = family_totals(scan), null_of(scan), found_by_family(scan)
    nulls = tuple(dict.fromkeys(null for total in totals.values() for null in total["null"]))
    heads = ("family", "layers", "matches", *(f"by chance, {null}" for null in nulls))
    rows = []
    for name, total in totals.items():
        chance = total["null"].get(asked, {})
        figures = (fmt.number(total["null"].get(null, {}).get("expected")) for null in nulls)
        counts = (str(total["layers"]), fmt.count(total["observed"]), *figures)
        last = (_times(chance.get("enrichment")), fmt.count(found[name]))
        rows.append((printable(name), *counts, *last))
    return Table("Families", (*heads, f"matches / {asked}", f"found, {asked}"), tuple(rows))


def scan_family_brief(scan: Scan) -> Table:
    """Return the families that have matches beside the one null each is judged by: for a narrow terminal."""
    heads = ("family", "matches", "by chance", "matches / chance", "found", "null")
    rows, of_family = [], found_by_family(scan)
    for name, total in family_totals(scan).items():
        null = null_of(scan) if null_of(scan) in total["null"] else next(iter(total["null"]), "")
        chance = total["null"].get(null, {})
        if total["observed"]:
            figures = (fmt.number(chance.get("expected")), _times(chance.get("enrichment")))
            found = fmt.count(of_family[name])
            row = (printable(name), fmt.count(total["observed"]), *figures, found)
            rows.append((*row, _null_used(scan, name, null)))
    return Table("Families", heads, tuple(rows), frozenset({0, 5}), least=(5, 2))


def _null_used(scan: Scan, family: str, null: str) -> str:
    """Return the null that judged a family: white where that stood in, with a star in some layers alone."""
    layers = [layer for layer in scan.layers if family in layer.families]
    white = sum(null in layer.extra.get("white_instead", ()) for layer in layers)
    if not white:
        return null
    return "white" if white == len(layers) else f"{null}*"


def most_structured(scan: Scan) -> tuple[LayerScan, ...]:
    """Return the layers by the share of their kernels that is found, then by the share that matches."""
    return tuple(sorted(scan.layers, key=_structure_shares, reverse=True))


def _structure_shares(layer: LayerScan) -> tuple[float, float]:
    count = max(layer.kernels, 1)
    return float(layer.found.sum()) / count, float((layer.best >= 0).sum()) / count


def sentence_table(scan: Scan) -> Table:
    """Return what the kernels of each layer look like in one sentence, the most structured layers first."""
    rows = tuple((printable(layer.name), printable(layer.sentence)) for layer in most_structured(scan))
    return Table("In words", ("layer", "what its kernels look like"), rows, frozenset({0, 1}))


def explanation_table(explained: Explanation) -> Table:
    """Return the structures a kernel was measured against, those that match first, with each null's p."""
    nulls = tuple(dict.fromkeys(null for item in explained.candidates for null in item.p))
    rows = tuple(
        (
            printable(item.name),
            str(item.dim),
            fmt.number(item.residual),
            "yes" if item.matches else "",
            *(fmt.p_value(item.p.get(null)) for null in nulls),
        )
        for item in explained.candidates
    )
    heads = ("structure", "DOF", "residual", "matches", *(f"p, {null}" for null in nulls))
    return Table("Candidates", heads, rows, frozenset({0, 3}))


def scan_layer_table(scan: Scan) -> Table:
    """Return one row a layer, the most structured first: matches, found, and the commonest families."""
    heads = ("layer", "kind", "shape", "kernels", "dead", "matching", "found", "best families")
    layers = most_structured(scan)
    rows = tuple(_scan_row(scan, layer) for layer in layers)
    shares = tuple(float((layer.best >= 0).mean()) if layer.best.size else 0.0 for layer in layers)
    return Table("Layers", heads, rows, frozenset({0, 1, 2, 7}), {5: shares}, least=(2, 1, 4))


def _scan_row(scan: Scan, layer: LayerScan) -> tuple[str, ...]:
    best = layer.best.reshape(-1)
    places = sorted(set(best[best >= 0].tolist()))
    counts = {scan.families[place]: int((best == place).sum()) for place in places}
    return (
        printable(layer.name),
        layer.kind,
        fmt.shape(layer.weight_shape),
        fmt.count(layer.kernels),
        fmt.count(layer.dead),
        fmt.count(sum(counts.values())),
        fmt.count(int(layer.found.sum())),
        families_text(counts),
    )


def skipped_table(scan: Scan) -> Table:
    """Return the tensors that were passed over, and why."""
    return Table("Skipped", ("tensor", "reason"), pairs(scan.skipped), frozenset({0, 1}))


def _times(value: float | None) -> str:
    return fmt.DASH if value is None else f"{fmt.number(value)} x"
