"""What a plan is likely to cost, told from the loss that the survey predicts before any kernel is changed.

That loss is half the sum of e'Fe over the errors e of plain projection, F the Fisher information. In
`docs/study.md` it ranks networks by what simplifying costs them as well as anything that the survey knows.
How large the cost is of an architecture that was not seen, it tells no better than a guess; so what others
lost is all that is said.
"""

from dataclasses import dataclass

from kernelsimp.solver.solve import PlanTrial

SHARE = 0.3
"""The degrees of freedom at which the networks of the study were measured."""


@dataclass(frozen=True)
class Precedent:
    """What `networks` of the study lost that the survey predicted less than `below` nats of.

    The `median` and the `most`, in percentage points of their test images.
    """

    below: float
    networks: int
    median: float
    most: float


PRECEDENTS = (
    Precedent(0.01, 24, 0.0, 0.7),
    Precedent(0.1, 26, 0.3, 1.7),
    Precedent(1, 6, 2.3, 5.2),
)
"""Each begins where the one before ends. Beyond the last nothing was seen."""


def foresee(trial: PlanTrial) -> tuple[str, ...]:
    """Return a line on what a plan is likely to cost; none where there are no classes, or nothing like it."""
    predicted = sum(trial.predicted.values())
    if trial.distance.agreement is None or not predicted > 0:
        return ()
    floor = 0.0
    for seen in PRECEDENTS:
        if predicted < seen.below:
            return (_line(predicted, floor, seen),)
        floor = seen.below
    return ()


def _line(predicted: float, floor: float, seen: Precedent) -> str:
    span = f"{floor:g} to {seen.below:g}" if floor else f"less than {seen.below:g}"
    return (
        f"before any kernel changed, the survey predicted a loss of {predicted:.2g} nats of this plan; the "
        f"{seen.networks} networks of the study with {span} lost {seen.median:.1f} pp in the median and "
        f"{seen.most:.1f} at most, at {100 * SHARE:.0f} % of their degrees of freedom"
    )
