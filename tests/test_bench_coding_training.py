"""What `scripts/bench_coding_training` trains: a coding begins as it is, and follows its loss."""

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from kernelsimp.kernels.coded_tensor import CodedTensor
from kernelsimp.solver.coding_walk import Coding
from scripts import script

IMAGES = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("bench_coding_training")


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 4).eval()


def coarse(price: float = 0.0) -> Coding:
    """Return the network in steps of a half, every second output two integers too large."""
    tensors, model = {}, network()
    with torch.no_grad():
        for name, item in model.named_parameters():
            values = (item / 0.5).round().long().numpy()
            values[::2] += 2
            tensors[name] = CodedTensor(values, np.float32(0.5))
            item.copy_(torch.from_numpy(tensors[name].numbers()))
    return Coding(model, tensors, price)


def test_a_student_begins_as_its_coding(bench: ModuleType) -> None:
    coding = coarse()
    student = bench.Student(coding)
    assert coding.model is not None
    assert torch.equal(student(IMAGES), coding.model(IMAGES))
    again = student.coded()
    assert all(
        np.array_equal(again.tensors[name].values, item.values) for name, item in coding.tensors.items()
    )


def trained(bench: ModuleType, coding: Coding) -> Coding:
    how = bench.How(epochs=20, rate=0.4, free="all", batch=64)
    batches = [(IMAGES, torch.zeros(64))]
    *_, last = bench.train(bench.Student(coding), network(), iter([batches] * 20), how)
    assert isinstance(last, Coding)
    return last


def test_training_comes_nearer_where_bits_cost_nothing(bench: ModuleType) -> None:
    codings = coarse(), trained(bench, coarse())
    with torch.no_grad():
        before, after = (
            float(bench.divergence(network()(IMAGES), coding.model(IMAGES)))
            for coding in codings
            if coding.model is not None
        )
    assert after < before / 4


def test_training_takes_integers_down_where_bits_are_dear(bench: ModuleType) -> None:
    before, after = (
        np.abs(coding.tensors["weight"].numbers()).sum()
        for coding in (coarse(10.0), trained(bench, coarse(10.0)))
    )
    assert after < before / 4
