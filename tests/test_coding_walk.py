"""Where layers stand, passes that stop at each, and coding on changed inputs: laws on small networks."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_net
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.integer_coding import new_memory
from kernelsimp.kernels.kernel_coding import CodedKernels
from kernelsimp.kernels.structures import find
from kernelsimp.memory import Room
from kernelsimp.models.coded import Layout, code_state, numbers_of, read_coded
from kernelsimp.models.stages import Stage, absorb_norms, layer_modules, matrix_of, put_matrix, stages_of
from kernelsimp.models.zoo import CifarResNet
from kernelsimp.records.plan import SHAPES, LayerPlan
from kernelsimp.shelf import ImageBatches, ImageStack, Shelf
from kernelsimp.solver import coding_kernels, coding_walk
from kernelsimp.solver.coding_kernels import parts_menus, planned_menus
from kernelsimp.solver.coding_moments import (
    FitMoments,
    Reading,
    Seen,
    fit_moments,
    identity_moments,
    reading_of,
)
from kernelsimp.solver.coding_search import Budget, first_price, prepare_ground, search_price
from kernelsimp.solver.coding_walk import Coding, Ground, LayerFit, code_network, code_tensors
from kernelsimp.solver.output_metric import output_metrics
from kernelsimp.solver.passes import Passes


class Odd(nn.Module):
    """Transposed and grouped, a layer called twice, a norm that others' outputs pass, one with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 6, 3, stride=2, groups=3)
        self.up_norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 1, bias=False)
        self.both = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.both_norm = nn.BatchNorm2d(6)
        self.side = nn.Conv2d(6, 6, 1, bias=False)
        self.side_norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)
        self.unused = nn.Conv2d(6, 6, 1)

    def forward(self, images: Tensor) -> Tensor:
        first = torch.relu(self.up_norm(self.up(images)))
        first = torch.relu(self.twice(torch.relu(self.twice(first))))
        raw = self.both(first)
        second = torch.relu(self.both_norm(raw) + raw)  # taken twice: not to be absorbed
        third = self.side_norm(self.side(second))
        third += second
        return self.head(torch.relu(third).mean((2, 3)))


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """The network with norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 4)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator) / 4)
    return model.eval()


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trained(build())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "tiny": tiny_net,
    "residual": lambda: CifarResNet(1),
    "odd": Odd,
}


def images(count: int = 48, seed: int = 1) -> tuple[Tensor, ...]:
    drawn = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return drawn.split(16)  # type: ignore[no-untyped-call, no-any-return]


def ground_of(name: str) -> tuple[nn.Module, Ground]:
    model = seeded(NETWORKS[name])
    return model, prepare_ground(model, images(), {})


def test_stages_say_where_an_output_is_seen() -> None:
    found = {stage.name: stage for stage in stages_of(seeded(Odd), images()[0])}
    assert list(found) == ["up", "twice", "both", "side", "head"]
    assert found["up"] == Stage("up", 1, "up_norm", None)
    assert found["twice"].calls == 2
    assert found["both"] == Stage("both", 1, None, None)
    assert found["side"] == Stage("side", 1, "side_norm", 0)


def test_a_shortcut_belongs_to_the_layer_before_the_addition() -> None:
    found = {stage.name: stage.addition for stage in stages_of(seeded(lambda: CifarResNet(1)), images()[0])}
    assert {name for name, addition in found.items() if addition is not None} == {
        f"layer{place}.0.conv2" for place in (1, 2, 3)
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_absorbing_norms_changes_no_answer(name: str) -> None:
    model = seeded(NETWORKS[name])
    before = model(images()[0])
    done = absorb_norms(model, stages_of(model, images()[0]))
    assert torch.allclose(model(images()[0]), before, rtol=1e-4, atol=1e-5)
    for norm in (dict(model.named_modules())[norm] for norm in done.values()):
        assert bool((norm.weight == 1).all())
        assert bool((norm.running_mean == 0).all())
        assert bool((norm.running_var == torch.tensor(1 - norm.eps)).all())


def test_a_matrix_goes_back_where_it_came_from() -> None:
    for items in layer_modules(seeded(Odd)).values():
        weight = items[0].weight.detach().clone()
        put_matrix(items[0], matrix_of(items[0]) * 2)
        assert torch.equal(items[0].weight, 2 * weight)


@pytest.mark.parametrize("name", NETWORKS)
def test_passes_that_change_nothing_end_as_the_network_does(name: str) -> None:
    model, ground = ground_of(name)
    seen: list[Tensor] = []
    handle = ground.model.register_forward_hook(lambda _, __, output: seen.append(output))
    with Passes(ground.model, ground.stages, ground.images) as passes:
        order = []
        while (stops := list(passes.stops()))[0] is not None:
            assert {stop.stage.name for stop in stops if stop} == {stops[0].stage.name}
            order.append(stops[0].stage.name)
            assert [len(stop.inputs) for stop in stops if stop] == [16, 16, 16]
    handle.remove()
    assert order == [stage.name for stage in ground.stages if stage.calls == 1]
    for output, batch in zip(seen, ground.images, strict=True):
        assert torch.allclose(output, model(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_waits_in_files_comes_back(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kernelsimp.solver.paging.LEAST", 1)
    _, ground = ground_of(name)
    whole = code_network(ground, 1e-5)
    moved: list[int] = []
    put = Shelf.put
    monkeypatch.setattr(
        Shelf, "put", lambda self, key, value: (moved.append(value.nbytes), put(self, key, value))
    )
    paged = code_network(replace(ground, room=Room(bytes=0, folder=tmp_path)), 1e-5)
    assert sum(moved) > 16 * 3 * 8 * 8 * 4 * len(ground.stages)
    assert not list(tmp_path.rglob("shelf-*/*"))  # nothing is left of what waited
    for key, item in whole.tensors.items():
        assert (item.values == paged.tensors[key].values).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("waiting", ["in memory", "in files"])
def test_batches_that_come_late_go_through_what_is_coded(
    name: str, waiting: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, ground = ground_of(name)
    if waiting == "in files":  # and the images, which both networks read, stay
        monkeypatch.setattr("kernelsimp.solver.paging.LEAST", 1)
        stacked = ImageBatches(ImageStack.of(ground.images), 0, 48, 16)
        ground = replace(ground, images=stacked, room=Room(bytes=0, folder=tmp_path))
    read: list[int] = []
    late: list[Tensor] = []
    fit = coding_walk.fit_moments

    def few(layer: nn.Module, inputs: Tensor, count: int) -> Reading:
        last = isinstance(layer, nn.Linear)
        turn = 1 + len(read) % 2  # the second batch comes and goes
        return Reading(count if last else 16 * turn, reading_of(layer, inputs, count).share)

    def watched(layer: nn.Module, seen: Iterable[Seen], *how: Any) -> FitMoments:
        batches = [(inputs.clone(), missing) for inputs, missing in seen]
        read.append(len(batches))
        late[:] = [inputs for inputs, _ in batches]
        return fit(layer, batches, *how)

    monkeypatch.setattr(coding_walk, "reading_of", few)
    monkeypatch.setattr(coding_walk, "fit_moments", watched)
    coding = code_network(ground, 1e-6)
    assert read == [1 + place % 2 for place in range(len(read) - 1)] + [3]
    assert coding.model is not None
    head = next(item for item in coding.model.modules() if isinstance(item, nn.Linear))
    seen: list[Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for batch, there in zip(ground.images, late, strict=True):
        coding.model(batch)
        assert torch.allclose(seen[-1], there, rtol=1e-4, atol=1e-5)


def test_moments_of_inputs_that_hardly_vary() -> None:
    """Far from zero, float32 products would leave nothing of their variance."""
    draws = torch.Generator().manual_seed(0)
    layer = nn.Linear(5, 3)
    inputs = 100 + 0.1 * torch.randn(40, 50, 5, generator=draws)
    missing = torch.randn(40, 50, 3, generator=draws)
    moments = fit_moments(layer, zip(inputs.split(7), missing.split(7), strict=True), 1.0, 0)
    taken, rest = inputs.double().flatten(0, 1), missing.double().flatten(0, 1)
    raw = (taken.mT @ taken / len(taken), taken.mT @ rest / len(taken), taken.mean(0), rest.mean(0))
    exact = FitMoments(*(item.numpy()[None] for item in raw), len(taken))
    for found, wanted in ((moments, exact), (moments.centred(), exact.centred())):
        assert np.allclose(found.gram, wanted.gram, rtol=1e-4, atol=1e-7)
        assert np.allclose(found.cross, wanted.cross, rtol=1e-4, atol=1e-6)
    assert np.linalg.eigvalsh(moments.centred().gram).min() > 0.009


def test_early_layers_are_read_of_fewer_images() -> None:
    dense, one, depthwise = nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 8, 3, groups=8)
    large, small = torch.zeros(1, 8, 114, 114), torch.zeros(1, 8, 9, 9)
    assert reading_of(dense, large, 1024).images == 128
    assert reading_of(dense, small, 1024) == Reading(1024, 1.0)
    assert reading_of(one, small, 9999).images == -(-65_536 * 4 // 81)
    assert reading_of(depthwise, small, 9999).images == -(-16_384 * 4 // 49)
    assert reading_of(dense, large, 64).images == 64
    assert reading_of(dense, large, 1024).share == 65_536 / (128 * 112 * 112)


def test_large_images_are_enough_for_g_when_there_are_128(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelsimp.solver.output_metric.PIXELS_ENOUGH", 64 * 20)
    monkeypatch.setattr("kernelsimp.solver.output_metric.IMAGES_AT_LEAST", 10)
    model = seeded(tiny_net)
    few, first = (output_metrics(model, some, 0) for some in (images(), (images()[0], images()[1][:4])))
    assert all(torch.equal(few[name], first[name]) for name in first)
    monkeypatch.setattr("kernelsimp.solver.output_metric.PIXELS_ENOUGH", 1 << 21)
    assert not all(
        torch.allclose(item, few[name], rtol=1e-3)
        for name, item in output_metrics(model, images(), 0).items()
    )


def test_kernels_keep_the_structure_of_a_plan_and_the_rest_answers() -> None:
    model, ground = ground_of("residual")
    names, dims = ("free", "mirror-h"), np.array([9, 6], np.int16)
    plans, projected = [], copy.deepcopy(ground.model)
    for name, items in layer_modules(ground.model).items():
        weight = items[0].weight
        if weight.ndim == 4 and weight.shape[2:] == (3, 3):
            choice = np.zeros(weight.shape[:2], np.int16)
            choice[::2] = 1  # every other filter
            flags, zeros = np.zeros(choice.shape, bool), np.zeros(choice.shape, np.float32)
            plans.append(LayerPlan(name, "dense", 1, (3, 3), choice, flags, flags, zeros, dims))
            there = layer_modules(projected)[name][0].weight
            there.data[::2] = find("mirror-h", (3, 3)).snap(there.detach()[::2])
    coding = code_network(replace(ground, menus=planned_menus(tuple(plans), names)), 1e-9)
    assert coding.model is not None
    coded = layer_modules(coding.model)
    for plan in plans:
        kernels = coded[plan.name][0].weight.detach()[::2]
        assert bool(find("mirror-h", (3, 3)).holds(kernels).all())
        assert not bool(find("mirror-h", (3, 3)).holds(coded[plan.name][0].weight.detach()[1::2]).any())
    batch = torch.cat(images())
    error, alone = (
        (item(batch) - model(batch)).detach().square().mean() for item in (coding.model, projected)
    )
    assert float(error) < 0.8 * float(alone)


def test_prototypes_of_a_plan_are_coded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 9, generator=generator)
    cells = centres[torch.arange(32 * 8) % 4].reshape(32, 8, 9)
    weight = torch.randn(32, 8, 1, generator=generator) * cells + 0.1
    weight = (weight + torch.randn(32, 8, 9, generator=generator) / 20).reshape(32, 8, 3, 3)
    plain, flags = np.zeros((32, 8), np.float32), np.zeros((32, 8), bool)
    drawn = {SHAPES: cells.numpy()}
    dims, choice = np.array([9, 2], np.int16), np.ones((32, 8), np.int16)
    plan = LayerPlan("a", "dense", 1, (3, 3), choice, flags, flags, plain, dims, drawn, 36)
    menus = {"a.weight": planned_menus((plan,), ("free", "prototypes-4"))["a"]}
    sizes, found = [], []
    for _ in range(2):
        item = code_tensors({"a.weight": weight}, 1e-5, menus).tensors["a.weight"]
        value = numbers_of(item, Layout(), weight)
        file = code_state({"a.weight": value}, {"a.weight": (item, Layout())})
        file.save(tmp_path / "a.kscode")
        assert torch.equal(read_coded(tmp_path / "a.kscode")["a.weight"], value)
        kernels = value.reshape(256, 3, 3)
        shapes = cells.reshape(256, 9).numpy()
        assert bool(find("prototypes-4", (3, 3), shapes).holds(kernels).all())
        sizes.append(file.size)
        found.append(value)
        monkeypatch.setattr(coding_kernels, "_shared", lambda _, sides, __: (sides, None))
    assert torch.equal(*found)
    assert sizes[0] < sizes[1] - 256 * 9 * 26 / 8 + 4 * 9 * 26 / 8 + 256 * 5 / 8 + 20


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_depthwise_layer_is_coded_in_parts_where_that_is_cheaper(*, symmetric: bool) -> None:
    layer = nn.Conv2d(96, 96, 3, groups=96)
    weight = torch.randn(96, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    layer.weight.data = find("full-square", (3, 3)).snap(weight) if symmetric else weight
    (menu,) = parts_menus(nn.Sequential(nn.Conv2d(3, 96, 1), layer)).values()
    before = matrix_of(layer).double().numpy()
    fit = LayerFit(before, identity_moments(96, 9, 1), np.ones((96, 1, 1)), has_bias=False)
    plain, found = fit.round_weight(1e-3, new_memory()), fit.round_weight(1e-3, new_memory(), menu)
    assert isinstance(found, CodedKernels) == symmetric
    if symmetric:
        assert found.bits < 0.6 * plain.bits
        kernels = torch.from_numpy(found.numbers()).reshape(96, 3, 3)
        assert bool(find("full-square", (3, 3)).holds(kernels).all())
    else:
        assert (found.values == plain.values).all()


class Wavering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, batch: Tensor) -> Tensor:
        layer = self.one if float(batch.mean()) > 0 else self.other
        return layer(batch).mean((2, 3))  # type: ignore[no-any-return]


def test_batches_that_go_different_ways_are_refused() -> None:
    model, batches = Wavering().eval(), (torch.ones(2, 3, 8, 8), -torch.ones(2, 3, 8, 8))
    stages = (Stage("one"), Stage("other"))
    with Passes(model, stages, batches) as passes, pytest.raises(KernelsimpError, match="another way"):
        list(passes.stops())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fine_coding_is_the_network_again(name: str) -> None:
    model, ground = ground_of(name)
    coding = code_network(ground, 1e-12)
    assert coding.model is not None
    assert set(coding.tensors) >= {f"{stage.name}.weight" for stage in ground.stages}
    for batch in images(seed=5):
        assert torch.allclose(coding.model(batch), model(batch), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_coding_is_deterministic_and_a_price_buys_bits(name: str) -> None:
    _, ground = ground_of(name)
    one, other, dear = (code_network(ground, price) for price in (1e-9, 1e-9, 1e-5))
    for key, item in one.tensors.items():
        assert (item.values == other.tensors[key].values).all()
        assert item.step == other.tensors[key].step
    assert dear.bits < one.bits


def test_the_decoded_numbers_are_what_the_walk_left_behind() -> None:
    _, ground = ground_of("odd")
    coding = code_network(ground, 1e-5)
    assert coding.model is not None
    state = coding.model.state_dict()
    for key, item in coding.tensors.items():
        if key.endswith("bias"):
            assert torch.equal(state[key], torch.from_numpy(item.numbers()))
    side = layer_modules(coding.model)["side"][0]
    assert torch.equal(matrix_of(side), torch.from_numpy(coding.tensors["side.weight"].numbers()))


def test_later_layers_answer_for_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what is missing at each layer, the same steps leave a larger error at the end."""
    model, ground = ground_of("residual")

    def error(coding: Coding) -> float:
        assert coding.model is not None
        with torch.no_grad():
            return sum(float((coding.model(batch) - model(batch)).square().sum()) for batch in images())

    whole = error(code_network(ground, 1e-6))
    real = coding_walk.fit_moments
    monkeypatch.setattr(
        coding_walk,
        "fit_moments",
        lambda layer, seen, *rest: real(layer, ((x, None) for x, _ in seen), *rest),
    )
    assert whole < error(code_network(ground, 1e-6))


