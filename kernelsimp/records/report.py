"""The report as plain data; its field names are the keys of report.json.

Additions are free; renaming a field or changing its meaning raises the schema number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernelsimp.records.factorised import Factorised
from kernelsimp.records.held import HeldLayer
from kernelsimp.records.measured import Accuracy as Accuracy
from kernelsimp.records.measured import Epoch as Epoch
from kernelsimp.records.measured import Stage as Stage
from kernelsimp.records.selectivity import Selectivity

SCHEMA = "kernelsimp.report/1"


@dataclass(frozen=True)
class KernelCounts:
    """Counts over kernels larger than 1x1; simplified = found + imposed + zeroed.

    `denoised` kernels are in no structure and count apart; `free` ones are left to themselves.
    """

    total: int
    simplified: int
    found: int
    imposed: int
    zeroed: int
    dead: int
    frozen: int
    tied: int = 0
    denoised: int = 0
    free: int | None = None


@dataclass(frozen=True)
class Dof:
    """Continuous numbers in kernels larger than 1x1; `equivalent_fraction` adds the cost of the choices.

    After a training that held nothing, kernels that left their structure count in full; `planned_fraction`
    is the share before that.
    """

    before: int
    after: int
    fraction: float
    equivalent_fraction: float
    planned_fraction: float | None = None


@dataclass(frozen=True)
class Survived:
    """What a training that held nothing left of the structures.

    Of `total` kernels so many are still `exact`ly in theirs, and so many `near`, within a relative residual
    of 0.1; `families` gives both counts by structure.
    """

    exact: int
    near: int
    total: int
    families: Mapping[str, tuple[int, int]] = field(default_factory=dict)


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

    `families` counts the kernels of each structure, `families_found` those of them that chance does not
    explain. `weight_error` is ||w - w0|| / ||w0|| over the layer, `output_error` the same of its outputs on
    calibration inputs, null where no data was given.
    `predicted_loss` is what the survey makes of the layer's choices before any re-solve, `measured_loss`
    KL(original || the original with this layer alone as it came out of the re-solve) on calibration images
    that nothing was fitted to, both in nats an image. `prototypes` says how many prototypes carry the kernels
    of the layer that share them; `dof` counts their numbers once.
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
    denoised: int = 0
    predicted_loss: float | None = None
    measured_loss: float | None = None
    families_found: Mapping[str, int] = field(default_factory=dict)
    prototypes: int = 0


@dataclass(frozen=True)
class Control:
    """One control arm: what else the same budget buys, before any fine-tuning unless its name says so.

    `change_pp` is this arm's accuracy less the simplified network's at the same stage (fine-tuned arms
    stand beside the fine-tuned network); `mcnemar_p` pairs the two, and `change_ci95` is the paired
    interval of the change: where 0 lies in it, these images cannot tell the arm from the run. After
    rounds, the first arm is the same plan without rounds, and the others stand beside that.
    """

    name: str
    dof: float
    top1: float
    correct: int
    change_pp: float
    mcnemar_p: float
    change_ci95: tuple[float, float] | None = None

    @property
    def outcome(self) -> str | None:
        """Say how the arm stands beside the run: better, worse or tie; None where no interval is known."""
        if self.change_ci95 is None:
            return None
        low, high = self.change_ci95
        return "better" if low > 0 else "worse" if high < 0 else "tie"


@dataclass(frozen=True)
class Round:
    """One progressive round: `dof` is the share of the degrees of freedom that it leaves.

    `predicted` and `measured` are what simplifying in it costs, in nats an image on calibration images that
    nothing was fitted to, before the short training; `kappa` is their ratio. `drop` is the loss after the
    training on validation images, in pp, where an accuracy budget judges. A `surprising` round lost more
    than twice what the rounds before made one expect; a round that was not `kept` was taken again, smaller.
    """

    round: int
    dof: float
    predicted: float
    measured: float
    kappa: float | None
    drop: float | None = None
    surprising: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Figure:
    """One value of a metric at one stage."""

    stage: str
    value: float


@dataclass(frozen=True)
class Metric:
    """What stands in place of accuracy for a network that is no classifier, on the test split.

    Either the user's own figure, higher is better, or the relative error of the output against the
    original network's, lower is better. `change` is last minus first.
    """

    name: str
    stages: tuple[Figure, ...]
    change: float
    higher_is_better: bool = True


@dataclass(frozen=True)
class CodedLayer:
    """One tensor of a coded file: its `weights`, and the `bytes` of its stream."""

    name: str
    weights: int
    bytes: int


@dataclass(frozen=True)
class CodedPoint:
    """One price of a bit that the search tried, in nats an image: bytes of the file, and what it costs.

    `kl` is KL(original || decoded) in nats an image on images that nothing was fitted to; null without
    images.
    """

    price: float
    bytes: int
    kl: float | None = None


@dataclass(frozen=True)
class Coded:
    """The last coded export of the run: `bytes` of `file`, and whether the `budget` it was made for is `met`.

    `decoded` is the accuracy of what the file decodes to, on test images that chose nothing; `original` that
    of the run's network on the same. Of `structured` kernels so many decode to `exact` members of their
    structure.
    """

    file: str
    bytes: int
    budget: str
    met: bool
    layers: tuple[CodedLayer, ...]
    tried: tuple[CodedPoint, ...]
    original: Stage | None = None
    decoded: Stage | None = None
    structured: int = 0
    exact: int = 0


@dataclass(frozen=True)
class Report:
    """Everything one `simplify` did. `structures` decodes the assignments; index 0 is 'free'.

    `tensors` says what every tensor of the written network is: `64x3x7x7 float32`, and `beside` every other
    one in its file, with a digest. `survived` is there where the network was trained and nothing was held,
    `coded` where the run was exported so. `factorised` is what the last export of the run's network to
    thinner layers came to.
    """

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
    selectivity: Mapping[str, Selectivity] | None = None
    buffers_changed: tuple[str, ...] = ()
    budget_met: bool = True
    notes: tuple[str, ...] = ()
    rounds: tuple[Round, ...] = ()
    metric: Metric | None = None
    pictures: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    survived: Survived | None = None
    beside: Mapping[str, str] = field(default_factory=dict)
    factorised: Factorised | None = None
    coded: Coded | None = None
    schema: str = SCHEMA
