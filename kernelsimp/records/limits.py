"""What a check allows, and what it compares with, as plain data.

A limit is on one figure of the network (`accuracy.drop_pp`, `kernels.nan`...). `max` and `min` bound the
figure, `max_delta` and `min_delta` its change since the baseline. A baseline is the part of a report that
a check needs; its file is small, sorted and the same bytes for the same content.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kernelsimp.records.held import HeldLayer
from kernelsimp.records.report import LayerReport, Report, Stage
from kernelsimp.records.verdict import Level

SCHEMA = "kernelsimp.baseline/1"

BOUNDS = ("max", "min", "max_delta", "min_delta")


@dataclass(frozen=True)
class Limit:
    """The bounds of one rule; None does not bound. Shares are 0..1, accuracies percent, drops pp."""

    rule: str
    max: float | None = None
    min: float | None = None
    max_delta: float | None = None
    min_delta: float | None = None
    level: Level = "error"

    @property
    def text(self) -> str:
        """Spell the bounds: `max 0.5, min_delta -0.1`."""
        bounds = ((name, getattr(self, name)) for name in BOUNDS)
        return ", ".join(f"{name} {value:g}" for name, value in bounds if value is not None)


@dataclass(frozen=True)
class Limits:
    """One limit a rule, in the order of the rules table."""

    rules: tuple[Limit, ...]

    def of(self, rule: str) -> Limit | None:
        """Return the limit on `rule`, None where there is none."""
        return next((limit for limit in self.rules if limit.rule == rule), None)


@dataclass(frozen=True)
class BaselineLayer:
    """What one layer was: `weight_shape` as stored, `hold` the structure and checksum of each kernel."""

    name: str
    kind: str
    groups: int
    weight_shape: tuple[int, ...]
    hold: HeldLayer


@dataclass(frozen=True)
class Baseline:
    """What a check compares with.

    `held` says whether every kernel must still lie in its structure; `choice_bits` is what naming the
    structures costs and `coefficient_bits` what one value does (None: as many as are stored); `measured`
    holds the figures of the rules as they were. `tensors` says of every tensor what it is, shape and dtype
    (`64x3x7x7 float32`), where that is known, and `beside` the same, with a digest, of each tensor that the
    file holds outside the network.
    """

    structures: tuple[str, ...]
    layers: tuple[BaselineLayer, ...]
    held: bool
    stages: tuple[Stage, ...] = ()
    data_fingerprint: str | None = None
    choice_bits: float = 0.0
    coefficient_bits: float | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)
    schema: str = SCHEMA


def baseline_of(report: Report) -> Baseline:
    """Return what a check needs of a report.

    Structures must hold where something held them, and where nothing was trained after they were written.
    """
    kernels, survived = report.kernels, report.survived
    structured = survived.exact if survived else kernels.simplified
    share = 1 / kernels.total if kernels.total else 0.0
    fingerprint = report.provenance.get("data_fingerprint")
    return Baseline(
        structures=report.structures,
        layers=tuple(sorted(map(_layer_of, report.layers), key=lambda layer: layer.name)),
        held=report.hold != "none" or not report.training,
        stages=report.accuracy.stages if report.accuracy else (),
        data_fingerprint=str(fingerprint) if fingerprint else None,
        choice_bits=float(report.bits.get("choices", 0.0)),
        coefficient_bits=report.bits.get("coefficient"),
        tensors=report.tensors,
        beside=report.beside,
        measured={
            "kernels.simplified_share": structured * share,
            "kernels.dead_share": kernels.dead * share,
            "dof.fraction": report.dof.fraction,
            **({"bits.per_kernel": report.bits["after"] * share} if "after" in report.bits else {}),
        },
    )


def _layer_of(layer: LayerReport) -> BaselineLayer:
    return BaselineLayer(layer.name, layer.kind, layer.groups, layer.weight_shape, layer.hold)
