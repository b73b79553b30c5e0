"""What is calculated as on a card, in float32 with float64 beside it, comes to what float64 comes to."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from networks import network
from solving import HALF, calibrated, solve
from test_resolve import halved, moments_of, random_basis, smooth_rows
from torch import Tensor, nn
from tuning import PLAIN, bar_net, job

from kernelsimp import memory
from kernelsimp.float32 import full_float32
from kernelsimp.solver import precision, projected_cg
from kernelsimp.solver.fisher import survey
from kernelsimp.solver.layerwise import reconstruct
from kernelsimp.solver.moments import windows_at_once
from kernelsimp.solver.plan_builder import data_free_plan
from kernelsimp.solver.projected_cg import (
    FilterConstraint,
    Piece,
    Solved,
    UnsolvableError,
    best_damping,
    resolve,
)
from kernelsimp.solver.targets import targets_of
from kernelsimp.training import engine
from kernelsimp.training.finetune import finetune

CARD = torch.device("cuda", 0)


@pytest.fixture
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Have the CPU calculate as a card does; return what the products of each descent are taken in."""
    monkeypatch.setattr(precision, "DOUBLE", frozenset[str]())
    seen: list[torch.dtype] = []
    usual = projected_cg._Descent.run

    def run(self: projected_cg._Descent, w: Tensor, left: Tensor, enough: Tensor, gram: Tensor) -> Solved:
        seen.append(gram.dtype)
        return usual(self, w, left, enough, gram)

    monkeypatch.setattr(projected_cg._Descent, "run", run)
    return seen


def rounded_residual(descent: projected_cg._Descent, w: Tensor) -> Tensor:
    product = (w.float() @ descent.gram.float()).double()
    return descent.constraint.project(descent.target - product - descent.d * w)


def problem(width: int = 54, groups: int = 1) -> tuple[Tensor, FilterConstraint, Tensor]:
    """Weights of five filters a group, each kernel in a subspace of its own, and badly scaled rows."""
    generator = torch.Generator().manual_seed(3)
    original = torch.randn(groups, 5, width, dtype=torch.float64, generator=generator)
    kernels = original.numel() // 9
    bases = [random_basis(generator, 9, 1 + place % 8) for place in range(kernels)]
    projectors = torch.stack([basis @ basis.T for basis in bases])
    constraint = FilterConstraint(9, (Piece(torch.arange(kernels), projectors),))
    return original, constraint, smooth_rows(generator, (groups, 2000, width))


