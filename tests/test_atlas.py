"""The atlas of a data set: figures over networks, one page that needs nothing else."""

import re
from pathlib import Path

import numpy as np
import pytest
from saying import command_refusal
from test_cluster import networks

from kernelsimp.cli.main import run
from kernelsimp.report import atlas
from kernelsimp.report.atlas_html import network_table
from kernelsimp.report.dataset import Dataset

pytest.importorskip("pyarrow")


def layer(network: str, near: int, chance: float, **other: object) -> dict[str, object]:
    usual = {"place": 0, "depth": 0.0, "kind": "dense", "shape": [4, 4, 3, 3], "kernels": 100}
    counts = {"near": near, "near_by_chance": chance, "near_of": 100, "layer_beyond": 0}
    return {"sha256": network, **usual, **counts, **other}


def test_a_group_counts_networks_and_not_kernels() -> None:
    small, large = layer("a", 10, 2.0), layer("b", 3000, 1000.0, near_of=10_000, kernels=10_000)
    (group,) = atlas.grouped([small, large], atlas.by_kind)
    assert (group.near.mean, group.chance.mean, group.excess.mean) == pytest.approx((20.0, 6.0, 14.0))
    assert (group.near.count, group.kernels) == (2, 10_100)
    # Student's t for one degree of freedom is 12.706; s = 6 sqrt(2), so half the interval is 6 t
    assert group.excess.low == pytest.approx(14 - 6 * 12.7062, abs=1e-3)
    assert group.excess.high == pytest.approx(14 + 6 * 12.7062, abs=1e-3)


def test_groups_have_the_names_of_their_layers() -> None:
    layers = [
        layer("a", 1, 1.0),
        layer("a", 1, 1.0, place=1, depth=1.0, kind="depthwise", shape=[4, 1, 5, 5]),
    ]
    assert {group.name for group in atlas.grouped(layers, atlas.by_kind)} == {"dense", "depthwise"}
    assert {group.name for group in atlas.grouped(layers, atlas.by_size)} == {"3x3", "5x5"}
    assert {group.name for group in atlas.grouped(layers, atlas.by_depth)} == {"first third", "last third"}
    assert atlas.grouped(layers, lambda _: None) == ()
    assert len(atlas.layers_of([*layers, *layers])) == 2


def test_the_typical_kernel_is_the_one_most_like_the_others() -> None:
    near = [np.array([1.0, 1, 1, 1]), np.array([1.1, 1, 1, 1]), np.array([1.0, -1, 1, -1])]
    rows = [{"family": "x", "nearest": k.tolist(), "nearest_shape": [2, 2]} for k in near]
    ((kernel,),) = atlas.typical_kernels(rows).values()
    assert kernel.ravel()[0] in (1.0, np.float32(1.1))
    assert kernel.ravel()[1] == 1.0


def test_the_page_holds_every_network_and_loads_nothing(tmp_path: Path) -> None:
    nets = networks(tmp_path / "nets", 3)
    assert run(["scan", str(nets), "--dataset", str(tmp_path / "set"), "-q", "--depth", "shallow"]) == 0
    assert run(["atlas", str(tmp_path / "set"), "--out", str(tmp_path / "a.html"), "-q"]) == 0
    page = (tmp_path / "a.html").read_text()
    assert all(f">{name}.pt<" in page for name in (0, 1, 2))
    assert "cut.pt" in page
    assert "default-src &#39;none&#39;" in page
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    rows = network_table([row for row in Dataset(tmp_path / "set").networks if row["error"] is None]).rows
    excess = [float(row[-1].split()[0]) for row in rows]
    assert excess == sorted(excess, reverse=True)


def test_a_folder_without_networks_is_one_line(tmp_path: Path, capsys) -> None:
    assert command_refusal(["atlas", str(tmp_path)], capsys).startswith(
        f"{tmp_path}: no data set with a network in it; "
    )


def test_an_interval_ends_where_no_share_can_be() -> None:
    cut, whole = atlas.spread([99.0, 60.0]), atlas.spread([50.0, 52.0])
    assert (cut.low, cut.high) == (-100.0, 100.0)
    assert whole.low == pytest.approx(51 - 12.7062, abs=1e-3)
