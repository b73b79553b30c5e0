"""`scripts/bench_factorised`: networks of the share that is asked for, and a study that keeps its text."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from networks import network

from kernelsimp.models.factorised import factorise
from kernelsimp.models.footprint import footprints
from kernelsimp.report.tables.table import Table
from scripts import script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("bench_factorised")


def test_a_network_has_the_share_of_multiplications(bench: ModuleType) -> None:
    model = network()
    plan = bench.at_share(model, torch.zeros(1, 3, 12, 12), 0.6)
    before, after = (
        footprints(lambda item=item: item, (3, 12, 12)).macs for item in (network(), factorise(model, plan))
    )
    assert 0.4 * before < after <= 0.6 * before


def test_a_share_out_of_reach_ends_it(bench: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no ranks leave 1%"):
        bench.at_share(network(), torch.zeros(1, 3, 12, 12), 0.01)


def test_a_table_takes_the_place_of_its_last_version(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "study.md"
    monkeypatch.setattr(bench, "STUDY", place)
    one, other = (Table(name, ("figure",), ((name.lower(),),)) for name in ("One", "Other"))
    bench.write_study((one, other), "bench")
    place.write_text(place.read_text().replace("# Thinner layers at run time\n", "# Thinner\n\nKept.\n"))
    bench.write_study((Table("One", ("figure",), (("new",),)),), "bench")
    text = place.read_text()
    assert "Kept." in text
    assert "| new |" in text
    assert "| one |" not in text
    assert "| other |" in text
    assert text.count("## One") == text.count("## Other") == 1
