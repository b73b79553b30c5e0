"""The faces of a verdict: a table, JUnit, annotations and a step summary for GitHub, and GitLab's JSON.

Each escapes what its reader would otherwise act on: XML and control characters, `%` and line ends in
annotations, pipes and tags in Markdown.
"""

import hashlib
import json
from xml.etree import ElementTree

from kernelsimp.records.verdict import Finding, Measure, Verdict, shown
from kernelsimp.report import words
from kernelsimp.report.markdown import escaped, table_markdown
from kernelsimp.report.tables import Table

MOST_ANNOTATIONS = 10
"""GitHub shows no more of one kind a step."""

MARKS = {"pass": "pass", "warn": "warning", "error": "FAIL", "skip": "skipped"}


def verdict_table(verdict: Verdict) -> Table:
    """Return one row a rule: what it measured, what it was, the limit and the outcome."""
    rows = tuple(_row(measure) for measure in verdict.measures)
    return Table("Check", ("rule", "now", "baseline", "limit", "outcome"), rows, frozenset({0, 3, 4}))


def finding_table(verdict: Verdict) -> Table:
    """Return one row a finding, errors first."""
    rows = tuple((item.level, item.rule, shown(item.message)) for item in verdict.findings)
    return Table("Findings", ("level", "rule", "what"), rows, frozenset({0, 1, 2}))


def _row(measure: Measure) -> tuple[str, ...]:
    outcome = MARKS[measure.outcome] + (f" ({measure.note})" if measure.note else "")
    figures = (words.number(measure.measured, 6), words.number(measure.baseline, 6))
    return (measure.rule, *figures, measure.limit, outcome)


def junit(verdict: Verdict, subject: str) -> str:
    """Return JUnit XML: one case a rule, the findings of a crossed one as its failure.

    A warning is no failure: it goes to the case's output.
    """
    outcomes = [measure.outcome for measure in verdict.measures]
    counts = {"tests": len(outcomes), "failures": outcomes.count("error"), "skipped": outcomes.count("skip")}
    numbers = {key: str(value) for key, value in counts.items()}
    suite = ElementTree.Element("testsuite", {"name": f"kernelsimp check {shown(subject)}", **numbers})
    for measure in verdict.measures:
        _case(suite, measure, [item for item in verdict.findings if item.rule == measure.rule])
    root = ElementTree.Element("testsuites", numbers)
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, measure: Measure, findings: list[Finding]) -> None:
    case = ElementTree.SubElement(suite, "testcase", {"classname": "kernelsimp", "name": measure.rule})
    text = "\n".join(shown(item.message) for item in findings)
    if measure.outcome == "skip":
        ElementTree.SubElement(case, "skipped", {"message": measure.note})
    elif measure.outcome == "error":
        message = f"{words.number(measure.measured, 6)}; allowed: {measure.limit}"
        ElementTree.SubElement(case, "failure", {"message": message}).text = text
    elif text:
        ElementTree.SubElement(case, "system-out").text = text


def annotations(verdict: Verdict) -> tuple[str, ...]:
    """Return GitHub workflow commands, at most ten; the last says how many more there are."""
    findings = verdict.findings
    kept = findings if len(findings) <= MOST_ANNOTATIONS else findings[: MOST_ANNOTATIONS - 1]
    lines = [_command(item.level, f"kernelsimp {item.rule}", item.message) for item in kept]
    rest = len(findings) - len(kept)
    if rest:
        level = "error" if any(item.level == "error" for item in findings[len(kept) :]) else "warn"
        lines.append(_command(level, "kernelsimp", f"{rest} more findings; see the step summary"))
    return tuple(lines)


def _command(level: str, title: str, message: str) -> str:
    """Return one command; properties escape `:` and `,` besides what data escapes."""
    name = "error" if level == "error" else "warning"
    safe = _data(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{name} title={safe}::{_data(shown(message))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def step_summary(verdict: Verdict, subject: str) -> str:
    """Return the Markdown that a GitHub step appends to its summary."""
    word = "failed" if verdict.exit_code else "passed"
    parts = [f"### kernelsimp check {word}: {escaped(subject)}", table_markdown(verdict_table(verdict))]
    if verdict.findings:
        parts.append(table_markdown(finding_table(verdict)))
    return "\n\n".join(parts) + "\n"


def gitlab(verdict: Verdict, subject: str) -> str:
    """Return GitLab's code-quality JSON; a fingerprint is the same for the same finding."""
    return json.dumps([_issue(item, subject) for item in verdict.findings], indent=1) + "\n"


def _issue(finding: Finding, subject: str) -> dict[str, object]:
    named = f"{finding.rule}\0{finding.where}\0{subject}".encode("utf-8", "backslashreplace")
    return {
        "description": shown(finding.message),
        "check_name": f"kernelsimp {finding.rule}",
        "fingerprint": hashlib.sha256(named).hexdigest(),
        "severity": "major" if finding.level == "error" else "minor",
        "location": {"path": shown(subject), "lines": {"begin": 1}},
    }