def test_a_dead_layer_costs_next_to_nothing() -> None:
    model = seeded(lambda: CifarResNet(1))
    layer = layer_modules(model)["layer2.0.conv1"][0]
    put_matrix(layer, torch.zeros_like(matrix_of(layer)))
    coding = code_network(prepare_ground(model, images(), {}), 1e-6)
    assert not coding.tensors["layer2.0.conv1.weight"].values.any()
    assert all(
        bool(torch.isfinite(torch.from_numpy(item.numbers())).all()) for item in coding.tensors.values()
    )
    assert code_network(prepare_ground(model, images(), {}), 1e9).bits < 2000


def test_metrics_are_positive_and_have_one_block_a_group() -> None:
    model = seeded(Odd)
    found = output_metrics(model, images(), 0)
    assert {name: tuple(item.shape) for name, item in found.items()} == {
        "up": (3, 2, 2),
        "twice": (1, 6, 6),
        "both": (2, 3, 3),
        "side": (1, 6, 6),
        "head": (1, 4, 4),
    }
    assert all(
        bool((torch.linalg.eigvalsh(item) > -1e-6 * item.abs().max()).all()) for item in found.values()
    )


def test_half_precision_is_kept() -> None:
    model = seeded(tiny_net)
    ground = prepare_ground(model, images(), {"stem.weight": torch.float16})
    coding = code_network(ground, 1e-7)
    assert coding.model is not None
    weight = coding.model.state_dict()["stem.weight"]
    assert torch.equal(weight, weight.half().float())


