"""The report as plain data; its field names are the keys of report.json.

Additions are free; renaming a field or changing its meaning raises the schema number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernelsimp.records.held import HeldLayer

SCHEMA = "kernelsimp.report/1"


@dataclass(frozen=True)
class Stage:
    """Accuracy on the test set at one stage: original, simplified, finetuned.

    `top1` is in percent, `ci95` the Wilson interval in percent, `loss` the mean cross-entropy in nats,
    `correct_bits` one bit an image, packed big-endian (numpy.packbits) and base64.
    """

    stage: str
    top1: float
    correct: int
    total: int
    loss: float
    ci95: tuple[float, float]
    correct_bits: str
    split: str = "test"


@dataclass(frozen=True)
class Accuracy:
    """All stages in order; `change_pp` is last minus first in percentage points, with a paired p-value."""

    stages: tuple[Stage, ...]
    change_pp: float
    change_ci95: tuple[float, float]
    mcnemar_p: float


@dataclass(frozen=True)
class KernelCounts:
    """Counts over kernels larger than 1x1; simplified = found + imposed + zeroed."""

    total: int
    simplified: int
    found: int
    imposed: int
    zeroed: int
    dead: int
    frozen: int
    tied: int = 0


@dataclass(frozen=True)
class Dof:
    """Continuous numbers in kernels larger than 1x1; `equivalent_fraction` adds the cost of the choices."""

    before: int
    after: int
    fraction: float
    equivalent_fraction: float


@dataclass(frozen=True)
class Size:
    """Bytes: the checkpoint file, the same file deflated, and packed where there is a packed form."""

    file: int
    zip: int
    packed: int | None = None
    original_file: int | None = None
    original_zip: int | None = None


@dataclass(frozen=True)
class LayerReport:
    """One layer larger than 1x1.

    `families` counts the kernels of each structure. `weight_error` is ||w - w0|| / ||w0|| over the layer,
    `output_error` the same of its outputs on calibration inputs, null where no data was given.
    """

    name: str
    kind: str
    groups: int
    weight_shape: tuple[int, ...]
    kernels: int
    simplified: int
    found: int
    families: Mapping[str, int]
    dof: int
    weight_error: float
    output_error: float | None
    hold: HeldLayer
    dead: int = 0


@dataclass(frozen=True)
class Epoch:
    """One epoch of fine-tuning; accuracies in percent on the validation split."""

    epoch: int
    train_loss: float
    val_top1: float | None
    val_loss: float | None
    lr: float
    seconds: float
    images_per_second: float
    held: bool = True


@dataclass(frozen=True)
class Control:
    """One control arm: what else the same budget buys, before any fine-tuning unless its name says so.

    `change_pp` is this arm's accuracy less the simplified network's; `mcnemar_p` pairs the two.
    """

    name: str
    dof: float
    top1: float
    correct: int
    change_pp: float
    mcnemar_p: float


@dataclass(frozen=True)
class Report:
    """Everything one `simplify` did. `structures` decodes the assignments; index 0 is 'free'."""

    structures: tuple[str, ...]
    accuracy: Accuracy | None
    kernels: KernelCounts
    dof: Dof
    bits: Mapping[str, float]
    size: Size
    layers: tuple[LayerReport, ...]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    hold: str = "none"
    training: tuple[Epoch, ...] = ()
    controls: tuple[Control, ...] = ()
    robustness: Mapping[str, Any] | None = None
    similarity: Mapping[str, Any] | None = None
    buffers_changed: tuple[str, ...] = ()
    budget_met: bool = True
    notes: tuple[str, ...] = ()
    pictures: Mapping[str, Any] = field(default_factory=dict)
    schema: str = SCHEMA
