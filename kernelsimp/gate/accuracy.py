"""Whether a network is still as accurate as its report says, on the same images, pair by pair.

Drops are in percentage points, positive when accuracy was lost.
"""

from dataclasses import dataclass

from kernelsimp.error_text import printable
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome, correct_from, mcnemar, paired_interval
from kernelsimp.records.limits import Baseline, baseline_of
from kernelsimp.records.report import Report, Stage
from kernelsimp.records.verdict import Finding

AGAINST = ("last", "original")
"""The stages of the baseline that a check can compare with."""

ROUNDING = 1e-9
"""Percentage points by which a drop may pass its limit through rounding alone."""


@dataclass(frozen=True)
class Drop:
    """The accuracy lost since a stage: pp, its 95 % interval, and McNemar's exact p."""

    stage: str
    drop_pp: float
    interval: tuple[float, float]
    p: float
    message: str


def measure_drop(
    source: Report | Baseline, outcome: Outcome, fingerprint: str | None = None, against: str = "last"
) -> Drop:
    """Compare an outcome with a stage of the baseline, image by image.

    Raises `KernelsimpError` where the baseline has no accuracy or was measured on other images;
    `fingerprint` None leaves the latter to the caller.
    """
    if against not in AGAINST:
        raise KernelsimpError(f"--against is '{printable(against)}'; expected last or original")
    baseline = baseline_of(source) if isinstance(source, Report) else source
    if not baseline.stages:
        raise KernelsimpError(
            "the baseline has no accuracy, it was made without data; make one with --data, "
            "or drop --data here"
        )
    if fingerprint is not None and baseline.data_fingerprint != fingerprint:
        raise KernelsimpError(
            f"these test images have fingerprint {fingerprint[:12]}, the baseline was measured on "
            f"{str(baseline.data_fingerprint)[:12]}; give the same --data and split"
        )
    return _drop(baseline.stages[0 if against == "original" else -1], outcome)


def verify_accuracy(
    source: Report | Baseline,
    outcome: Outcome,
    *,
    fingerprint: str | None = None,
    max_drop: float = 0.5,
    against: str = "last",
) -> tuple[Finding, ...]:
    """Return a finding where accuracy fell by more than `max_drop` pp below a stage of the baseline.

    `against` is its last stage or the original network. Raises as `measure_drop` does.
    """
    drop = measure_drop(source, outcome, fingerprint, against)
    if drop.drop_pp <= max_drop + ROUNDING:
        return ()
    message = f"{drop.message}; at most {max_drop:g} pp is allowed"
    return (Finding("accuracy.drop_pp", "error", "", drop.drop_pp, max_drop, message),)


def _drop(stage: Stage, outcome: Outcome) -> Drop:
    before, after, name = correct_from(stage), outcome.correct, printable(stage.stage)
    if before.size != after.size:
        raise KernelsimpError(
            f"{after.size} images were measured, the baseline's stage '{name}' has {before.size}; "
            "give the same --data and split"
        )
    drop = 100 * (stage.correct - int(after.sum())) / max(stage.total, 1)
    low, high = paired_interval(before, after)
    p = mcnemar(before, after)
    message = (
        f"accuracy {outcome.top1:.2f} % ({outcome.right:,} of {outcome.total:,}) is {0 - drop:+.2f} pp "
        f"from the baseline's stage '{name}' at {stage.top1:.2f} % (95 % {low:+.2f} to {high:+.2f}, "
        f"McNemar p {p:.2g})"
    )
    return Drop(stage.stage, drop, (low, high), p, message)
