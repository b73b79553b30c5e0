"""Networks that were exported together with their graph: what every reader of one hands back.

These formats are read for scanning only. The graph gives each convolution's exact groups; no reader
runs anything in the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Convolution:
    """How the graph uses a weight; `stride` is the largest of its axes, None where the graph hides it."""

    groups: int
    transposed: bool
    stride: int | None = None


@dataclass(frozen=True, eq=False)
class Exported:
    """Tensors by name, and how those that are convolution weights are used.

    `unseen` says of each convolution whose weight cannot be read why.
    """

    tensors: Mapping[str, Tensor]
    convolutions: Mapping[str, Convolution]
    warnings: tuple[str, ...] = ()
    unseen: Mapping[str, str] = field(default_factory=dict)
