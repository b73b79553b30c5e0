"""What a plan says before it is carried out, as tables of text."""

from collections import Counter

import numpy as np

from kernelsimp.error_text import printable
from kernelsimp.records.plan import FREE, Plan
from kernelsimp.report import fmt
from kernelsimp.report.tables.table import Table, families_text


def plan_tables(plan: Plan) -> tuple[Table, ...]:
    """Return what would become of each layer, and the totals."""
    return (_layers(plan), _totals(plan))


def plan_words(plan: Plan) -> str:
    """Say in one line what a plan would do; nothing is done or written."""
    found = sum(int((layer.found & layer.changed).sum()) for layer in plan.layers)
    kernels = fmt.count(sum(layer.choice.size for layer in plan.layers))
    return (
        f"dry run, nothing written: {plan.simplified:,} of {kernels} kernels would be simplified, {found:,} "
        f"of them found, {fmt.share(plan.dof_after, max(plan.dof_before, 1))} of the degrees of freedom left"
    )


def _layers(plan: Plan) -> Table:
    rows = []
    for layer in plan.layers:
        names = Counter(plan.structures[index] for index in layer.choice.reshape(-1) if index != FREE)
        rows.append(
            (
                printable(layer.name),
                layer.kind,
                fmt.count(layer.choice.size),
                fmt.count(int((layer.changed & ~plan.is_denoised(layer)).sum())),
                fmt.count(int((layer.found & layer.changed).sum())),
                fmt.share(layer.dof_after, layer.dof_before),
                families_text(names, prototypes=layer.prototypes),
            )
        )
    heads = ("layer", "kind", "kernels", "simplified", "found", "DOF left", "structures")
    return Table("Plan", heads, tuple(rows), frozenset({0, 1, 6}))


def _totals(plan: Plan) -> Table:
    found = sum(int((layer.found & layer.changed).sum()) for layer in plan.layers)
    before = max(plan.dof_before, 1)
    rows = (
        (
            "rule",
            ", ".join(f"{key} {_short(value)}" for key, value in plan.rule.items() if value is not None),
        ),
        ("kernels", fmt.count(sum(layer.choice.size for layer in plan.layers))),
        ("simplified", fmt.count(plan.simplified)),
        ("found / imposed", f"{found:,} / {plan.simplified - found:,}"),
        *((("denoised", fmt.count(plan.denoised)),) if plan.denoised else ()),
        ("degrees of freedom left", fmt.share(plan.dof_after, before)),
        ("counting the choice", f"{100 * float(np.float64(plan.equivalent_dof) / before):.1f} %"),
    )
    return Table("Totals", ("what", "value"), rows, frozenset({0, 1}))


def _short(value: object) -> str:
    if isinstance(value, float):
        return fmt.number(value)
    return f"{len(value)}" if isinstance(value, list) else str(value)
