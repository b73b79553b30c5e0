"""Ratios of times by turns, on a clock that the test holds; the table keeps what was measured."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from saying import Heard
from torch import nn

from kernelsimp.analysis.layer_times import LayerTimes, Place
from kernelsimp.analysis.timing import LEAST, Effort, interleaved
from kernelsimp.models.thin import Thin


class Bench:
    """A clock that only runs of known lengths move, with noise that meets both ways of a round."""

    def __init__(self, *lengths: float, noise: Callable[[int], float] = lambda _: 1.0) -> None:
        self.now, self.order, self.noise = 0.0, list[int](), noise
        self.runs = [self._run(way, length) for way, length in enumerate(lengths)]

    def _run(self, way: int, length: float) -> Callable[[], None]:
        def run() -> None:
            self.now += length * self.noise(len(self.order))
            self.order.append(way)

        return run

    def clock(self) -> float:
        return self.now


def test_ways_go_by_turns_and_back() -> None:
    bench = Bench(1.0, 0.5, 0.25)
    measured = interleaved(bench.runs, Effort(3), bench.clock)
    assert bench.order[6:] == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    assert [measured.timing(way).median for way in range(3)] == [1.0, 0.5, 0.25]
    ratio = measured.ratio(2)
    assert (ratio.low, ratio.value, ratio.high) == (4.0, 4.0, 4.0)
    assert ratio.faster
    assert not ratio.slower
    assert measured.ratio(0, base=2).slower


def test_short_runs_are_repeated_within_a_sample() -> None:
    bench = Bench(1e-4)
    measured = interleaved(bench.runs, Effort(2, sample=1e-3), bench.clock)
    assert len(bench.order) == 2 + 2 * 10
    assert measured.timing(0).median == pytest.approx(1e-4)


@pytest.mark.parametrize(("within", "rounds"), [(100.0, 41), (20.0, 10), (1.0, LEAST)])
def test_long_runs_take_fewer_rounds(within: float, rounds: int) -> None:
    bench = Bench(1.5, 0.5)
    assert len(interleaved(bench.runs, Effort(within=within), bench.clock).seconds) == rounds


def test_noise_that_meets_both_ways_cancels() -> None:
    drift = Bench(1.0, 0.8, noise=lambda place: 1.0 + (place // 2) % 7)
    assert interleaved(drift.runs, clock=drift.clock).ratio(1).value == pytest.approx(1.25)


def test_a_gain_within_the_noise_is_none() -> None:
    generator = torch.Generator().manual_seed(0)
    jitter = (1 + torch.rand(1000, generator=generator)).tolist()
    bench = Bench(1.0, 0.99, noise=lambda place: jitter[place])
    ratio = interleaved(bench.runs, clock=bench.clock).ratio(1)
    assert ratio.low < 1 < ratio.high
    assert not ratio.faster
    assert not ratio.slower


# ---------------------------------------------------------------- the table


@pytest.fixture
def layer() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 4, 5, padding=2, groups=4).eval()


def ticking() -> Callable[[], float]:
    """A clock on which every run takes a second, whatever it does."""
    ticks: Iterator[int] = iter(range(1 << 30))
    return lambda: float(next(ticks))


def forbidden() -> float:
    raise AssertionError("this was to be read, not measured")


PLACE = Place((1, 4, 8, 8), "contiguous")


def test_what_was_measured_is_kept(layer: nn.Conv2d, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    ways = (Thin(1), Thin(2), Thin(1, (0, 2)))
    first = LayerTimes(path, clock=ticking()).measure(layer, ways, PLACE)
    assert [first[way].ratio.value for way in ways] == [1.0, 1.0, 1.0]
    assert first[ways[0]].whole.median == 1.0
    again = LayerTimes(path, clock=forbidden).measure(layer, ways, PLACE)
    assert again == first


@pytest.mark.parametrize(
    "place",
    [
        Place((2, 4, 8, 8), "contiguous"),
        Place((1, 4, 8, 9), "contiguous"),
        Place((1, 4, 8, 8), "channels-last"),
    ],
)
def test_another_shape_batch_or_layout_is_measured_anew(
    layer: nn.Conv2d, tmp_path: Path, place: Place
) -> None:
    path = tmp_path / "times.json"
    LayerTimes(path, clock=ticking()).measure(layer, (Thin(1),), PLACE)
    with pytest.raises(AssertionError, match="to be read"):
        LayerTimes(path, clock=forbidden).measure(layer, (Thin(1),), place)


def test_another_machine_is_measured_anew(layer: nn.Conv2d, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    LayerTimes(path, clock=ticking()).measure(layer, (Thin(1),), PLACE)
    path.write_text(path.read_text().replace("torch", "torch 0"))
    with pytest.raises(AssertionError, match="to be read"):
        LayerTimes(path, clock=forbidden).measure(layer, (Thin(1),), PLACE)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema": "other"}', '{"schema": "kernelsimp.times/1", "times": 3}']
)
def test_a_damaged_table_is_told_and_made_again(layer: nn.Conv2d, tmp_path: Path, text: str) -> None:
    path, watcher = tmp_path / "times.json", Heard()
    path.write_text(text)
    LayerTimes(path, clock=ticking(), watcher=watcher).measure(layer, (Thin(1),), PLACE)
    assert any(f"{path}: no table of times" in word for word in watcher.warnings)
    assert json.loads(path.read_text())["schema"] == "kernelsimp.times/1"


def test_real_runs_are_timed(layer: nn.Conv2d) -> None:
    found = LayerTimes(None, effort=Effort(3)).measure(
        layer, (Thin(1),), Place((1, 4, 8, 8), "channels-last")
    )
    assert 0 < found[Thin(1)].thin.low <= found[Thin(1)].thin.high
    assert found[Thin(1)].ratio.low <= found[Thin(1)].ratio.value <= found[Thin(1)].ratio.high
