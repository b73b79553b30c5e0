"""A run as one sentence that a person would repeat: what was found, what was made exact, what it cost."""

from kernelsimp.records.report import Report
from kernelsimp.records.scan import Scan
from kernelsimp.report import fmt
from kernelsimp.report.tables.scan import counts_of


def story_words(scan: Scan, report: Report) -> str:
    """Return the sentence; it says so where nothing was found, and where accuracy was not measured."""
    total, _, found, _ = counts_of(scan)
    kernels = report.kernels
    first = (
        f"of {fmt.count(total)} kernels {fmt.count(found)} have a structure that chance does not explain"
        if found
        else f"no structure beyond chance in {fmt.count(total)} kernels"
    )
    held = {"freeze": " and frozen bit for bit", "tie": " and tied"}.get(report.hold, "")
    made = (
        f"{fmt.count(kernels.simplified)} were made exact{held} ({fmt.count(kernels.found)} of them found, "
        f"{fmt.count(kernels.imposed)} imposed)"
    )
    return "; ".join((first, made, _cost(report), _bytes(report)))


def _cost(report: Report) -> str:
    accuracy = report.accuracy
    if accuracy is None or not accuracy.stages:
        return "accuracy was not measured"
    before, after = accuracy.stages[0], accuracy.stages[-1]
    return (
        f"{fmt.count(after.correct)} of {fmt.count(after.total)} unseen images are read right, "
        f"{fmt.count(before.correct)} before"
    )


def _bytes(report: Report) -> str:
    size = report.size
    if not size.packed or not size.original_zip:
        return f"the file takes {fmt.size(size.file)}"
    return f"packed it takes {fmt.size(size.packed)}, zipped {fmt.size(size.original_zip)} before"
