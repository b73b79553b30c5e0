"""What `evaluate` measured of one network, as plain data; the field names are the keys of its JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernelsimp.records.report import Stage

SCHEMA = "kernelsimp.evaluate/1"


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on the test split, and robustness where it was asked for.

    `source` names file, data and seed; `top5` is in percent, null below ten classes; `robustness` has the
    keys that it has in report.json.
    """

    source: Mapping[str, Any]
    accuracy: Stage
    top5: float | None = None
    robustness: Mapping[str, Any] | None = None
    schema: str = SCHEMA
