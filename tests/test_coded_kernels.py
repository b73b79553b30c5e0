"""Kernels by the free numbers of their structures: bases of integers, their code, and rounding to them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from coded_kernels import NAMES, drawn, some

from kernelsimp.kernels.integer_bases import (
    FREE,
    ONE,
    Table,
    basis_of,
    side_numbers,
    table_of,
)
from kernelsimp.kernels.integer_coding import CHANCES, new_memory
from kernelsimp.kernels.kernel_coding import CodedKernels, KernelForm, decode_kernels, encode_kernels
from kernelsimp.kernels.kernel_rounding import Offers, RoundedKernels, round_kernels
from kernelsimp.kernels.rounding import Metric, Rate, round_matrix
from kernelsimp.kernels.structures import find


@pytest.mark.parametrize("side", [3, 5])
def test_whole_numbers_of_a_basis_are_members(side: int) -> None:
    item = some(NAMES, side)
    weights = torch.from_numpy(item.numbers()).reshape(6, 4, side, side)
    for index, name in enumerate(NAMES):
        if name != FREE:
            assert bool(find(name, (side, side)).holds(weights[item.choice == index]).all()), name


@pytest.mark.parametrize("side", [3, 5])
def test_columns_are_about_as_long_as_one(side: int) -> None:
    for name in NAMES:
        numbers = side_numbers(name, torch.randn(1, side, side))[0].tolist() if name != FREE else []
        basis = basis_of(name, (side, side), numbers).astype(float)
        assert np.allclose(np.linalg.norm(basis, axis=0), ONE, rtol=0.01), name


@pytest.mark.parametrize("seed", range(3))
def test_kernels_come_back(seed: int) -> None:
    item = some(NAMES, 3, seed)
    stream = encode_kernels(item, new_memory())
    back = decode_kernels(stream, (6, 4), KernelForm(item.grid, item.menu), new_memory())
    assert (back.choice == item.choice).all()
    assert (back.values == item.values).all()
    assert (back.side == item.side).all()


def test_drawings_stand_once_and_come_back() -> None:
    item, kernels, sides = drawn()
    drawings = item.drawings
    assert drawings is not None
    assert len(drawings.cells) == 3
    assert all(
        (drawings.cells_of(number) == side).all()
        for number, side, picked in zip(item.side.ravel().tolist(), sides, item.choice.ravel(), strict=True)
        if picked == 1
    )
    stream = encode_kernels(item, new_memory())
    form = KernelForm(item.grid, item.menu, None, 3)
    back = replace(decode_kernels(stream, (6, 4), form, new_memory()), step=item.step)
    assert (back.numbers() == item.numbers()).all()
    written = torch.from_numpy(item.numbers()).reshape(24, 3, 3)[1::2]
    cells = kernels.reshape(24, 9)[1::2].numpy()
    assert bool(find("prototypes-3", (3, 3), cells).holds(written).all())
    whole = replace(
        item, drawings=None, side=np.where(item.choice[:, :, None] == 1, sides.reshape(6, 4, 9), 0)
    )
    assert (whole.numbers() == item.numbers()).all()
    each = 9 * 26 / 8  # bytes of a drawing
    saved = len(encode_kernels(whole, new_memory())) - len(stream)
    assert saved > (12 - 3) * each - 12 * 5 / 8 - 2
    for damaged in (stream[:40], stream[: len(stream) - 20]):
        with pytest.raises(ValueError, match=r"ends in its drawings|does not end"):
            decode_kernels(damaged, (6, 4), form, new_memory())
    with pytest.raises(ValueError, match="not there"):
        drawings.cells_of(24)


def test_streams_that_are_altered_are_refused_or_read() -> None:
    item = some(NAMES, 3)
    stream = encode_kernels(item, new_memory())
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(stream)
        data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
        try:
            decode_kernels(bytes(data), (6, 4), KernelForm(item.grid, item.menu), new_memory()).numbers()
        except ValueError:
            refused += 1
    assert refused > 0
    with pytest.raises(ValueError, match="does not end"):
        decode_kernels(stream[: len(stream) // 2], (6, 4), KernelForm(item.grid, item.menu), new_memory())


def test_parts_of_the_square_are_apart_and_complete() -> None:
    table = table_of(torch.randn(60, 5, 5))
    columns = table.columns((5, 5)) / ONE
    assert np.abs(columns.T @ columns - np.eye(25)).max() < 0.02
    turned = columns.reshape(5, 5, 25).transpose(1, 0, 2).reshape(25, 25)
    assert (turned[:, table.kept("parts-000010")] == columns[:, table.kept("parts-000001")]).all()
    full = columns[:, table.kept("parts-100000")].reshape(5, 5, -1)
    assert (full == np.rot90(full)).all()


def test_kernels_in_parts_come_back() -> None:
    table = table_of(torch.randn(60, 3, 3))
    item = some(("parts-111111", "parts-100000", "parts-000000"), 3, 0, table)
    stream = encode_kernels(item, new_memory())
    back = decode_kernels(stream, (6, 4), KernelForm(item.grid, item.menu, table), new_memory())
    assert (back.values == item.values).all()
    assert len(new_memory()) == 2 * CHANCES


@pytest.mark.parametrize("table", [Table((1, 2, 3)), Table((600,) * 15), Table((1,) * 15, square=False)])
def test_a_table_that_is_none_is_refused(table: Table) -> None:
    with pytest.raises(ValueError, match=r"turns|parts"):
        basis_of("parts-111111", (3, 3), (), table)


def metric_of(groups: int, rows: int, width: int, seed: int = 0) -> Metric:
    generator = np.random.default_rng(seed)
    wide, tall = (generator.normal(size=(groups, n, 2 * n)) for n in (width, rows))
    return Metric(*(item @ item.transpose(0, 2, 1) / item.shape[2] for item in (wide, tall)))


def offers_of(names: tuple[str, ...], which: np.ndarray) -> Offers:
    bases = np.zeros((len(names), 9, 9))
    dims = np.zeros(len(names), np.int64)
    for place, name in enumerate(names):
        basis = basis_of(name, (3, 3)) / ONE
        dims[place] = basis.shape[1]
        bases[place, :, : dims[place]] = basis
    return Offers(bases, dims, np.arange(len(names)), np.zeros(len(names)), which, len(names))


def written(rounded: RoundedKernels, offers: Offers, step: float) -> np.ndarray:
    made = np.einsum("okcd,okd->okc", offers.bases[rounded.picked], rounded.values)
    return step * made.reshape(len(made), -1)


def test_free_kernels_cost_no_more_than_rounding_column_by_column_greedily() -> None:
    metric, target = metric_of(1, 6, 36), np.random.default_rng(1).normal(size=(6, 36))
    offers = offers_of((FREE,), np.zeros((6, 4, 1), np.int64))
    rate = Rate(0.0, 0.3)
    free = round_kernels(target, metric.factors(), offers, rate, new_memory())
    values, _ = round_matrix(target, metric.factors(), Rate(0.0, 0.3, 1), new_memory())
    loss = metric.loss(target - written(free, offers, 0.3))
    assert loss < 1.05 * metric.loss(target - 0.3 * values)
    assert loss < 0.8 * metric.loss(target - 0.3 * np.rint(target / 0.3))


def test_kernels_after_answer_for_a_structure() -> None:
    metric, target = metric_of(1, 6, 36), np.random.default_rng(1).normal(size=(6, 36))
    which = np.zeros((6, 4, 1), np.int64)
    which[:, 0] = 1  # the first input's kernels must be mirror images of themselves
    offers = offers_of((FREE, "mirror-v"), which)
    rounded = round_kernels(target, metric.factors(), offers, Rate(0.0, 0.01), new_memory())
    assert (rounded.picked == which[:, :, 0]).all()
    made = written(rounded, offers, 0.01)
    alone = np.where(np.arange(36) < 9, made, target)  # nothing answers
    assert metric.loss(target - made) < 0.7 * metric.loss(target - alone)


def test_a_structure_is_taken_where_it_pays() -> None:
    generator = np.random.default_rng(2)
    target = generator.normal(size=(64, 9))
    target[::2] = ((target + target.reshape(-1, 3, 3)[:, :, ::-1].reshape(-1, 9)) / 2)[::2]
    offers = offers_of((FREE, "mirror-h"), np.tile([0, 1], (64, 1, 1)))
    metric = Metric(np.eye(9)[None].repeat(64, 0), np.ones((64, 1, 1)))
    rounded = round_kernels(target, metric.factors(), offers, Rate(1e-3, 0.1), new_memory())
    assert (rounded.picked[::2, 0] == 1).mean() > 0.9
    assert (rounded.picked[1::2, 0] == 0).mean() > 0.9
    plain = round_kernels(
        target,
        metric.factors(),
        offers_of((FREE,), np.zeros((64, 1, 1), np.int64)),
        Rate(1e-3, 0.1),
        new_memory(),
    )
    assert rounded.bits < plain.bits


def test_the_bits_are_about_those_of_the_code() -> None:
    target = np.random.default_rng(2).normal(size=(64, 36))
    offers = offers_of((FREE, "mirror-v"), np.random.default_rng(0).integers(2, size=(64, 4, 1)))
    rounded = round_kernels(target, metric_of(1, 64, 36).factors(), offers, Rate(1e-3, 0.1), new_memory())
    item = CodedKernels(
        (3, 3),
        (FREE, "mirror-v"),
        rounded.picked,
        rounded.values,
        np.zeros((64, 4, 0), np.int64),
        np.float32(0.1),
    )
    assert 8 * len(encode_kernels(item, new_memory())) == pytest.approx(rounded.bits, rel=0.05)
