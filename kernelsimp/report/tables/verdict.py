"""What a run came to, in the words of a title: which network, when, what was done, and whether it is good.

The first screen of the page, the terminal's last line and Markdown's first say the same.
"""

from pathlib import PurePath
from typing import Any

from kernelsimp.error_text import printable
from kernelsimp.records.report import Accuracy, Report
from kernelsimp.report import fmt
from kernelsimp.report.tables.headline import from_scratch
from kernelsimp.report.tables.table import Fact


def network_name(report: Report) -> str:
    """Return the name of the architecture, else of the file that came in."""
    arch = (report.settings.get("model") or {}).get("arch")
    if arch:
        return printable(PurePath(str(arch).rpartition(":")[2]).name)
    return printable(PurePath(str(report.provenance.get("input") or "network")).stem)


def title_words(report: Report) -> str:
    """Return the title of a run: `resnet20: 8,168 of 9,056 kernels simplified, -0.29 pp, within budget`."""
    kernels, accuracy = report.kernels, report.accuracy
    if from_scratch(report):
        parts = ["trained from scratch"]
    else:
        parts = [f"{fmt.count(kernels.simplified)} of {fmt.count(kernels.total)} kernels simplified"]
    if accuracy is None or not accuracy.stages:
        parts.append("accuracy not measured")
    elif len(accuracy.stages) == 1:
        parts.append(f"{fmt.percent(accuracy.stages[0].top1)} right")
    else:
        parts.append(fmt.points(accuracy.change_pp))
    parts += [] if from_scratch(report) and report.budget_met else [outcome_words(report)]
    return f"{network_name(report)}: {', '.join(parts)}"


def outcome_words(report: Report) -> str:
    """Say whether the budget was met and, where it asked nothing of accuracy, whether accuracy fell."""
    if not report.budget_met:
        return "budget NOT met"
    return "budget met, but accuracy fell" if fell(report) else "within budget"


def fell(report: Report) -> bool:
    """Say whether accuracy fell by more than chance under a budget that asked nothing of it."""
    accuracy = _unasked(report)
    return accuracy is not None and accuracy.change_ci95[1] < 0


def _unasked(report: Report) -> Accuracy | None:
    """Return accuracy before and after where the budget asked nothing of it."""
    accuracy = report.accuracy
    if accuracy is None or len(accuracy.stages) < 2 or _judged(report):
        return None
    return accuracy


def _judged(report: Report) -> bool:
    return _plan(report).get("max_drop") is not None


def _plan(report: Report) -> dict[str, Any]:
    return report.settings.get("plan") or {}


def mood(report: Report) -> str:
    """Return `bad` for a budget not met, `good` where the images show no loss besides, else `plain`."""
    accuracy = report.accuracy
    kept = accuracy is not None and len(accuracy.stages) > 1 and accuracy.change_ci95[1] >= 0
    return "bad" if not report.budget_met else "good" if kept else "plain"


def date_words(report: Report) -> str:
    """Return the day of the run, as it was recorded; nothing for reports of before it was."""
    return printable(str(report.provenance.get("date") or ""))[:10]


def budget_words(report: Report) -> str:
    """Say which budget was met or not, and which images judged it."""
    met = "Budget met" if report.budget_met else "Budget NOT met"
    asked = _asked(_plan(report))
    judged = _judged(report)
    on = (
        ", judged on images that chose; the figures here are of test images, which only report"
        if judged
        else ""
    )
    return f"{met}: {asked}{on}.{_loss_words(report)}" if asked else f"{met}."


def _loss_words(report: Report) -> str:
    """Say what became of accuracy where the budget was of something else; nothing where it was judged."""
    accuracy = _unasked(report)
    if accuracy is None:
        return ""
    change = (
        f"{fmt.points(accuracy.change_pp)}, 95 % interval {fmt.interval(*accuracy.change_ci95, '+.2f')} pp"
    )
    what = "which fell by more than chance" if fell(report) else "of which no loss beyond chance was seen"
    return f" It asked nothing of accuracy, {what}: {change}."


def _asked(plan: dict[str, Any]) -> str:
    spelled = {
        "max_drop": lambda value: f"at most {value:g} pp of accuracy lost",
        "dof": lambda value: f"{fmt.share(value)} of the degrees of freedom left",
        "simplified": lambda value: f"{fmt.share(value)} of the kernels simplified",
        "tolerance": lambda value: f"kernels within a relative residual of {value:g}",
    }
    known = ((name, plan.get(name)) for name in spelled)
    return " and ".join(spelled[name](value) for name, value in known if isinstance(value, int | float))


def first_facts(report: Report) -> tuple[Fact, ...]:
    """Return the three figures of the first screen: accuracy, kernels, what is left."""
    return (_accuracy(report), _kernels(report), _left(report))


def _accuracy(report: Report) -> Fact:
    accuracy = report.accuracy
    if accuracy is None or not accuracy.stages:
        return Fact("accuracy", "not measured", "see the metric" if report.metric else "no data was given")
    first, last = accuracy.stages[0], accuracy.stages[-1]
    images = f"{fmt.right_of(last)} {last.split} images right, 95 % interval {fmt.interval(*last.ci95)} %"
    if len(accuracy.stages) == 1:
        return Fact(f"accuracy, {printable(first.stage)}", fmt.percent(last.top1), images)
    change = (
        f"{fmt.points(accuracy.change_pp)}, 95 % interval {fmt.interval(*accuracy.change_ci95, '+.2f')} pp"
    )
    return Fact(
        "accuracy, before → after", f"{first.top1:.2f} → {fmt.percent(last.top1)}", f"{change}; {images}"
    )


def _kernels(report: Report) -> Fact:
    kernels = report.kernels
    share = fmt.share(kernels.simplified, kernels.total)
    found = fmt.share(kernels.found, kernels.simplified) if kernels.simplified else "none"
    zeroed = f", {kernels.zeroed:,} became zero" if kernels.zeroed else ""
    note = (
        f"{fmt.count(kernels.simplified)} of {fmt.count(kernels.total)}; {kernels.found:,} of them found "
        f"({found}), {kernels.imposed:,} imposed{zeroed}"
    )
    return Fact("kernels simplified", share, note)


def _left(report: Report) -> Fact:
    size = report.size
    smallest = f"; packed {fmt.size(size.packed)}" if size.packed else ""
    was = f" (was {fmt.size(size.original_file)})" if size.original_file else ""
    note = (
        f"{fmt.share(report.dof.equivalent_fraction)} counting the choice of structure; "
        f"file {fmt.size(size.file)}{was}{smallest}"
    )
    return Fact("degrees of freedom left", fmt.share(report.dof.fraction), note)
