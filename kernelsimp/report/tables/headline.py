"""The figures of a run that a reader needs first, and the sentences that every rendering says of them."""

from dataclasses import replace
from typing import Any

from kernelsimp.records.report import Report
from kernelsimp.report import fmt
from kernelsimp.report.tables.factorised import run_facts
from kernelsimp.report.tables.table import Fact

SHAPES_KEPT = "Every tensor keeps its shape, so the network runs no faster on a GPU and takes the same memory"
FEWER_VALUES = "what became smaller is the number of independent values in its kernels"


def headline(report: Report) -> tuple[Fact, ...]:
    """Return the figures that a reader needs first."""
    kernels, dof = report.kernels, report.dof
    simplified = f"{fmt.count(kernels.simplified)} of {fmt.count(kernels.total)}"
    equivalent = f"{fmt.share(dof.equivalent_fraction)} counting the choice of structure"
    if dof.planned_fraction is not None:
        equivalent += f"; {fmt.share(dof.planned_fraction)} before the training"
    return (
        *_accuracy_facts(report),
        Fact("kernels simplified", simplified, f"{label_words(report)}; {_held_words(report)}"),
        *_survival_facts(report),
        Fact("degrees of freedom left", fmt.share(dof.fraction), equivalent),
        *_bit_facts(report),
        _size_fact(report),
        *run_facts(report.factorised),
    )


TUNED, UNTUNED = "finetuned", "simplified, no epoch kept"
"""The stage after a training, and what it is called where that kept no epoch: it has tuned nothing."""

MEASURED = ("robustness", "similarity", "selectivity")
"""What a report tells by stages, and may have measured or not."""


def in_words(report: Report) -> Report:
    """Return the report as every face shows it: what no kept epoch has tuned is not called so."""
    if not report.training or any(epoch.kept for epoch in report.training):
        return report
    accuracy, metric = report.accuracy, report.metric
    if accuracy is not None:
        stages = tuple(replace(stage, stage=_word(stage.stage)) for stage in accuracy.stages)
        accuracy = replace(accuracy, stages=stages)
    if metric is not None:
        metric = replace(metric, stages=tuple(replace(s, stage=_word(s.stage)) for s in metric.stages))
    measured = {name: _renamed(getattr(report, name)) for name in MEASURED}
    return replace(report, accuracy=accuracy, metric=metric, **measured)


def _word(stage: str) -> str:
    return UNTUNED if stage == TUNED else stage


def _renamed(figures: Any) -> Any:
    """Return figures by stages with the stages' names in words, at every depth."""
    if isinstance(figures, dict):
        return {_word(key): _renamed(value) for key, value in figures.items()}
    if isinstance(figures, list | tuple):
        return type(figures)(map(_renamed, figures))
    return _word(figures) if isinstance(figures, str) else figures


def from_scratch(report: Report) -> bool:
    """Say whether there was no network before the training: its one stage is called trained."""
    stages = report.accuracy.stages if report.accuracy is not None else ()
    return [stage.stage for stage in stages] == ["trained"]


def verdict_line(report: Report) -> str:
    """Say in one line what was done, what it cost on which images, and whether the budget was met."""
    kernels, parts = report.kernels, []
    if from_scratch(report) and not kernels.simplified:
        parts.append("trained from scratch")
    else:
        parts.append(f"{fmt.count(kernels.simplified)} of {fmt.count(kernels.total)} kernels simplified")
    accuracy = report.accuracy
    if accuracy is not None and accuracy.stages:
        last = accuracy.stages[-1]
        change = f" ({fmt.points(accuracy.change_pp)})" if len(accuracy.stages) > 1 else ""
        parts.append(f"{fmt.percent(last.top1)} of {last.split} images right{change}")
    else:
        parts.append("accuracy not measured")
    parts.append(f"{fmt.share(report.dof.fraction)} of the degrees of freedom left")
    return ", ".join(parts)


def label_words(report: Report) -> str:
    """Spell how many kernels were found, imposed and, if any, zeroed or denoised."""
    kernels = report.kernels
    zeroed = f", {kernels.zeroed:,} zeroed" if kernels.zeroed else ""
    denoised = f"; {kernels.denoised:,} more denoised" if kernels.denoised else ""
    return f"{kernels.found:,} found, {kernels.imposed:,} imposed{zeroed}{denoised}"


def _held_words(report: Report) -> str:
    kernels = report.kernels
    held = [f"{kernels.frozen:,} frozen"] * bool(kernels.frozen) + [f"{kernels.tied:,} tied"] * bool(
        kernels.tied
    )
    return ", ".join(held) or "nothing held"


def _survival_facts(report: Report) -> tuple[Fact, ...]:
    if (left := report.survived) is None:
        return ()
    exact = f"{fmt.count(left.exact)} of {fmt.count(left.total)}"
    note = f"kernels still exactly in theirs; {fmt.count(left.near)} within a relative residual of 0.1"
    return (Fact("structures that survived", exact, note),)


def speed_words(*reports: Report) -> str:
    """Say what simplifying made smaller, and what not, in one run or some of several."""
    if all(report.dof.after == report.dof.before for report in reports):
        return f"{SHAPES_KEPT}."
    return f"{SHAPES_KEPT}; {FEWER_VALUES}."


def survival_words(report: Report) -> str:
    """Say in a sentence what a training that held nothing left of the structures; nothing for other runs."""
    if (left := report.survived) is None:
        return ""
    return (
        f"Nothing was held while it was trained: {left.exact:,} of {left.total:,} simplified kernels are "
        f"still exactly in their structure, {left.near:,} within a relative residual of 0.1."
    )


def _accuracy_facts(report: Report) -> tuple[Fact, ...]:
    if report.accuracy is None or not report.accuracy.stages:
        why = "see the metric" if report.metric else "no data was given"
        return (Fact("accuracy", "not measured", why),)
    accuracy = report.accuracy
    first, last = accuracy.stages[0], accuracy.stages[-1]
    change = fmt.interval(*accuracy.change_ci95, "+.2f")
    test = fmt.p_value(accuracy.mcnemar_p)
    before = Fact(f"accuracy, {first.stage}", fmt.percent(first.top1), _stage_note(report, 0))
    if len(accuracy.stages) == 1:
        return (before,)  # a network trained from scratch: nothing came before it
    return (
        before,
        Fact(f"accuracy, {last.stage}", fmt.percent(last.top1), _stage_note(report, -1)),
        Fact(
            "accuracy change",
            fmt.points(accuracy.change_pp),
            f"95 % interval {change} pp, McNemar p {test}",
        ),
    )


def _stage_note(report: Report, place: int) -> str:
    assert report.accuracy is not None
    stage = report.accuracy.stages[place]
    return f"{fmt.right_of(stage)} {stage.split} images, 95 % interval {fmt.interval(*stage.ci95)}"


def _bit_facts(report: Report) -> tuple[Fact, ...]:
    before, after = report.bits.get("before"), report.bits.get("after")
    if before is None or after is None:
        return ()
    coded = f"{fmt.size(after / 8)} so coded; {fmt.count(before)} bits before; at 1 % error a layer"
    return (Fact("bits in kernels", fmt.count(after), coded),)


def _size_fact(report: Report) -> Fact:
    size = report.size
    zipped = f"zipped {fmt.size(size.zip)}"
    before = f" (was {fmt.size(size.original_zip)})" if size.original_zip else ""
    packed = f", packed {fmt.size(size.packed)}" if size.packed else ""
    return Fact("file", fmt.size(size.file), zipped + before + packed)
