"""What `scripts/bench_coding` sets beside ours: rivals are what their names say, and means are means."""

from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from test_bench_simplify import script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("bench_coding")


def weight() -> torch.Tensor:
    return torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def test_more_bits_are_nearer_and_cost_more(bench: ModuleType) -> None:
    found = [bench.uniform(bits)(weight()) for bits in (8, 6, 4)]
    errors = [float((value - weight()).norm()) for value, _ in found]
    assert errors == sorted(errors)
    assert [size for _, size in found] == sorted((size for _, size in found), reverse=True)
    assert errors[0] < 0.02 * float(weight().norm())


def test_a_codebook_has_so_many_values(bench: ModuleType) -> None:
    value, size = bench.codebook(16)(weight())
    assert len(value.unique()) <= 16
    assert size < weight().numel()


def test_a_row_of_several_draws_is_their_mean(bench: ModuleType) -> None:
    rows = [bench.Row("ours", draw, 100 + draw, 10 + draw, 0.1 * draw) for draw in range(3)]
    (mean,) = bench.means(rows)
    assert (mean.size, mean.right, mean.draw) == (101, 11, 3)
    assert mean.kl == pytest.approx(0.1)


def test_a_section_is_written_in_its_place(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "study.md"
    page.write_text("# Head\n\n## a\n\nold\n\n## b\n\nkept\n", encoding="utf-8")
    monkeypatch.setattr(bench, "STUDY", page)
    bench.write_section("## a\n\nnew\n\n")
    bench.write_section("## c\n\nlast\n\n")
    wanted = "# Head\n\n## a\n\nnew\n\n## b\n\nkept\n\n## c\n\nlast\n"
    assert page.read_text(encoding="utf-8") == wanted


def test_a_section_has_a_row_a_way(bench: ModuleType) -> None:
    judge = SimpleNamespace(before=SimpleNamespace(total=100))
    rows = [bench.Row("ours", draw, 1000, 89 + draw, 0.1, 2.0, 90 + draw) for draw in range(2)]
    text = bench.section("net", [*rows, bench.Row("int8", 0, 2000, 90, 0.0, 0.0, 90)], judge, "command")
    assert text.startswith("## net\n\nThe original has 90 / 91 of 100 test images right. By `command`.\n")
    assert "| int8 | 2,000 |  | 90.0 | +0.00 | 0.0000 |  | 1 |\n" in text
    assert "| ours | 1,000 |  | 89.5 | -1.00 | 0.1000 | 2 | 2 |\n" in text


def test_bytes_are_compared_at_equal_kl(bench: ModuleType) -> None:
    sizes = ((100, 0.4), (150, 0.5), (200, 0.1))  # the second is bettered by the first
    others = [bench.Row("NNCodec", 0, size, 0, kl) for size, kl in sizes]
    assert bench.bytes_at(0.2, others) == pytest.approx(150)
    assert bench.bytes_at(0.05, others) is None
    assert bench.beside(bench.Row("ours", 0, 75, 0, 0.2), others) == "0.50"
    assert bench.beside(bench.Row("int8", 0, 75, 0, 0.2), others) == ""
