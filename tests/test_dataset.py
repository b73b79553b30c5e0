"""A data set of scans: what its rows say, that it only grows, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from saying import command_refusal
from test_cluster import networks

from kernelsimp.cli.main import run
from kernelsimp.commands import scan_many
from kernelsimp.report.dataset import Dataset

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks(tmp_path_factory.mktemp("zoo") / "nets", 2)


def add(source: Path, to: Path, *options: str) -> None:
    assert run(["scan", str(source), "--dataset", str(to), "-q", "--depth", "shallow", *options]) == 0


def test_rows_say_what_the_scan_says(nets: Path, tmp_path: Path) -> None:
    add(nets, tmp_path / "set", "--kernels", "--json", str(tmp_path / "json"))
    told = json.loads((tmp_path / "json" / "0.pt.json").read_text())
    tables = Dataset(tmp_path / "set")
    network = next(row for row in tables.networks if row["source"] == "0.pt")
    assert network["sha256"] == told["source"]["sha256"]
    assert (network["kernels"], network["layers"]) == (told["totals"]["kernels"], 2)
    families = [row for row in tables.read("families") if row["sha256"] == network["sha256"]]
    said = {(layer["name"], name) for layer in told["layers"] for name in layer["families"]}
    assert {(row["layer"], row["family"]) for row in families} == said
    for layer in told["layers"]:
        mine = {row["family"]: row for row in families if row["layer"] == layer["name"]}
        for name, family in layer["families"].items():
            assert mine[name]["observed"] == family["observed"]
            for null, count in family["null"].items():
                assert mine[name][f"expected_{null}"] == pytest.approx(count["expected"])
    kernels = [row for row in tables.read("kernels") if row["sha256"] == network["sha256"]]
    assert len(kernels) == network["kernels"]
    assert sum(row["found"] for row in kernels) == network["found"]
    failed = [row for row in tables.networks if row["error"]]
    assert [row["source"] for row in failed] == ["cut.pt"]


def test_a_network_that_is_there_is_not_scanned_again_whatever_its_name(
    nets: Path, tmp_path: Path, monkeypatch
) -> None:
    add(nets, tmp_path / "set")
    before = sorted(path.name for path in (tmp_path / "set").rglob("*.parquet"))
    other = tmp_path / "other"
    shutil.copytree(nets, other)
    opened = []

    def open_and_tell(path: Path, *rest: object) -> object:
        opened.append(path.name)
        return real(path, *rest)

    real = scan_many.open_within
    monkeypatch.setattr(scan_many, "open_within", open_and_tell)
    add(nets, tmp_path / "set")
    add(other, tmp_path / "set")
    assert opened == ["cut.pt", "cut.pt"]
    assert sorted(path.name for path in (tmp_path / "set").rglob("*.parquet")) == before


def test_two_runs_that_append_at_once_keep_each_network_once(nets: Path, tmp_path: Path) -> None:
    add(nets, tmp_path / "one")
    add(nets, tmp_path / "two")
    shutil.copytree(tmp_path / "two", tmp_path / "one", dirs_exist_ok=True)
    rows = Dataset(tmp_path / "one").networks
    assert sorted(row["source"] for row in rows) == ["0.pt", "1.pt", "cut.pt"]
    assert len(list((tmp_path / "one" / "networks").iterdir())) == 2


def test_a_newer_schema_other_settings_and_foreign_files_are_one_line(
    nets: Path, tmp_path: Path, capsys
) -> None:
    to = tmp_path / "set"
    add(nets, to)
    command = ["scan", str(nets), "--dataset", str(to), "-q", "--depth", "shallow"]
    words = command_refusal([*command, "--tolerance", "0.2"], capsys)
    assert words.startswith(f"{to}: its networks were scanned with ")
    part = next((to / "networks").iterdir())
    table = pq.read_table(part)
    metadata = {**table.schema.metadata, b"kernelsimp.zoo": b"2"}
    pq.write_table(table.replace_schema_metadata(metadata), part)
    assert command_refusal(command, capsys) == (
        f"{part}: schema kernelsimp.zoo/2 is newer than kernelsimp.zoo/1, which this version reads; "
        "install a newer kernelsimp"
    )
    pq.write_table(table.replace_schema_metadata({}), part)
    assert "not a part of a data set of ours" in command_refusal(command, capsys)
    part.write_bytes(b"PAR1")
    assert command_refusal(command, capsys).startswith(f"{part}: cannot read this part of a data set: ")


def test_kernels_need_a_data_set(nets: Path, capsys) -> None:
    words = command_refusal(["scan", str(nets), "--kernels", "-q"], capsys)
    assert words == "--kernels adds rows to a data set; pass --dataset DIR"