def test_weights_alone_are_coded_by_their_size() -> None:
    tensors = {
        "a.weight": torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)),
        "a.bias": torch.ones(8),
    }
    tensors["b.weight"] = 1000 * tensors["a.weight"]
    fine, coarse = (code_tensors(tensors, price) for price in (1e-7, 1e-3))
    assert list(fine.tensors) == ["a.weight", "b.weight"]
    assert coarse.bits < fine.bits
    numbers = torch.from_numpy(fine.tensors["a.weight"].numbers()).reshape(8, 4, 3, 3)
    assert float((numbers - tensors["a.weight"]).norm() / tensors["a.weight"].norm()) < 0.02


# ---------------------------------------------------------------- the search


def bytes_at(price: float) -> int:
    return int(1000 * price**-0.5)


def fake(price: float) -> Coding:
    return Coding(None, {}, price)


@pytest.mark.parametrize("first", [1e-7, 1e-6, 1.0])
def test_the_search_ends_at_the_budget(first: float) -> None:
    found = search_price(fake, lambda made: (bytes_at(made.price), made.price**1.3), Budget(1e-5**1.3, first))
    assert found.met
    assert 0.8e-5 < found.best.coding.price <= 1e-5
    found = search_price(
        fake, lambda made: (bytes_at(made.price), 0.0), Budget(bytes_at(1e-5), first, by_size=True)
    )
    assert found.met
    assert 1e-5 <= found.best.coding.price < 1.25e-5


def test_a_budget_that_nothing_meets_gives_the_nearest() -> None:
    found = search_price(fake, lambda made: (bytes_at(made.price), 1.0 + made.price), Budget(0.5, 1e-3))
    assert not found.met
    assert found.best.spent == min(spent for _, _, spent in found.tried)
    with pytest.raises(KernelsimpError, match="expected a number from 0 up"):
        search_price(fake, lambda _: (1, 1.0), Budget(-1.0, 1e-3))


def test_the_first_price_follows_the_size_of_the_network() -> None:
    assert first_price(ground_of("tiny")[1]) > first_price(ground_of("residual")[1])
