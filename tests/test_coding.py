"""Bits: the adaptive code against coding symbol by symbol, equal distortions, and honest sums."""

import math

import numpy as np
import pytest
import torch
from builders import white

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import coding
from kernelsimp.kernels.coding import adaptive_bits, code_layer, coefficient_bits, entropy_bits, step_for
from kernelsimp.kernels.families import find, offered_families

SPACES = [row.subspace for row in offered_families((3, 3), pairs=False)]
NAMES = ["structure", "order-0", "distinct-values", "fp32", "uniform", "dct", "codebook"]


def one_by_one(symbols):
    """The Krichevsky-Trofimov code, symbol after symbol, and the ends of the alphabet in Elias gamma."""
    low, high = min(symbols), max(symbols)
    counts = dict.fromkeys(range(low, high + 1), 0.5)
    bits = 0.0
    for symbol in symbols:
        bits -= math.log2(counts[symbol] / sum(counts.values()))
        counts[symbol] += 1
    for number in (low, high - low):
        folded = 2 * number + 1 if number >= 0 else -2 * number
        bits += 2 * math.floor(math.log2(folded)) + 1
    return bits


@pytest.mark.parametrize("symbols", [[0], [3, 3, 3], [0, -1, 2, 2, 0, 0, 1], list(range(-9, 9))])
def test_adaptive_bits_are_those_of_coding_one_by_one(symbols):
    assert adaptive_bits(np.array(symbols)) == pytest.approx(one_by_one(symbols))


def test_adaptive_code_is_dearer_than_entropy_by_its_own_learning_only():
    symbols = np.random.default_rng(0).integers(-3, 4, 20000)
    assert entropy_bits(symbols) == pytest.approx(20000 * math.log2(7), rel=1e-3)
    extra = adaptive_bits(symbols) - entropy_bits(symbols)
    assert 0 < extra < 6 / 2 * math.log2(20000) + 20
    assert adaptive_bits(np.array([], dtype=np.int64)) == 0


@pytest.mark.parametrize("distortion", [0.01, 0.08])
@pytest.mark.parametrize("grid", [(3, 3), (1, 5), (5, 5)])
def test_all_codings_reach_the_same_distortion(grid, distortion):
    found = code_layer(
        white(300, *grid), [row.subspace for row in offered_families(grid, pairs=False)], distortion
    )
    assert list(found) == NAMES
    for name in set(NAMES) - {"fp32", "codebook"}:
        assert 0.97 * distortion < found[name].distortion <= distortion * (1 + 1e-9), name
    assert found["codebook"].distortion <= distortion
    assert found["fp32"].bits == 32 * grid[0] * grid[1]


def test_bits_of_each_kernel_add_up():
    found = code_layer(white(300, 3, 3), SPACES)
    for coded in found.values():
        if coded.each is not None:
            assert coded.each.mean() == pytest.approx(coded.bits)


def test_white_kernels_cost_what_theory_says():
    """At high resolution: h(w) - log2(step) a cell, with step^2 / 12 = 1 % of the variance."""
    gaussian = 0.5 * math.log2(2 * math.pi * math.e) - math.log2(math.sqrt(0.12))
    found = code_layer(white(5000, 3, 3), SPACES)
    for name in ("order-0", "uniform", "dct"):
        assert found[name].bits == pytest.approx(9 * gaussian, rel=0.02)
    assert step_for(white(5000, 3, 3)) == pytest.approx(math.sqrt(0.12), rel=0.02)
    assert coefficient_bits(white(5000, 3, 3)) == pytest.approx(gaussian, rel=0.02)


def test_structure_pays_where_there_is_some_and_is_named():
    space = find("full-square", (3, 3))
    kernels = white(600, 3, 3)
    kernels[:400] = space.snap(kernels[:400])
    found = code_layer(kernels, SPACES)
    assert found["structure"].bits < 0.75 * found["uniform"].bits
    choice = found["structure"].choice
    dims = np.array([row.dim for row in SPACES])
    assert (dims[choice[:400][choice[:400] >= 0]] <= 4).all()
    assert (choice[:400] >= 0).mean() > 0.95
    assert (choice[400:] == -1).mean() > 0.9


