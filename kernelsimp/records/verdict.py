"""What a check found, as plain data; the exit code is a property of the verdict.

A finding is one crossed limit at one place. `level` error fails the check, warn only speaks. Names come
from foreign checkpoints, so every rendering of a verdict passes them through `printable`.
"""

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warn"]
Outcome = Literal["pass", "warn", "error", "skip"]

SCHEMA = "kernelsimp.verdict/1"


@dataclass(frozen=True)
class Finding:
    """One limit crossed: `measured` against `limit`, at `where` (a layer, or empty for the whole model).

    `kernels` names the kernels at fault, `layer[out,in]`, as far as they are worth listing.
    """

    rule: str
    level: Level
    where: str
    measured: float | None
    limit: float | None
    message: str
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class RuleMeasure:
    """One rule that was examined: its value now and in the baseline (null where there is none)."""

    rule: str
    measured: float | None
    baseline: float | None
    limit: str
    outcome: Outcome
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """All findings, and every rule examined with what it measured, crossed or not."""

    findings: tuple[Finding, ...]
    measures: tuple[RuleMeasure, ...] = ()
    notes: tuple[str, ...] = ()
    schema: str = SCHEMA

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "error")

    @property
    def exit_code(self) -> int:
        """0 within the limits, 1 where one is crossed at level error."""
        return 1 if self.errors else 0
