"""What `scripts/bench_finetune` makes of runs: means by arm, controls beside them, missed targets."""

from types import ModuleType

import pytest

from scripts import script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("bench_finetune")


def row(bench: ModuleType, network: str, change: float, **changes: object) -> object:
    words = {"network": network, "hold": "tie", "dof": 0.18, "seed": 0, "equivalent": 0.29, "original": 92.0}
    words |= {"start": 90.0, "top1": 92 + change, "change": change, "correct": 900, "cpu_seconds": 1.0}
    return bench.Row(**{**words, "controls": {}, **changes})


def test_a_mean_under_its_target_is_named_for_its_own_network(bench: ModuleType) -> None:
    rows = [row(bench, "resnet20", -0.4), row(bench, "resnet20", -0.8), row(bench, "resnet56", -0.45)]
    assert bench.missed(rows) == ["resnet20 tie 18%: -0.60 pp, target -0.5"]
    assert bench.missed([row(bench, "resnet20", -3.0, dof=0.15)]) == []


def test_the_table_has_a_line_an_arm_and_one_a_control(bench: ModuleType, capsys) -> None:
    beside = {"cell masks": (0.18, -5.7, (-7.8, -3.7))}
    bench.summary([row(bench, "resnet20", -0.4), row(bench, "resnet20", -0.8, controls=beside)])
    lines = capsys.readouterr().out.splitlines()
    assert "| resnet20 | tie 18% (2 runs) | 29.0% | 90.00 | 91.40 | -0.60 | -0.80 to -0.40 |" in lines
    assert "| cell masks, against the run | -5.70 (-7.80 to -3.70; 18.0% DOF) |" in lines
