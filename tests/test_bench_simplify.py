"""What `scripts/bench_simplify` says of controls: an interval over images, and a plain word for a tie."""

from types import ModuleType

import numpy as np
import pytest

from scripts import script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("bench_simplify")


def right(total: int, count: int) -> np.ndarray:
    return np.arange(total) < count


def test_the_interval_is_that_of_a_mean_over_images(bench: ModuleType) -> None:
    mean, low, high = bench.pooled([(right(400, 300), right(400, 260))])
    share = 0.1  # forty images are won and none is lost
    half = 1.96 * np.sqrt(share * (1 - share) / 399)
    assert mean == pytest.approx(10.0)
    assert (low, high) == pytest.approx((100 * (share - half), 100 * (share + half)))


def test_the_same_draw_taken_twice_tells_no_more_than_once(bench: ModuleType) -> None:
    pair = (right(400, 300), right(400, 290))
    assert bench.pooled([pair, pair]) == pytest.approx(bench.pooled([pair]))


def test_an_image_won_in_one_draw_and_lost_in_the_other_counts_nothing(bench: ModuleType) -> None:
    one, two = right(50, 30), right(50, 31)
    assert bench.pooled([(one, two), (two, one)]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("ours", "other", "word"),
    [(340, 300, "better than masks"), (300, 340, "worse than masks"), (301, 300, "tied with masks")],
)
def test_a_verdict_is_better_worse_or_tied(
    bench: ModuleType, capsys: pytest.CaptureFixture[str], ours: int, other: int, word: str
) -> None:
    bench.verdicts({"masks": [(right(400, ours), right(400, other))]}, 0.24)
    said = capsys.readouterr().out
    assert said.startswith(f"  24%: {word}: {(ours - other) / 4:+.2f} pp")
    assert f"ahead in {int(ours > other)} of 1 draws" in said
