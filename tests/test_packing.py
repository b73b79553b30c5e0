"""Packing loses nothing: kernels of every structure, shape and dtype come back bit for bit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import families
from kernelsimp.kernels.packing import Coded, decode, encode, tensor_of
from kernelsimp.kernels.structures import find, kernel_sets
from kernelsimp.kernels.subspace import Shape

SHAPES: tuple[Shape, ...] = ((1, 3), (2, 2), (3, 3), (3, 5), (5, 5), (7, 7), (2, 3, 3))
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def structures_at(shape: Shape) -> list[str]:
    linear = [item.name for item in families.offered_families(shape)]
    mask = "cells-" + "01" * (int(np.prod(shape)) // 2) + "1" * (int(np.prod(shape)) % 2)
    return ["free", "zero", mask, *linear, *(item.name for item in kernel_sets(shape))]


def kernels_of(shape: Shape, dtype: torch.dtype, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, *shape, generator=generator, dtype=torch.float64).to(dtype)


def packed_and_back(kernels: Tensor, choice: np.ndarray, names: tuple[str, ...]) -> tuple[Coded, Tensor]:
    coded = encode(kernels, choice, names)
    return coded, decode(tuple(kernels.shape), kernels.dtype, coded, names)


def bits(kernels: Tensor) -> bytes:
    return kernels.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_of_every_structure_come_back_bit_for_bit(shape: Shape, dtype: torch.dtype) -> None:
    names = tuple(structures_at(shape))
    kernels = kernels_of(shape, dtype, 4 * len(names))
    choice = np.repeat(np.arange(len(names), dtype=np.int16), 4)[:, None]
    for index, name in enumerate(names[1:], 1):
        rows = slice(4 * index, 4 * index + 4)
        kernels[rows, 0] = find(name, shape).snap(kernels[rows, 0])
    coded, back = packed_and_back(kernels, choice, names)
    assert bits(back) == bits(kernels)
    linear = [
        i
        for i, name in enumerate(names)
        if i and not name.startswith(("rank", "few", "template", "prototypes"))
    ]
    assert set(coded.choice[np.isin(choice[:, 0], linear)]) == set(linear)  # none was written whole


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_plan_that_does_not_hold_costs_nothing(dtype: torch.dtype) -> None:
    names = tuple(structures_at((3, 3)))
    kernels = kernels_of((3, 3), dtype, 5 * len(names), seed=1)
    choice = np.repeat(np.arange(len(names), dtype=np.int16), 5)[:, None]
    coded, back = packed_and_back(kernels, choice, names)
    assert bits(back) == bits(kernels)
    whole = (coded.choice == 0).sum()
    assert whole >= 5 * (len(names) - 2)  # nearly nothing random is in a structure (rank two may be)


@pytest.mark.parametrize(
    ("name", "shape", "numbers"),
    [("mirror-h", (3, 3), 6), ("full-square", (5, 5), 6), ("zero", (3, 3), 0), ("rank-one", (5, 5), 9)],
)
def test_a_structure_takes_its_degrees_of_freedom_and_no_more(name: str, shape: Shape, numbers: int) -> None:
    kernels = kernels_of(shape, torch.float32, 50, seed=2)
    kernels[:, 0] = find(name, shape).snap(kernels[:, 0])
    coded, _ = packed_and_back(kernels, np.ones((50, 1), np.int16), ("free", name))
    assert coded.values.size == 50 * numbers


def test_rank_one_steps_are_few() -> None:
    kernels = kernels_of((3, 3), torch.float32, 200, seed=3)
    kernels[:, 0] = find("rank-one", (3, 3)).snap(kernels[:, 0])
    coded, _ = packed_and_back(kernels, np.ones((200, 1), np.int16), ("free", "rank-one"))
    steps = coded.side[200:].view(np.int8)
    assert steps.size == 4 * 200
    assert np.abs(steps.astype(int)).max() < 30
    assert np.abs(steps.astype(int)).mean() < 2


def test_few_values_name_the_cells_and_give_each_value_once() -> None:
    kernels = kernels_of((3, 3), torch.float32, 20, seed=4)
    kernels[:, 0] = find("few-values-2", (3, 3)).snap(kernels[:, 0])
    coded, _ = packed_and_back(kernels, np.ones((20, 1), np.int16), ("free", "few-values-2"))
    assert (coded.values.size, coded.side.size) == (40, 180)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -0.0, 1e-45])
@pytest.mark.parametrize("name", ["odd-h", "mirror-h", "rank-one", "few-values-2", "zero"])
def test_special_numbers_come_back(special: float, name: str) -> None:
    kernels = torch.zeros(3, 1, 3, 3)
    kernels[0] = special
    kernels[1, 0, 0, 1] = special
    _, back = packed_and_back(kernels, np.ones((3, 1), np.int16), ("free", name))
    assert bits(back) == bits(kernels)


def test_a_layer_of_many_kernels_goes_through_in_chunks() -> None:
    kernels = kernels_of((3, 3), torch.float16, 20_000, seed=5)
    kernels[:, 0] = find("few-values-3", (3, 3)).snap(kernels[:, 0])
    _, back = packed_and_back(kernels, np.ones((20_000, 1), np.int16), ("free", "few-values-3"))
    assert bits(back) == bits(kernels)


def rank_one() -> tuple[tuple[int, ...], Coded]:
    kernels = kernels_of((3, 3), torch.float32, 2)
    kernels[:, 0] = find("rank-one", (3, 3)).snap(kernels[:, 0])
    return tuple(kernels.shape), encode(kernels, np.ones((2, 1), np.int16), ("free", "rank-one"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"values": np.zeros(3, "<u4")}, "are asked for"),
        ({"values": np.zeros(11, "<u4")}, "left over"),
        ({"side": np.full(10, 200, np.uint8)}, "pivot lies outside"),
        ({"choice": np.array([1, 7], np.int16)}, "not named"),
        ({"choice": np.array([1], np.int16)}, "1 structures for 2 kernels"),
    ],
)
def test_numbers_that_do_not_add_up_are_refused(change: dict[str, np.ndarray], words: str) -> None:
    shape, coded = rank_one()
    damaged = Coded(**{**vars(coded), **change})
    with pytest.raises(ValueError, match=words):
        decode(shape, torch.float32, damaged, ("free", "rank-one"))


def test_two_pivots_in_one_line_are_refused() -> None:
    kernels = kernels_of((3, 3), torch.float32, 1)
    kernels[:, 0] = find("rank-two", (3, 3)).snap(kernels[:, 0])
    coded = encode(kernels, np.ones((1, 1), np.int16), ("free", "rank-two"))
    assert coded.choice.tolist() == [1]
    coded.side[:2] = 0, 1
    with pytest.raises(ValueError, match="two pivots share a line"):
        decode((1, 1, 3, 3), torch.float32, coded, ("free", "rank-two"))


def test_an_unknown_structure_is_refused() -> None:
    coded = Coded(np.ones(1, np.int16), np.zeros(0, "<u4"), np.zeros(0, np.uint8))
    with pytest.raises(KernelsimpError, match="unknown family"):
        decode((1, 1, 3, 3), torch.float32, coded, ("free", "mirror-x"))


def test_numbers_keep_their_bytes() -> None:
    for dtype in (*DTYPES, torch.int64, torch.bool, torch.complex64):
        tensor = torch.arange(6).to(dtype)
        data = tensor.view(torch.uint8).numpy()
        assert torch.equal(tensor_of(data.copy(), dtype), tensor)
