"""What a run measures beside its result, after the report is written: any part may be stopped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kernelsimp.commands.run import write_run
from kernelsimp.records.report import Report
from kernelsimp.report import gallery_of, with_p
from kernelsimp.report.assemble import RunFacts, assemble, p_values
from kernelsimp.report.run_folder import RunFolder
from kernelsimp.report.trackers import tell
from kernelsimp.watch import Watcher


@dataclass(frozen=True)
class Part:
    """One optional measurement: its name, and what adds it to the facts of a run."""

    name: str
    add: Callable[[RunFacts], RunFacts]


def add_all(facts: RunFacts, parts: Sequence[Part]) -> RunFacts:
    """Return the facts with every part measured."""
    for part in parts:
        facts = part.add(facts)
    return facts


def write_by_parts(run: RunFolder, facts: RunFacts, parts: Sequence[Part], watcher: Watcher) -> Report:
    """Write the run before every part and again after it; return the last report.

    What is interrupted leaves a whole report that names the parts it lacks.
    """
    report = write_run(run, _without(facts, parts))
    for at, part in enumerate(parts):
        watcher.note(f"the report is written to {run.path}; measuring {part.name}, which it lacks yet")
        facts = part.add(facts)
        report = _write_again(run, _without(facts, parts[at + 1 :]), report)
    tell(run.path, report, facts.settings.finetune.log, watcher)
    return report


def _write_again(run: RunFolder, facts: RunFacts, before: Report) -> Report:
    """Write the report again with what was added; what it says of the checkpoint stays as it was."""
    known = {"size": before.size, "tensors": before.tensors, "beside": before.beside}
    report = replace(assemble(facts), **known)  # type: ignore[arg-type]
    scan, plan = facts.chosen.scan, facts.chosen.plan
    gallery = gallery_of(plan, facts.original.bank, facts.written.bank)
    run.write_report(report, with_p(gallery, p_values(scan, plan)) if scan else gallery)
    return report


def _without(facts: RunFacts, parts: Sequence[Part]) -> RunFacts:
    if not parts:
        return facts
    told = f"written before these were measured, and lacks them: {', '.join(part.name for part in parts)}"
    return replace(facts, notes=(*facts.notes, told))
