"""A network against a baseline and limits: the verdict.

Every rule with a limit is measured once. A rule that lacks what it needs is skipped and says so; a change
that cannot be judged, because the baseline does not say what the figure was, counts as crossed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from kernelsimp.error_text import printable
from kernelsimp.evaluation.accuracy import Outcome
from kernelsimp.gate.accuracy import ROUNDING, Drop, measure_drop
from kernelsimp.gate.beside import EXTRA, extra_findings, notes_outside, sort_outside, twin_findings
from kernelsimp.gate.kernels import from_tensors, spatial_layers, verify_holds, zeroed_layers
from kernelsimp.gate.measures import CODED_RULES, coded_figures, figures
from kernelsimp.gate.rules import USUAL
from kernelsimp.gate.sound import UNREAL, UNSEEN, unreal_weights, unseen_layers
from kernelsimp.gate.tensors import added_tensors, broken_tensors, changed_tensors
from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.models.contents import Beside
from kernelsimp.models.layers import tensor_name
from kernelsimp.records.limits import Baseline, Limit, Limits
from kernelsimp.records.verdict import Finding, RuleMeasure, Verdict

COUNTED = (
    *("kernels.frozen_changed", "kernels.structure_broken", "kernels.nan", "weights.nan"),
    *("layers.changed", "layers.zeroed", EXTRA, UNREAL, UNSEEN),
)
"""Rules whose figure is the sum of what their findings measured."""


@dataclass(frozen=True, eq=False)
class CheckedNetwork:
    """The network under check: its state dict, and its outcome on test images if it was measured.

    `unmeasured` says why it was not, where it should have been. `beside` is what else its file holds, which
    fails unless `allow_extra`. `layers` are those of its graph where its file has one, and `unseen` the
    convolutions of it whose weights cannot be read, with the reason. `coded_bytes` is the size of its file
    where that is a coded one.
    """

    tensors: Mapping[str, Tensor]
    outcome: Outcome | None = None
    fingerprint: str = ""
    against: str = "last"
    unmeasured: str = ""
    beside: Mapping[str, Beside] = field(default_factory=dict)
    allow_extra: bool = False
    layers: tuple[LayerKernels, ...] | None = None
    unseen: Mapping[str, str] = field(default_factory=dict)
    coded_bytes: int | None = None

    @property
    def spatial(self) -> tuple[LayerKernels, ...]:
        """The layers with kernels larger than 1x1 that the graph or the shapes show."""
        if self.layers is None:
            return spatial_layers(self.tensors)
        return tuple(layer for layer in self.layers if not layer.pointwise)


def check(baseline: Baseline, subject: CheckedNetwork, limits: Limits = USUAL) -> Verdict:
    """Return the verdict on a network; raises as `verify_holds` and `measure_drop` do."""
    kernels = from_tensors(baseline, subject.tensors)
    spatial = [layer.name for layer in subject.spatial]
    names = {layer.name for layer in baseline.layers}.union(spatial)
    others = sort_outside(baseline, subject.tensors, subject.beside)
    found = [
        *verify_holds(baseline, kernels),
        *zeroed_layers(baseline, kernels),
        *changed_tensors(baseline, subject.tensors, set(map(tensor_name, names))),
        *broken_tensors(baseline, {**others.uncovered, **subject.tensors}),
        *unseen_layers(subject.unseen),
        *twin_findings(baseline, others.uncovered | _unknown_tensors(baseline, subject.tensors)),
    ]
    broken = {item.where for item in found if item.rule in ("kernels.nan", "weights.nan")}
    found += unreal_weights(baseline, subject.tensors, kernels, subject.layers, broken)
    added = [
        *_added_layers(baseline, subject.tensors, spatial),
        *added_tensors(baseline, subject.tensors, set(map(tensor_name, names))),
        *extra_findings(baseline, others.uncovered),
    ]
    notes = notes_outside(others, allow=subject.allow_extra)
    if subject.allow_extra:
        told = (finding.message for finding in added if finding.rule != EXTRA)
        notes = (*notes, *(f"{message}, as --allow-extra allows" for message in told))
    else:
        found += added
    hidden = tuple(item.message for item in found if item.rule == UNSEEN)
    drop = _drop(baseline, subject)
    values = {
        **{rule: sum(item.measured or 0 for item in found if item.rule == rule) for rule in COUNTED},
        **figures(baseline, kernels),
        **coded_figures(subject.tensors, subject.coded_bytes),
        **({"accuracy.drop_pp": drop.drop_pp} if drop else {}),
        **({"accuracy.top1": subject.outcome.top1} if subject.outcome else {}),
    }
    before = _before(baseline, subject.against)
    why = subject.unmeasured or "needs --data"
    measures = [
        _measure(limit, values.get(limit.rule), before.get(limit.rule), why) for limit in limits.rules
    ]
    findings = [item for measure in measures for item in _findings(measure, limits, found, drop)]
    findings.sort(key=lambda finding: finding.level != "error")
    said = {finding.message for finding in findings}
    return Verdict(tuple(findings), tuple(measures), (*notes, *(one for one in hidden if one not in said)))


def _unknown_tensors(baseline: Baseline, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the state dict that the baseline knows neither by name nor as a layer."""
    known = {*baseline.tensors, *(tensor_name(layer.name) for layer in baseline.layers)}
    return {name: tensor for name, tensor in tensors.items() if name not in known}


