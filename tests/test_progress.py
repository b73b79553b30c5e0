"""What a terminal is told of where a long command stands."""

import pytest
from saying import Heard

from kernelsimp.cli import console
from kernelsimp.cli.console import Pace, TerminalWatcher
from kernelsimp.commands.simplify import phases_of
from kernelsimp.settings import FinetuneSettings, PlanSettings, Settings
from kernelsimp.watch import Within, duration


def test_stages_are_numbered_by_the_phases_that_were_announced(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = TerminalWatcher()
    watcher.expect(("measuring, original", "re-solving", "measuring"))
    for stage in ("measuring, original", "planning", "re-solving, cost 2 of 4", "measuring, simplified"):
        watcher.start(stage, 3)
    watcher.stop()
    assert capsys.readouterr().err.splitlines() == [
        "1 of 3: measuring, original ...",
        "planning ...",
        "2 of 3: re-solving, cost 2 of 4 ...",
        "3 of 3: measuring, simplified ...",
    ]


def test_a_log_gets_a_line_on_progress_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    pace = Pace("surveying", 1000)
    told = []
    for _ in range(10):
        now[0] += 20
        told.append(pace.step(100))
    assert [line is not None for line in told] == [
        False,
        True,
        False,
        True,
        False,
        True,
        False,
        True,
        False,
        False,
    ]
    assert told[1] == "surveying: 200 of 1,000, about 3 min left"
    assert Pace("unknown", None).step(5) is None


def test_words_go_behind_the_name_of_a_stage_and_everything_else_goes_through() -> None:
    heard = Heard()
    within = Within(heard, "cost 1 of 4")
    within.start("re-solving", 7)
    within.step(2)
    within.note("note")
    within.warn("warning")
    assert heard.stages == [("re-solving, cost 1 of 4", 7)]
    assert (heard.steps, heard.notes, heard.warnings) == (2, ["note"], ["warning"])


def test_phases_are_those_that_the_settings_bring() -> None:
    assert phases_of(Settings(plan=PlanSettings(tolerance=0.1)), None) == ("scanning",)
    tuned = Settings(finetune=FinetuneSettings(finetune=True))
    assert phases_of(tuned, None) == ("scanning", "fine-tuning")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (200, "3 min"), (5340, "89 min"), (5400, "1 h 30 min")]
)
def test_a_time_is_told_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