def test_structure_costs_little_more_than_the_best_plain_code_where_there_is_none():
    found = code_layer(white(2000, 3, 3), SPACES)
    assert found["structure"].bits < 1.03 * found["uniform"].bits


def test_what_a_decoder_reads_is_structured_and_as_far_off_as_claimed():
    kernels = torch.cat([white(200, 3, 3), find("equal-rows", (3, 3)).snap(white(200, 3, 3))])
    coded = coding.structure(kernels, SPACES, 0.03)
    assert coded.choice is not None
    written = torch.from_numpy(coded.written)
    flat = kernels.double().flatten(1)
    assert float((flat - written).square().sum() / flat.square().sum()) == pytest.approx(coded.distortion)
    for index in set(coded.choice[coded.choice >= 0].tolist()):
        inside = written[torch.from_numpy(coded.choice == index)].reshape(-1, 3, 3)
        assert SPACES[index].residual(inside).max() < 1e-12
        steps = inside.flatten(1) @ torch.from_numpy(SPACES[index].basis) / coded.step
        assert (steps - steps.round()).abs().max() < 1e-9
    assert not bool(written[torch.from_numpy(coded.choice == -2)].any())
    assert len(set(coded.choice.tolist())) > 2


def test_scale_does_not_change_bits():
    first, second = code_layer(white(300, 3, 3), SPACES), code_layer(white(300, 3, 3) * 1e-3, SPACES)
    for name in NAMES:
        assert first[name].bits == pytest.approx(second[name].bits, rel=0.02)


def test_few_values_are_cheap_as_distinct_values():
    generator = torch.Generator().manual_seed(3)
    signs = torch.randint(0, 2, (300, 3, 3), generator=generator).float() * 2 - 1
    found = code_layer(signs * torch.rand(300, 1, 1, generator=generator), SPACES)
    assert found["distinct-values"].bits < found["uniform"].bits


def test_distinct_values_are_charged_by_the_formula():
    kernels = torch.tensor([[[1.0, 1.0, -1.0, -1.0]], [[1.0, 1.0, 1.0, 1.0]]])
    found = code_layer(kernels, (), 0.01)["distinct-values"]
    b = coefficient_bits(kernels)
    expected = (2 * b + 4 * 1 + 2) + (1 * b + 0 + 2) + 32
    assert found.bits == pytest.approx(expected / 2)


def test_a_layer_of_zeros_and_a_layer_of_one_kernel():
    for kernels in (torch.zeros(10, 3, 3), white(1, 3, 3)):
        found = code_layer(kernels, SPACES)
        assert all(math.isfinite(coded.bits) for coded in found.values())
    assert code_layer(torch.zeros(1000, 3, 3), SPACES)["structure"].bits < 0.2


def test_bad_input_is_refused():
    with pytest.raises(
        KernelsimpError, match=r"^coding: no kernels; expected finite kernels, drop the others"
    ):
        code_layer(torch.zeros(0, 3, 3))
    with pytest.raises(KernelsimpError, match=r"^coding: 1 kernels that are not finite; expected finite"):
        code_layer(torch.tensor([[[0.0, float("nan")]]]))
    with pytest.raises(KernelsimpError, match=r"^coding: distortion 1.0; expected a number between 0 and 1$"):
        code_layer(white(300, 3, 3), (), 1.0)


def test_real_layer_agrees_with_the_published_figures(shared_data):
    """ResNet-20 at 8 % distortion: about 18.8 bits uniform at 7.9 %, 15.5 in the cosine basis at 8.3 %."""
    path = shared_data / "checkpoints" / "resnet20-12fca82f.th"
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    layers = [value.reshape(-1, 3, 3) for value in state.values() if value.ndim == 4]
    layers = [layer for layer in layers if len(layer) <= 1024]
    found = [code_layer(layer, (), 0.08) for layer in layers[:8]]
    for coded in found:
        assert coded["dct"].bits < coded["uniform"].bits * 1.05
        assert 10 < coded["uniform"].bits < 40
