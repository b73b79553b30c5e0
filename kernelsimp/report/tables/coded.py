"""What a run's coded export says, as tables: the size, what was tried, bits a weight by layer."""

from kernelsimp.error_text import printable
from kernelsimp.records.report import Coded, Report, Stage
from kernelsimp.report import fmt
from kernelsimp.report.tables.table import Table

SAYS = (
    "Accuracy is that of the decoded file on test images, which chose nothing; KL, in nats an image, is "
    "measured on images that nothing was fitted to."
)


def coded_tables(report: Report) -> tuple[Table, ...]:
    """Return the size card, the search's trials and the layers; nothing where nothing was coded."""
    if (coded := report.coded) is None:
        return ()
    return (_size(report, coded), _tried(coded), _layers(coded))


def _size(report: Report, coded: Coded) -> Table:
    weights, bits = (
        sum(layer.weights for layer in coded.layers),
        8 * sum(layer.bytes for layer in coded.layers),
    )
    share = fmt.share(coded.bytes, report.size.file)
    met = "" if coded.met else ", not met"
    rows = [
        ("file", fmt.size(coded.bytes), f"{printable(coded.file)}, {share} of the checkpoint"),
        ("budget", printable(coded.budget), f"the best of {len(coded.tried)} files{met}"),
        ("bits a weight", fmt.number(bits / max(weights, 1)), f"{fmt.count(weights)} weights that are coded"),
    ]
    if coded.decoded is not None:
        rows.append(("accuracy, decoded", fmt.percent(coded.decoded.top1), _stage(coded.decoded)))
    if coded.original is not None:
        rows.append(("accuracy, checkpoint", fmt.percent(coded.original.top1), _stage(coded.original)))
    if coded.structured:
        members = f"{fmt.count(coded.exact)} of {fmt.count(coded.structured)}"
        rows.append(("kernels in their structure", members, "exactly, as decoded"))
    return Table("Coded size", ("figure", "value", "which"), tuple(rows), frozenset({0, 2}))


def _stage(stage: Stage) -> str:
    return f"{fmt.right_of(stage)} {stage.split} images, 95 % interval {fmt.interval(*stage.ci95)} %"


def _tried(coded: Coded) -> Table:
    rows = tuple(
        (f"{point.bytes:,}", fmt.DASH if point.kl is None else fmt.number(point.kl), f"{point.price:.3g}")
        for point in coded.tried
    )
    return Table("Coded, tried", ("bytes", "KL", "price of a bit"), rows, frozenset())


def _layers(coded: Coded) -> Table:
    rows = tuple(
        (
            printable(layer.name),
            fmt.count(layer.weights),
            f"{layer.bytes:,}",
            fmt.number(8 * layer.bytes / max(layer.weights, 1)),
        )
        for layer in coded.layers
    )
    most = max((layer.bytes for layer in coded.layers), default=1)
    bars = {2: tuple(layer.bytes / max(most, 1) for layer in coded.layers)}
    return Table("Coded layers", ("tensor", "weights", "bytes", "bits a weight"), rows, bars=bars)
