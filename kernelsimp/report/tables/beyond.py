"""What a scan saw beyond single kernels, as tables: filters, mean kernels, relatives, quality, bits."""

from typing import Any

from kernelsimp.error_text import printable
from kernelsimp.records.scan import LayerScan, Scan
from kernelsimp.report import fmt
from kernelsimp.report.tables.table import Table

SAYS = (
    "Filters with one structure in all their slices; the share of the mean kernel's energy with all eight "
    "symmetries of the square (D4), and what a random kernel has; kernels that are another one turned, "
    "mirrored and scaled, and as many among random kernels; prototypes that cover 95 % of the energy; and "
    "how well the weights are used."
)

CODED = (
    "Every coding reaches the same 1 % relative squared error. The structure coding, the order-0 entropy and "
    "distinct values are the three of a kernel's structure; fp32, the uniform quantiser, the same in the "
    "cosine basis and a codebook are the yardsticks."
)


def beyond_table(scan: Scan) -> Table:
    """Return one row a layer: filters, mean kernel, relatives, prototypes and quality."""
    heads = (
        *("layer", "stride", "filters alike", "D4 of the mean", "D4, random", "relatives", "by chance"),
        *("Gabor pairs", "prototypes", "near zero", "variance entropy", "orthogonality"),
    )
    rows = tuple(_row(layer) for layer in scan.layers)
    return Table("Beyond one kernel", heads, rows, frozenset({0, 1}))


def coding_table(scan: Scan) -> Table:
    """Return the bits a kernel of each layer by each coding, all at 1 % relative squared error."""
    coded = [
        (layer, layer.extra["bits_per_kernel"]) for layer in scan.layers if layer.extra.get("bits_per_kernel")
    ]
    names = tuple(dict.fromkeys(name for _, bits in coded for name in bits))
    rows = tuple(
        (printable(layer.name), *(fmt.number(bits.get(name)) for name in names)) for layer, bits in coded
    )
    return Table("Bits a kernel", ("layer", *names), rows)


def _row(layer: LayerScan) -> tuple[str, ...]:
    filters, mean, orbits, prototypes, quality = (
        layer.extra.get(key) or {} for key in ("filters", "mean_kernel", "orbits", "prototypes", "quality")
    )
    alike = f"{fmt.count(filters.get('matching'))} of {fmt.count(filters.get('count'))}"
    return (
        printable(layer.name),
        _stride(mean),
        alike if filters else fmt.DASH,
        fmt.number(mean.get("d4_score"), 2),
        fmt.number(mean.get("d4_chance"), 2),
        fmt.count(orbits.get("paired")),
        fmt.count(orbits.get("by_chance")),
        fmt.count(orbits.get("quadrature_pairs")),
        _prototypes(prototypes),
        fmt.share(quality.get("near_zero_share")),
        fmt.number(quality.get("variance_entropy"), 2),
        fmt.number(quality.get("orthogonality"), 2),
    )


def _stride(mean: dict[str, Any]) -> str:
    if not mean:
        return fmt.DASH
    return "unknown" if mean["stride"] is None else str(mean["stride"])


def _prototypes(found: dict[str, Any]) -> str:
    if not found:
        return fmt.DASH
    return fmt.count(found["count"]) if found["reached"] else f"over {fmt.count(found['count'])}"