@pytest.mark.parametrize(("width", "groups"), [(54, 1), (9, 6), (18, 3)])
def test_a_fit_in_float32_ends_where_one_in_float64_does(
    width: int, groups: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    original, constraint, rows = problem(width, groups)
    moments = moments_of(rows, rows.roll(1, 1), original)
    expected = resolve(original, constraint, moments).weights
    seen: list[torch.dtype] = request.getfixturevalue("as_on_a_card")
    found = resolve(original, constraint, moments).weights
    assert seen[0] == seen[1] == torch.float32
    assert seen[-1] == torch.float64
    assert float((found - expected).norm() / expected.norm()) < 1e-7
    monkeypatch.setattr(projected_cg._Descent, "left", rounded_residual)
    astray = resolve(original, constraint, moments).weights
    assert float((astray - expected).norm() / expected.norm()) > 1e-7


def test_float64_finishes_alone_where_float32_breaks_down(
    as_on_a_card: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, constraint, rows = problem()
    moments = moments_of(rows, rows.roll(1, 1), original)
    expected = resolve(original, constraint, moments).weights
    usual = projected_cg._Descent.run

    def run(self: projected_cg._Descent, w: Tensor, left: Tensor, enough: Tensor, gram: Tensor) -> Solved:
        if gram.dtype == torch.float32:
            raise UnsolvableError("the fit broke down")
        return usual(self, w, left, enough, gram)

    monkeypatch.setattr(projected_cg._Descent, "run", run)
    found = resolve(original, constraint, moments)
    assert found.steps > 0
    assert float((found.weights - expected).norm() / expected.norm()) < 1e-7


def test_the_damping_is_that_of_float64_and_float64_factorises_what_float32_cannot(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(1, 300, 40, dtype=torch.float64, generator=generator)
    original = torch.randn(1, 5, 40, dtype=torch.float64, generator=generator)
    moments = halved(rows + 0.3 * rows.roll(1, 2), rows, original)
    steep = 1 + 1e-9 * torch.eye(40, dtype=torch.float64)[None]
    expected = best_damping(original, moments.halves), projected_cg._unconstrained((steep, 1e-13), original)
    request.getfixturevalue("as_on_a_card")
    assert best_damping(original, moments.halves) == expected[0]
    assert bool(torch.linalg.cholesky_ex(steep.float()).info.any())
    assert torch.equal(projected_cg._unconstrained((steep, 1e-13), original, torch.float32), expected[1])
    asked: list[torch.dtype] = []
    usual = projected_cg._unconstrained
    monkeypatch.setattr(
        projected_cg,
        "_unconstrained",
        lambda operator, target, dtype: asked.append(dtype) or usual(operator, target, dtype),
    )
    best_damping(original, moments.halves)
    assert set(asked) == {torch.float32}


def test_a_plan_made_as_on_a_card_is_that_of_the_cpu(request: pytest.FixtureRequest) -> None:
    work = partial(solve, calibrated(network()), replace(HALF, cost="auto"))
    expected = work()
    seen: list[torch.dtype] = request.getfixturevalue("as_on_a_card")
    found = work()
    assert torch.float32 in seen
    for mine, other in zip(expected.plan.layers, found.plan.layers, strict=True):
        assert (mine.choice == other.choice).all()
    for name, value in expected.tensors.items():
        assert float((found.tensors[name] - value).norm()) <= 1e-5 * float(value.norm()), name
    assert found.best.distance.divergence == pytest.approx(expected.best.distance.divergence, rel=1e-4)


# ---------------------------------------------------------------- TF32


def precisions() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


def test_float32_is_float32_within_a_survey_and_a_re_solve_and_what_it_was_after() -> None:
    model, seen = network(), set[tuple[str, str]]()
    model.register_forward_pre_hook(lambda *_: seen.add(precisions()))
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with pytest.raises(ZeroDivisionError), full_float32():
            seen.add((str(1 / 0), ""))
        assert precisions() == ("tf32", "tf32")
        stood = calibrated(model)
        seen.clear()
        survey(stood.model, stood.traced, stood.images, 0)
        assert seen == {("ieee", "ieee")}
        seen.clear()
        reconstruct(stood, targets_of(data_free_plan(stood.bank, HALF)))
        assert seen == {("ieee", "ieee")}
        assert precisions() == ("tf32", "tf32")
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.parametrize(("wanted", "expected"), [("32-true", "ieee"), ("tf32", "tf32")])
@pytest.mark.parametrize("fails", [False, True])
def test_tf32_is_for_the_passes_of_a_training_step_alone(
    wanted: str, expected: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "check_precision", lambda *_: None)  # it wants a card
    model, before, seen = bar_net(), precisions(), dict[str, set[Any]](there=set(), back=set(), judged=set())

    def look(module: nn.Module, _: object, made: Tensor) -> None:
        seen["there" if module.training else "judged"].add(precisions())
        if made.requires_grad:
            made.register_hook(look_back)

    def look_back(_: Tensor) -> None:
        seen["back"].add(precisions())
        if fails:
            raise ZeroDivisionError

    model.register_forward_hook(look)
    settings = replace(PLAIN, epochs=1, precision=wanted)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        finetune(model, job(), settings)
    assert seen == {"there": {(expected,) * 2}, "back": {(expected,) * 2}, "judged": {("ieee", "ieee")}}
    assert precisions() == before


# ---------------------------------------------------------------- how much at once


def test_a_card_does_as_much_at_once_as_it_has_room_for_and_a_cpu_what_it_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert windows_at_once(torch.device("cpu"), 9) == (1 << 23) // 9
    assert windows_at_once(torch.device("cpu"), 1 << 20) == 256
    sizes = []
    for free in (80_000_000_000, 8_000_000_000, 80_000_000, 0):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        sizes.append(windows_at_once(CARD, 576))
    assert sizes == [1_085_069, 108_506, 1_085, 256]


def test_what_is_free_on_a_card_counts_what_torch_keeps_and_what_the_process_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = {
        "mem_get_info": (3_000, 10_000),
        "memory_reserved": 4_000,
        "memory_allocated": 1_500,
        "get_per_process_memory_fraction": 1.0,
    }
    for name in figures:
        monkeypatch.setattr(torch.cuda, name, lambda _, name=name: figures[name])
    assert memory.free_bytes(CARD) == 3_000 + 4_000 - 1_500
    figures["get_per_process_memory_fraction"] = 0.2
    assert memory.free_bytes(CARD) == 2_000 - 1_500


@pytest.mark.parametrize("numbers", [1, 2 * 54 * 9, 1 << 22])
def test_a_layer_solved_in_parts_of_any_size_comes_to_the_same(
    numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, constraint, rows = problem()
    moments = moments_of(rows, rows.roll(1, 1), original)
    expected = resolve(original, constraint, moments).weights
    monkeypatch.setattr(projected_cg, "numbers_at_once", lambda *_: numbers)
    found = resolve(original, constraint, moments).weights
    assert float((found - expected).norm() / expected.norm()) < 1e-7
