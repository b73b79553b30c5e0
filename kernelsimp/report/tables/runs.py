"""Any number of runs in one table, sorted by the degrees of freedom left, and what makes them differ."""

from collections.abc import Sequence
from pathlib import PurePath

from kernelsimp.error_text import printable
from kernelsimp.records.report import Report, Stage
from kernelsimp.report import fmt
from kernelsimp.report.tables.table import Fact, Table
from kernelsimp.report.tables.verdict import network_name

Named = tuple[str, Report]
MET = "met"
"""What the last column says of a run within its budget."""


def sorted_runs(runs: Sequence[Named]) -> tuple[Named, ...]:
    """Return runs from the fewest degrees of freedom left to the most, names breaking ties."""
    return tuple(sorted(runs, key=lambda run: (run[1].dof.fraction, run[0])))


def last_stage(report: Report) -> Stage | None:
    """Return the accuracy that a run ended with, on the test split, where it was measured."""
    return report.accuracy.stages[-1] if report.accuracy and report.accuracy.stages else None


def bytes_of(report: Report) -> int:
    """Return the bytes of a run's network in its smallest lossless form."""
    return report.size.packed or report.size.zip


def runs_table(runs: Sequence[Named]) -> Table:
    """Return one row a run: accuracy with its interval, what it kept, bytes, whether its budget was met."""
    heads = ("run", "network", "test top-1", "95 % interval", "change", "DOF left", "found", "simplified")
    last = ("bytes", "budget")
    rows = tuple(_row(name, report) for name, report in sorted_runs(runs))
    return Table("Runs", (*heads, *last), rows, frozenset({0, 1, 3, 9}))


def _row(name: str, report: Report) -> tuple[str, ...]:
    stage, accuracy = last_stage(report), report.accuracy
    changed = accuracy.change_pp if accuracy and len(accuracy.stages) > 1 else None
    return (
        printable(name),
        printable(PurePath(str(report.provenance.get("input") or "–")).name),
        fmt.percent(stage.top1 if stage else None),
        fmt.interval(*stage.ci95) if stage else fmt.DASH,
        fmt.points(changed) if changed is not None else fmt.DASH,
        fmt.share(report.dof.fraction),
        fmt.count(report.kernels.found),
        f"{fmt.count(report.kernels.simplified)} of {fmt.count(report.kernels.total)}",
        fmt.size(bytes_of(report)),
        MET if report.budget_met else "not met",
    )


def runs_title(runs: Sequence[Named]) -> str:
    """Return what the runs are of and what became of them, in the words of a title."""
    networks = ", ".join(dict.fromkeys(network_name(report) for _, report in runs))
    met = sum(report.budget_met for _, report in runs)
    return f"{networks}: {met} of {len(runs)} within budget"


def runs_facts(runs: Sequence[Named]) -> tuple[Fact, ...]:
    """Return the best accuracy, the fewest degrees of freedom and the fewest bytes, each with whose it is."""
    fewest = min(runs, key=lambda run: run[1].dof.fraction)
    smallest = min(runs, key=lambda run: bytes_of(run[1]))
    measured = [(stage, name) for name, report in runs if (stage := last_stage(report))]
    best = max(measured, key=lambda run: run[0].top1, default=None)
    top = (
        ()
        if best is None
        else (
            Fact(
                "highest accuracy",
                fmt.percent(best[0].top1),
                f"{printable(best[1])}, 95 % interval {fmt.interval(*best[0].ci95)} %",
            ),
        )
    )
    return (
        *top,
        Fact("fewest degrees of freedom left", fmt.share(fewest[1].dof.fraction), printable(fewest[0])),
        Fact("fewest bytes", fmt.size(bytes_of(smallest[1])), printable(smallest[0])),
    )


def warnings_of(runs: Sequence[Named]) -> tuple[str, ...]:
    """Say where runs are of other networks or were measured on other images, which no table can compare."""
    told = []
    for key, what in (("input_sha256", "networks"), ("data_fingerprint", "test images")):
        groups: dict[str, list[str]] = {}
        for name, report in runs:
            value = report.provenance.get(key)
            if value is not None:  # a run without images has no figures to compare
                groups.setdefault(str(value), []).append(name)
        if len(groups) > 1:
            parts = "; ".join(", ".join(printable(name) for name in names) for names in groups.values())
            told.append(f"the runs have different {what}, their figures do not compare: {parts}")
    return tuple(told)
