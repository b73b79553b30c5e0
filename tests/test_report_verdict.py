"""The faces of a verdict say the same, and hostile names do nothing in them."""

import json
from xml.etree import ElementTree

from kernelsimp.records.verdict import Finding, RuleMeasure, Verdict
from kernelsimp.report.ci_formats import (
    annotations,
    finding_table,
    gitlab,
    junit,
    results_words,
    step_summary,
    verdict_table,
)
from kernelsimp.report.store import verdict_json

NASTY = "a<b>&\"'%,:|`\x1b[31m\n\x00\u202e"


def nasty(count: int = 1, level: str = "error") -> Verdict:
    finding = Finding("kernels.nan", level, NASTY, 1, 0, f"{NASTY}: 1 kernel")  # type: ignore[arg-type]
    measures = (
        RuleMeasure("kernels.nan", 1, 0, "max 0", level),  # type: ignore[arg-type]
        RuleMeasure("accuracy.drop_pp", None, None, "max 0.5", "skip", "needs --data"),
        RuleMeasure("dof.fraction", 0.5, 0.5, "max 1", "pass"),
    )
    return Verdict((finding,) * count, measures)


def test_junit_is_xml_and_counts_its_cases() -> None:
    suite = ElementTree.fromstring(junit({NASTY: nasty(2)})).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "1; allowed: max 0"
    assert failure.text is not None
    assert failure.text.splitlines() == [r"""a<b>&"'%,:|`\x1b[31m\n\x00\u202e: 1 kernel"""] * 2
    assert [case.get("name") for case in suite] == ["kernels.nan", "accuracy.drop_pp", "dof.fraction"]


def test_a_rule_that_was_skipped_was_not_examined() -> None:
    assert results_words({"m": nasty()}).startswith("0 of 1 checkpoint passed, 2 rules examined; 1 FAILED")


def test_a_warning_is_no_junit_failure() -> None:
    root = ElementTree.fromstring(junit({"m": nasty(level="warn")}))
    assert root.get("failures") == "0"
    assert root.find(".//failure") is None
    assert root.find(".//system-out") is not None


def test_annotations_are_escaped_and_one_line() -> None:
    (line,) = annotations({"m": nasty()})
    assert line == (r"""::error title=kernelsimp kernels.nan::a<b>&"'%25,:|`\x1b[31m\n\x00\u202e: 1 kernel""")
    (line,) = annotations({"m": nasty(level="warn")})
    assert line.startswith("::warning title=")


def test_at_most_ten_annotations_the_last_counts_the_rest() -> None:
    assert len(annotations({"m": nasty(10)})) == 10
    lines = annotations({"m": nasty(25)})
    assert len(lines) == 10
    assert lines[-1] == "::error title=kernelsimp::16 more findings; see the step summary"


def test_a_title_cannot_open_another_property() -> None:
    finding = Finding("a,file=x::b", "error", "", None, None, "m")
    (line,) = annotations({"m": Verdict((finding,))})
    assert line == "::error title=kernelsimp a%2Cfile=x%3A%3Ab::m"


def test_the_step_summary_shows_names_as_text() -> None:
    text = step_summary({NASTY: nasty()})
    assert text.startswith("### kernelsimp check failed: a&lt;b&gt;&amp;")
    assert "\x1b" not in text
    assert "| kernels.nan | 1 | 0 | max 0 | FAIL |" in text
    assert step_summary({"m": Verdict(())}).startswith("### kernelsimp check passed: m")


def test_gitlab_issues_have_stable_fingerprints() -> None:
    issues = json.loads(gitlab({"model.pt": nasty()}))
    assert set(issues[0]) == {"description", "check_name", "fingerprint", "severity", "location"}
    assert issues[0]["severity"] == "major"
    assert issues[0]["location"] == {"path": "model.pt", "lines": {"begin": 1}}
    assert json.loads(gitlab({"model.pt": nasty()})) == issues
    other = json.loads(gitlab({"other.pt": nasty()}))
    assert other[0]["fingerprint"] != issues[0]["fingerprint"]
    assert json.loads(gitlab({"m": Verdict(())})) == []


def test_tables_and_json_of_a_verdict() -> None:
    verdict = nasty()
    assert verdict_table(verdict).rows[1] == (
        "accuracy.drop_pp",
        "–",
        "–",
        "max 0.5",
        "skipped (needs --data)",
    )
    assert "\x1b" not in "".join(finding_table(verdict).rows[0])
    data = verdict_json(verdict)
    assert (data["schema"], data["exit_code"]) == ("kernelsimp.verdict/1", 1)
    assert data["findings"][0]["where"] == NASTY
