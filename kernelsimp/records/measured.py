"""Accuracy at the stages of a network, and the epochs of a training, as plain data."""

from dataclasses import dataclass


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
class Epoch:
    """One epoch of training; accuracies in percent on the validation split.

    `bits_per_kernel` and `found` are those of the weights after it: the structure code at 1 % distortion, and
    how many kernels chance does not explain. `train_loss` includes penalties. `kept` marks the epoch whose
    weights the network has; where none is marked, the network stayed as it came.
    """

    epoch: int
    train_loss: float
    val_top1: float | None
    val_loss: float | None
    lr: float
    seconds: float
    images_per_second: float
    held: bool = True
    bits_per_kernel: float | None = None
    found: int | None = None
    kept: bool = False
