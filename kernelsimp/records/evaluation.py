"""What `evaluate` measured of one network, as plain data; the field names are the keys of its JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernelsimp.records.report import Metric, Stage
from kernelsimp.records.selectivity import Selectivity

SCHEMA = "kernelsimp.evaluate/1"


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on the test split, or a metric of the user's own, and robustness where it was asked for.

    `source` names file, data and seed; `accuracy` is null where `metric` stands in its place; `top5` is in
    percent, null below ten classes; `robustness` and `metric` have the keys that they have in report.json.
    `selectivity` is what channels answer to, where that was asked for.
    """

    source: Mapping[str, Any]
    accuracy: Stage | None
    top5: float | None = None
    robustness: Mapping[str, Any] | None = None
    metric: Metric | None = None
    selectivity: Selectivity | None = None
    schema: str = SCHEMA
