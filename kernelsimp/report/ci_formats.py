"""The renderings of a verdict: a table, JUnit, annotations and a step summary for GitHub, and GitLab's JSON.

Each escapes what its reader would otherwise act on: XML and control characters, `%` and line ends in
annotations, pipes and tags in Markdown.
"""

import hashlib
import json
from collections.abc import Mapping
from xml.etree import ElementTree

from kernelsimp.error_text import printable
from kernelsimp.records.verdict import Finding, RuleMeasure, Verdict
from kernelsimp.report import fmt
from kernelsimp.report.markdown import escape_markdown, table_markdown
from kernelsimp.report.tables.table import Table

MOST_ANNOTATIONS = 10
"""GitHub shows no more of one kind a step."""

Results = Mapping[str, Verdict | str]
"""By checkpoint, in order: the verdict on it, or the line that says why there is none."""

MARKS = {"pass": "pass", "warn": "warning", "error": "FAIL", "skip": "skipped"}


def verdict_table(verdict: Verdict) -> Table:
    """Return one row a rule: what it measured, what it was, the limit and the outcome."""
    rows = tuple(_row(measure) for measure in verdict.measures)
    return Table(
        "Check", ("rule", "now", "baseline", "limit", "outcome"), rows, frozenset({0, 3, 4}), least=(2, 3, 1)
    )


def finding_table(verdict: Verdict) -> Table:
    """Return one row a finding, errors first."""
    rows = tuple((item.level, item.rule, printable(item.message)) for item in verdict.findings)
    return Table("Findings", ("level", "rule", "what"), rows, frozenset({0, 1, 2}), whole=True)


def results_words(results: Results) -> str:
    """Say in one line what a check came to: how many checkpoints passed, and which rules were crossed."""
    verdicts = [result for result in results.values() if isinstance(result, Verdict)]
    failed = [verdict for verdict in verdicts if verdict.exit_code]
    unread = len(results) - len(verdicts)
    rules = dict.fromkeys(finding.rule for verdict in failed for finding in verdict.errors)
    of_each = [sum(item.outcome != "skip" for item in verdict.measures) for verdict in verdicts]
    examined = max(of_each, default=0)
    many = fmt.counted(len(results), "checkpoint")
    parts = [f"{len(verdicts) - len(failed)} of {many} passed, {examined} rules examined"]
    parts += [f"{len(failed)} FAILED ({', '.join(rules)})"] if failed else []
    parts += [f"{unread} could not be checked"] if unread else []
    return "; ".join(parts)


def not_passed(results: Results) -> bool:
    """Say whether any checkpoint failed or could not be checked."""
    return any(not isinstance(result, Verdict) or result.exit_code for result in results.values())


def _row(measure: RuleMeasure) -> tuple[str, ...]:
    outcome = MARKS[measure.outcome] + (f" ({measure.note})" if measure.note else "")
    figures = (fmt.number(measure.measured, 6), fmt.number(measure.baseline, 6))
    return (measure.rule, *figures, measure.limit, outcome)


def junit(results: Results) -> str:
    """Return JUnit XML: a suite a checkpoint, a case a rule, the findings of a crossed one as its failure.

    A warning is no failure: it goes to the case's output. A checkpoint that could not be checked is an error.
    """
    root = ElementTree.Element("testsuites")
    for subject, result in results.items():
        suite = ElementTree.SubElement(root, "testsuite", {"name": f"kernelsimp check {printable(subject)}"})
        if isinstance(result, Verdict):
            for measure in result.measures:
                _case(suite, measure, [item for item in result.findings if item.rule == measure.rule])
        else:
            case = ElementTree.SubElement(suite, "testcase", {"classname": "kernelsimp", "name": "check"})
            ElementTree.SubElement(case, "error", {"message": printable(result)})
        suite.attrib.update(_count_cases(suite))
    root.attrib.update(_count_cases(root))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _count_cases(element: ElementTree.Element) -> dict[str, str]:
    tags = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
    return {name: str(len(element.findall(f".//{tag}"))) for name, tag in tags.items()}


def _case(suite: ElementTree.Element, measure: RuleMeasure, findings: list[Finding]) -> None:
    case = ElementTree.SubElement(suite, "testcase", {"classname": "kernelsimp", "name": measure.rule})
    text = "\n".join(printable(item.message) for item in findings)
    if measure.outcome == "skip":
        ElementTree.SubElement(case, "skipped", {"message": measure.note})
    elif measure.outcome == "error":
        message = f"{fmt.number(measure.measured, 6)}; allowed: {measure.limit}"
        ElementTree.SubElement(case, "failure", {"message": message}).text = text
    elif text:
        ElementTree.SubElement(case, "system-out").text = text


def annotations(results: Results) -> tuple[str, ...]:
    """Return GitHub workflow commands, at most ten for all; the last says how many more there are.

    With several checkpoints each names its own.
    """
    found = [(item, subject) for subject, result in results.items() for item in _findings(result)]
    found.sort(key=lambda pair: pair[0].level != "error")
    kept = found if len(found) <= MOST_ANNOTATIONS else found[: MOST_ANNOTATIONS - 1]
    several = len(results) > 1
    lines = [
        _command(
            item.level, f"kernelsimp {item.rule}", f"{subject}: {item.message}" if several else item.message
        )
        for item, subject in kept
    ]
    rest = len(found) - len(kept)
    if rest:
        level = "error" if any(item.level == "error" for item, _ in found[len(kept) :]) else "warn"
        lines.append(_command(level, "kernelsimp", f"{rest} more findings; see the step summary"))
    return tuple(lines)


def _findings(result: Verdict | str) -> tuple[Finding, ...]:
    """Return the findings of a verdict; a checkpoint that could not be checked is one itself."""
    if isinstance(result, Verdict):
        return result.findings
    return (Finding("check", "error", "", None, None, result),)


def _command(level: str, title: str, message: str) -> str:
    """Return one command; properties escape `:` and `,` besides what data escapes."""
    name = "error" if level == "error" else "warning"
    safe = _data(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{name} title={safe}::{_data(printable(message))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def step_summary(results: Results) -> str:
    """Return the Markdown that a GitHub step appends to its summary."""
    return "".join(_summary(result, subject) for subject, result in results.items())


def _summary(result: Verdict | str, subject: str) -> str:
    if not isinstance(result, Verdict):
        name, why = escape_markdown(subject), escape_markdown(result)
        return f"### kernelsimp check could not be done: {name}\n\n{why}\n\n"
    word = "failed" if result.exit_code else "passed"
    parts = [
        f"### kernelsimp check {word}: {escape_markdown(subject)}",
        table_markdown(verdict_table(result)),
    ]
    if result.findings:
        parts.append(table_markdown(finding_table(result)))
    return "\n\n".join(parts) + "\n\n"


def gitlab(results: Results) -> str:
    """Return GitLab's code-quality JSON; a fingerprint is the same for the same finding."""
    issues = [_issue(item, subject) for subject, result in results.items() for item in _findings(result)]
    return json.dumps(issues, indent=1) + "\n"


def _issue(finding: Finding, subject: str) -> dict[str, object]:
    named = f"{finding.rule}\0{finding.where}\0{subject}".encode("utf-8", "backslashreplace")
    return {
        "description": printable(finding.message),
        "check_name": f"kernelsimp {finding.rule}",
        "fingerprint": hashlib.sha256(named).hexdigest(),
        "severity": "major" if finding.level == "error" else "minor",
        "location": {"path": printable(subject), "lines": {"begin": 1}},
    }