def _added_layers(baseline: Baseline, tensors: Mapping[str, Tensor], spatial: Sequence[str]) -> list[Finding]:
    known = {layer.name: layer for layer in baseline.layers}
    lost = [layer for layer in known.values() if tensor_name(layer.name) not in tensors]
    findings = []
    for name in spatial:
        if name not in known:
            shape = tuple(tensors[tensor_name(name)].shape)
            twin = next((layer.name for layer in lost if layer.weight_shape == shape), None)
            hint = f"; '{printable(twin)}' of the same shape is missing: was it renamed?" if twin else ""
            message = f"{printable(name)}: the baseline does not have this layer{hint}"
            findings.append(Finding("layers.changed", "error", printable(name), 1, 0, message))
    return findings


def _drop(baseline: Baseline, subject: CheckedNetwork) -> Drop | None:
    if subject.outcome is None:
        return None
    return measure_drop(baseline, subject.outcome, subject.fingerprint, subject.against)


def _before(baseline: Baseline, against: str) -> dict[str, float]:
    """Return the figures as they were. What a baseline does not tell is 0 for counts, else unknown."""
    before: dict[str, float] = {**dict.fromkeys(COUNTED, 0.0), "accuracy.drop_pp": 0.0, **baseline.measured}
    if baseline.stages:
        before["accuracy.top1"] = baseline.stages[0 if against == "original" else -1].top1
    return before


def _measure(limit: Limit, value: float | None, before: float | None, why: str) -> RuleMeasure:
    """Return what a rule measured; `why` is the reason where there is no accuracy."""
    if value is None:
        words = "the file is not a coded one" if limit.rule in CODED_RULES else "no layer to measure"
        why = why if limit.rule.startswith("accuracy.") else words
        return RuleMeasure(limit.rule, None, before, limit.text, "skip", why)
    if (limit.max_delta is not None or limit.min_delta is not None) and before is None:
        return RuleMeasure(
            limit.rule, value, None, limit.text, limit.level, "the baseline does not say what it was"
        )
    crossed = crossed_bound(limit, value, before)
    return RuleMeasure(limit.rule, value, before, limit.text, limit.level if crossed else "pass")


def crossed_bound(limit: Limit, value: float, before: float | None) -> tuple[str, float] | None:
    """Return the name and value of the first bound that is crossed, None where all hold."""
    delta = value - before if before is not None else None
    sides = (
        ("max", limit.max, value),
        ("max_delta", limit.max_delta, delta),
        ("min", limit.min, value),
        ("min_delta", limit.min_delta, delta),
    )
    for name, bound, figure in sides:
        if bound is not None and figure is not None:
            over = figure - bound if name.startswith("max") else bound - figure
            if not over <= ROUNDING:
                return name, bound
    return None


def _findings(measure: RuleMeasure, limits: Limits, found: list[Finding], drop: Drop | None) -> list[Finding]:
    """Return the findings of a crossed rule: those with a place where there are such, else one for all."""
    limit = limits.of(measure.rule)
    if limit is None or measure.outcome in ("pass", "skip") or measure.measured is None:
        return []
    placed = [item for item in found if item.rule == measure.rule]
    crossed = crossed_bound(limit, measure.measured, measure.baseline)
    bound = crossed[1] if crossed else None
    if placed:
        return [replace(item, level=limit.level, limit=bound) for item in placed]
    message = f"{measure.rule} is {measure.measured:.6g}{_was(measure)}; allowed: {limit.text}"
    if measure.rule == "accuracy.drop_pp" and drop:
        message = f"{drop.message}; allowed drop in pp: {limit.text}"
    if crossed is None:
        message = f"{measure.rule}: {measure.note}, so {limit.text} cannot be judged; make the baseline again"
    return [Finding(measure.rule, limit.level, "", measure.measured, bound, message)]


def _was(measure: RuleMeasure) -> str:
    return "" if measure.baseline is None else f", was {measure.baseline:.6g}"
