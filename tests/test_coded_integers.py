"""The coder of integers, and rounding with feedback: laws, known answers, and slow twins."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from kernelsimp.kernels.integer_coding import decode, encode, new_memory
from kernelsimp.kernels.rounding import (
    Metric,
    Rate,
    round_matrix,
    round_vector,
    step_for,
    unit_upper,
)

Matrix = NDArray[np.int64]


def drawn(rows: int, columns: int, spread: float, seed: int = 0) -> Matrix:
    generator = np.random.default_rng(seed)
    return np.rint(generator.laplace(size=(rows, columns)) * spread).astype(np.int64)


MATRICES = {
    "zeros": np.zeros((5, 7), np.int64),
    "sparse": drawn(16, 27, 0.3),
    "dense": drawn(8, 36, 4.0),
    "large": drawn(3, 11, 5000.0),
    "one": np.array([[1 - (1 << 23)]]),
    "a column": drawn(40, 1, 1.0),
    "a row": drawn(1, 40, 1.0),
    "nothing": np.zeros((0, 4), np.int64),
    "a vector": drawn(1, 30, 300.0)[0],
    "ends in zeros": np.array([[9, 0, 0, 0, 0, 0, 0, 0]]),
}


@pytest.mark.parametrize("name", MATRICES)
def test_what_is_encoded_comes_back(name: str) -> None:
    matrix = MATRICES[name]
    stream = encode(matrix, new_memory())
    assert np.array_equal(decode(stream, matrix.shape, new_memory()), matrix)


def test_an_integer_beyond_the_code_is_refused() -> None:
    with pytest.raises(ValueError, match="too large for its code"):
        encode(np.array([[1 << 23]]), new_memory())


def test_matrices_share_what_was_learned() -> None:
    many = [drawn(16, 27, 0.6, seed) for seed in range(8)]
    memory = new_memory()
    streams = [encode(matrix, memory) for matrix in many]
    assert sum(map(len, streams)) < sum(len(encode(matrix, new_memory())) for matrix in many)
    memory = new_memory()
    assert all(
        np.array_equal(decode(stream, matrix.shape, memory), matrix)
        for stream, matrix in zip(streams, many, strict=True)
    )


def test_a_code_is_near_the_entropy() -> None:
    matrix = drawn(64, 288, 0.7)
    _, counts = np.unique(matrix, return_counts=True)
    share = counts / counts.sum()
    entropy = -float((share * np.log2(share)).sum()) * matrix.size
    assert 8 * len(encode(matrix, new_memory())) < 1.03 * entropy


def test_the_bytes_are_known() -> None:
    """A change of these is a new form of the file: raise its schema."""
    stream = encode(drawn(16, 27, 0.8), new_memory()) + encode(drawn(1, 20, 90.0)[0], new_memory())
    assert hashlib.sha256(stream).hexdigest()[:16] == "98cb4f52fa5c0178"


TWIN = """
import importlib.util, sys
sys.modules["numba"] = None
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba" else real(name, *rest)
import numpy as np
from kernelsimp.kernels.compiled import AVAILABLE
from kernelsimp.kernels.integer_coding import decode, encode, new_memory
assert not AVAILABLE
matrix = np.rint(np.random.default_rng(3).laplace(size=(12, 40)) * 1.5).astype(np.int64)
stream = encode(matrix, new_memory())
assert (decode(stream, matrix.shape, new_memory()) == matrix).all()
print(stream.hex())
"""


def test_plain_python_writes_the_same_bytes() -> None:
    found = subprocess.run([sys.executable, "-c", TWIN], capture_output=True, text=True, check=True)
    matrix = np.rint(np.random.default_rng(3).laplace(size=(12, 40)) * 1.5).astype(np.int64)
    assert found.stdout.strip() == encode(matrix, new_memory()).hex()


def test_a_stream_that_ends_too_early_or_late_is_refused() -> None:
    matrix = drawn(16, 27, 2.0)
    stream = encode(matrix, new_memory())
    for damaged in (stream[: len(stream) // 2], stream + b"\x01" * 40):
        with pytest.raises(ValueError, match="does not end where it should"):
            decode(damaged, matrix.shape, new_memory())


# ---------------------------------------------------------------- rounding


def metric(rows: int = 6, width: int = 18, seed: int = 0) -> Metric:
    generator = np.random.default_rng(seed)
    inputs, outputs = (generator.normal(size=(side, side)) for side in (width, rows))
    return Metric(
        (inputs @ inputs.T / width + 0.01 * np.eye(width))[None],
        (outputs @ outputs.T / rows + 0.1 * np.eye(rows))[None],
    )


def weights(rows: int = 6, width: int = 18, seed: int = 1) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(rows, width))


def cost(case: Metric, target: NDArray[np.float64], rate: Rate) -> tuple[float, float]:
    """Return loss and bits of what the search finds."""
    found, bits = round_matrix(target, case.factors(), rate, new_memory())
    return case.loss(target - rate.step * found), bits


def test_factors_make_the_matrix_again() -> None:
    case = metric()
    for matrices in (case.inputs, case.outputs):
        lower, pivots = unit_upper(matrices)
        assert np.allclose(lower[0].T @ np.diag(pivots[0]) @ lower[0], matrices[0])
        assert np.allclose(np.triu(lower[0], 1), 0)


@pytest.mark.parametrize("seed", range(5))
def test_feedback_beats_plain_rounding(seed: int) -> None:
    case, target = metric(seed=seed), weights(seed=seed + 9)
    plain = case.loss(target - 0.3 * np.rint(target / 0.3))
    assert cost(case, target, Rate(0.0, 0.3, breadth=1))[0] < plain


@pytest.mark.parametrize("seed", range(5))
def test_sixteen_columns_cost_no_more_than_one(seed: int) -> None:
    """In one column the code does not learn, so what the search minimises is what is paid."""
    case = Metric(np.ones((1, 1, 1)), metric(12, seed=seed).outputs)
    target, costs = weights(12, 1, seed=seed), []
    for breadth in (1, 4, 16):
        loss, bits = cost(case, target, Rate(0.05, 0.4, breadth))
        costs.append(loss + 0.05 * bits)
    assert costs[2] <= costs[0] + 1e-12
    assert costs[1] <= costs[0] + 1e-12


def test_without_correlation_or_price_it_is_plain_rounding() -> None:
    case, target = Metric(np.eye(18)[None], np.eye(6)[None]), weights()
    found, _ = round_matrix(target, case.factors(), Rate(0.0, 0.25), new_memory())
    assert np.array_equal(found, np.rint(target / 0.25))


def test_one_column_is_the_best_of_all_by_brute_force() -> None:
    case = Metric(np.ones((1, 1, 1)), metric(4).outputs)
    target = weights(4, 1, seed=3)
    loss, _ = cost(case, target, Rate(0.0, 0.5, breadth=81))
    near = np.floor(target[:, 0] / 0.5)
    grid = np.stack(np.meshgrid(*[[-1, 0, 1, 2]] * 4, indexing="ij"), -1).reshape(-1, 4) + near
    assert loss <= min(case.loss(target - 0.5 * item[:, None]) for item in grid) + 1e-9


def test_bits_are_those_of_the_code() -> None:
    target = weights(16, 40)
    memory = new_memory()
    found, bits = round_matrix(target, metric(16, 40).factors(), Rate(0.02, 0.5), memory)
    assert abs(8 * len(encode(found, new_memory())) - bits) < 24


def test_a_higher_price_buys_fewer_bits_at_more_loss() -> None:
    found = [cost(metric(), weights(), Rate(price, 0.4)) for price in (0.0, 0.03, 0.2, 1e6)]
    assert sorted(found) == found
    assert [bits for _, bits in found] == sorted((bits for _, bits in found), reverse=True)


def test_groups_are_rounded_each_in_its_own_metric() -> None:
    both = [metric(seed=seed) for seed in (0, 1)]
    case = Metric(*(np.concatenate([getattr(item, key) for item in both]) for key in ("inputs", "outputs")))
    target = weights(12)
    found, _ = round_matrix(target, case.factors(), Rate(0.0, 0.3, breadth=1), new_memory())
    for place, item in enumerate(both):
        part = slice(6 * place, 6 * place + 6)
        alone, _ = round_matrix(target[part], item.factors(), Rate(0.0, 0.3, breadth=1), new_memory())
        assert np.array_equal(found[part], alone)


def test_a_bias_is_rounded_with_feedback_too() -> None:
    case, target = metric(8), weights(8, 1, seed=2)[:, 0]
    found = round_vector(target, case.factors(), 0.4)
    outputs = case.outputs[0]
    errors = [target - 0.4 * item for item in (found, np.rint(target / 0.4))]
    assert errors[0] @ outputs @ errors[0] <= errors[1] @ outputs @ errors[1]


def test_the_step_follows_the_price() -> None:
    assert step_for(4.0, 1.0) == pytest.approx(2 * step_for(1.0, 1.0))
    assert step_for(1.0, 4.0) == pytest.approx(step_for(1.0, 1.0) / 2)
