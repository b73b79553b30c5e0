"""Limits are read from TOML, or refused in one line that says what to write."""

from pathlib import Path

import pytest

from kernelsimp.errors import KernelsimpError
from kernelsimp.gate import USUAL, limits_beside, read_limits, with_max
from kernelsimp.gate.rules import NAMES, RULES, limits_from
from kernelsimp.records.limits import Limit


def test_the_table_of_rules_is_what_the_docs_promise() -> None:
    assert NAMES == (
        "accuracy.drop_pp",
        "accuracy.top1",
        "kernels.frozen_changed",
        "kernels.structure_broken",
        "kernels.nan",
        "weights.nan",
        "weights.unreal",
        "kernels.simplified_share",
        "kernels.dead_share",
        "dof.fraction",
        "bits.per_kernel",
        "size.coded_bytes",
        "bits.per_weight",
        "layers.changed",
        "tensors.extra",
        "layers.zeroed",
        "layers.unseen",
    )
    assert all(rule.meaning for rule in RULES)


def test_limits_replace_the_usual_ones_and_keep_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(
        '[kernels.nan]\nmax = 3\nlevel = "warn"\n[dof]\nfraction = { max_delta = 0.01, min = 0.2 }\n'
        '["accuracy.drop_pp"]\nmax = 1\n'
    )
    limits = read_limits(path)
    assert limits.of("kernels.nan") == Limit("kernels.nan", max=3.0, level="warn")
    assert limits.of("dof.fraction") == Limit("dof.fraction", min=0.2, max_delta=0.01)
    assert limits.of("accuracy.drop_pp") == Limit("accuracy.drop_pp", max=1.0)
    assert limits.of("layers.changed") == USUAL.of("layers.changed")
    assert [limit.rule for limit in limits.rules] == [name for name in NAMES if limits.of(name)]


def test_limits_stand_in_pyproject_too(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\nname = "x"\n[tool.kernelsimp.check.kernels.dead_share]\nmax = 0.1\n')
    assert read_limits(path).of("kernels.dead_share") == Limit("kernels.dead_share", max=0.1)
    assert limits_beside(tmp_path).of("kernels.dead_share") == Limit("kernels.dead_share", max=0.1)
    path.write_text('[project]\nname = "x"\n')
    assert read_limits(path) == limits_beside(tmp_path) == limits_beside(tmp_path / "none") == USUAL


REFUSED = [
    ("[kernels.nam]\nmax = 1", "unknown rule 'kernels.nam'; did you mean 'kernels.nan'?"),
    ("[frozen]\nmax = 1", "unknown rule 'frozen'; known: " + ", ".join(sorted(NAMES))),
    (
        "[kernels.nan]\nmaximum = 1",
        "rule 'kernels.nan' has unknown key 'maximum'; did you mean 'max'?",
    ),
    ("[kernels.nan]\nmax = nan", "rule 'kernels.nan' has max nan; expected a finite number"),
    ("[kernels.nan]\nmax = inf", "rule 'kernels.nan' has max inf; expected a finite number"),
    ("[kernels.nan]\nmax = true", "rule 'kernels.nan' has max True; expected a finite number"),
    ('[kernels.nan]\nmax = "1"', "rule 'kernels.nan' has max '1'; expected a finite number"),
    ("[kernels]\nnan = 0", "rule 'kernels.nan' is 0; expected a table such as { max = 0.1 }"),
    ("kernels = 0", "unknown rule 'kernels'; did you mean 'kernels.nan'?"),
    (
        '[kernels.nan]\nmax = 1\nlevel = "fatal"',
        "rule 'kernels.nan' has level 'fatal'; expected 'error' or 'warn'",
    ),
    (
        '[kernels.nan]\nlevel = "warn"',
        "rule 'kernels.nan' bounds nothing; give it max, min, max_delta, min_delta",
    ),
    (
        "[dof.fraction]\nmin = 0.5\nmax = 0.4",
        "rule 'dof.fraction' has min 0.5 above max 0.4; nothing can pass",
    ),
]


@pytest.mark.parametrize(("text", "expected"), REFUSED)
def test_bad_limits_are_refused_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text)
    with pytest.raises(KernelsimpError) as caught:
        read_limits(path)
    assert str(caught.value) == f"{path}: {expected}"


@pytest.mark.parametrize("data", [b"[[", b"\xff", None])
def test_unreadable_limits_are_refused_in_one_line(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "limits.toml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(KernelsimpError, match=r"(not a TOML file|cannot read limits): ") as caught:
        read_limits(path)
    assert "\n" not in str(caught.value)


def test_an_option_replaces_the_max_and_keeps_the_level() -> None:
    warned = limits_from({"accuracy.drop_pp": {"max": 1, "level": "warn"}})
    assert with_max(warned, "accuracy.drop_pp", 2.0).of("accuracy.drop_pp") == Limit(
        "accuracy.drop_pp", max=2.0, level="warn"
    )
    assert with_max(USUAL, "kernels.dead_share", 0.5).of("kernels.dead_share") == Limit(
        "kernels.dead_share", max=0.5
    )
    with pytest.raises(
        KernelsimpError, match=r"rule 'accuracy.drop_pp' has max nan; expected a finite number"
    ):
        with_max(USUAL, "accuracy.drop_pp", float("nan"))
