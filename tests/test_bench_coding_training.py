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


@pytest.mark.parametrize(("price", "nearer"), [(0.0, True), (10.0, False)])
def test_training_follows_kl_and_the_price_of_bits(bench: ModuleType, price: float, nearer: bool) -> None:
    coding = coarse(price)
    how = bench.How(epochs=20, rate=0.1, free="all", batch=64)
    batches = [(IMAGES, torch.zeros(64))]
    *_, last = bench.train(bench.Student(coding), network(), iter([batches] * 20), how)

    @torch.no_grad()
    def far(model: nn.Module) -> float:
        return float(bench.divergence(network()(IMAGES), model(IMAGES)))

    assert (far(last.model) < far(coding.model) / 2) == nearer
    sizes = [np.abs(item.tensors["weight"].values).sum() for item in (coding, last)]
    assert nearer or sizes[1] < sizes[0] / 4
