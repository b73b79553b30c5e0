"""Windows, moments and the forward pass against what the network itself computes."""

from collections.abc import Callable

import pytest
import torch
from every_window import every_row, input_for
from networks import winding
from torch import Tensor, nn
from torch.nn import functional as F

from kernelsimp.errors import KernelsimpError
from kernelsimp.models.hooks import trace
from kernelsimp.models.layers import bank_from_model, canonical
from kernelsimp.models.replay import Replay
from kernelsimp.shelf import Shelf
from kernelsimp.solver.distance import DistanceJudge
from kernelsimp.solver.moments import (
    Moments,
    WindowSampling,
    images_wanted,
    pair_moments,
    rows_wanted,
    sampling_for,
)

CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "oblong": lambda: nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(0, 2)),
    "dilated": lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2),
    "same, even side": lambda: nn.Conv2d(4, 6, (2, 4), padding="same"),
    "valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "reflected": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "pointwise": lambda: nn.Conv2d(4, 6, 1),
    "one-dimensional": lambda: nn.Conv1d(4, 6, 5, stride=2, padding=2),
    "three-dimensional": lambda: nn.Conv3d(4, 6, (2, 3, 3), padding=(0, 1, 1)),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "transposed, dilated": lambda: nn.ConvTranspose2d(4, 6, 3, dilation=2),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=2),
    "transposed, cropped": lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, padding=1),
    "transposed, one-dimensional": lambda: nn.ConvTranspose1d(4, 6, 3, stride=3),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_windows_times_kernels_in_canonical_order_are_the_layers_output(name: str) -> None:
    module: nn.Module = CONVOLUTIONS[name]()
    images = input_for(module)
    layer = bank_from_model(module).layers[0]
    kernels = canonical(layer.kernels, "dense", 1).reshape(layer.groups, -1, layer.kernels[0].numel())
    made = every_row(module, images) @ kernels.mT  # (groups, rows, filters a group)
    output: Tensor = module(images) - module.bias.reshape(1, -1, *[1] * (images.ndim - 2))  # type: ignore[operator, union-attr]
    expected = output.movedim(1, -1).reshape(made.shape[1], layer.groups, -1).transpose(0, 1)
    assert torch.allclose(made, expected, atol=1e-5)


def test_moments_are_those_of_the_unfolded_inputs() -> None:
    module = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
    before, now = input_for(module), input_for(module, 1)
    weights = module.weight.detach().double().reshape(2, 3, -1)
    found = pair_moments([[(module, now)]], [[(module, before)]], weights, WindowSampling(1.0, 0))
    assert found is not None
    x, t = (
        F.unfold(item, 3, padding=1, stride=2)
        .double()
        .reshape(3, 2, 18, -1)
        .permute(1, 0, 3, 2)
        .reshape(2, -1, 18)
        for item in (before, now)
    )
    n = x.shape[1]
    assert found.rows == n
    assert not found.same
    assert torch.allclose(found.gram, t.mT @ t / n, atol=1e-6)
    assert torch.allclose(found.target, weights @ (x.mT @ t / n), atol=1e-6)
    assert torch.allclose(found.mean, t.mean(1), atol=1e-6)
    assert torch.allclose(found.level, (x @ weights.mT).mean(1), atol=1e-6)
    assert torch.allclose(found.power, (x @ weights.mT).square().mean(1), atol=1e-6)


def test_halves_are_the_moments_of_every_other_image_and_add_up_to_all() -> None:
    module = nn.Conv2d(4, 6, 3, padding=1, bias=False)
    images = torch.randn(7, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    other = images + 0.1 * images.roll(1, 0)
    weights = module.weight.detach().double().reshape(1, 6, -1)
    sampling = WindowSampling(0.5, 0)

    def moments(keep: slice, sizes: int, **how: bool) -> Moments:
        parts = ([[(module, part)] for part in item[keep].split(sizes)] for item in (other, images))
        found = pair_moments(*parts, weights, sampling, **how)
        assert found is not None
        return found

    whole, halved = moments(slice(None), 7), moments(slice(None), 3, halved=True)
    even, odd = halved.halves
    assert (whole.halves, even.rows + odd.rows) == ((), whole.rows)
    for name in ("gram", "target", "mean", "level", "power"):
        shares = (even.rows / whole.rows) * getattr(even, name) + (odd.rows / whole.rows) * getattr(odd, name)
        assert torch.allclose(getattr(halved, name), getattr(whole, name), rtol=1e-6, atol=1e-7)
        assert torch.allclose(shares, getattr(whole, name), rtol=1e-6, atol=1e-7)
    assert even.rows == 4 * whole.rows // 7  # images 0, 2, 4 and 6
    first = moments(slice(0, 1), 7, halved=True)
    assert first.halves == ()


@pytest.mark.parametrize("centred", [False, True])
def test_the_error_of_moments_is_the_error_of_the_outputs(centred: bool) -> None:
    module = nn.Conv2d(4, 6, 3, bias=False)
    before, now = input_for(module), input_for(module) + 0.2 * input_for(module, 1)
    old = module.weight.detach().double().reshape(1, 6, -1)
    new = old + 0.1 * torch.randn(old.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = pair_moments([[(module, now)]], [[(module, before)]], old, WindowSampling(1.0, 0))
    assert found is not None
    change = every_row(module, now).double() @ new.mT - every_row(module, before).double() @ old.mT
    change = change - change.mean(1, keepdim=True) if centred else change
    metric = found.centred() if centred else found
    assert torch.allclose(metric.error(new), change.square().mean(1), rtol=1e-4)


def test_equal_inputs_are_known_to_be_the_same() -> None:
    module = nn.Conv2d(4, 6, 3)
    images = input_for(module)
    weights = module.weight.detach().double().reshape(1, 6, -1)
    found = pair_moments([[(module, images)]], [[(module, images.clone())]], weights, WindowSampling(1.0, 0))
    assert found is not None
    assert found.same
    assert torch.equal(found.target, weights @ found.gram)


def test_positions_are_drawn_without_replacement_and_the_same_for_both_networks() -> None:
    image, place = WindowSampling(0.25, 7).places(5, 100, 3)
    again = WindowSampling(0.25, 7).places(5, 100, 3)
    assert torch.equal(place, again[1])
    assert image.bincount().tolist() == [25] * 5
    assert all(len(set(row)) == 25 for row in place.reshape(5, 25).tolist())
    assert not torch.equal(place, WindowSampling(0.25, 7).places(5, 100, 4)[1])


def test_sampling_gives_the_rows_of_the_rule() -> None:
    assert [rows_wanted(width) for width in (9, 27, 256, 4_608, 9_216)] == [
        16_384,
        16_384,
        32_768,
        65_536,
        92_160,
    ]
    use = trace(nn.Sequential(nn.Conv2d(3, 2, 3)), torch.zeros(1, 3, 34, 34)).uses[0]
    assert use.positions == 1024
    assert sampling_for(use, 27, 160, 0).share == pytest.approx(0.1)
    assert sampling_for(use, 27, 8, 0).share == 1.0
    assert images_wanted(use, 27) == 128
    assert images_wanted(use, 576) == 256


# ---------------------------------------------------------------- the forward pass


def test_a_trace_names_layers_in_order_with_calls_and_the_norm_they_alone_feed() -> None:
    model, images = winding()
    uses = {use.name: use for use in trace(model, images).uses}
    assert list(uses) == ["stem.0", "twice", "left", "last.0"]
    assert [use.calls for use in uses.values()] == [1, 2, 2, 1]
    assert [use.norm for use in uses.values()] == ["stem.1", "norm", None, "last.1"]
    assert uses["last.0"].positions == 36


def keeping(found: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, inputs: found.append(inputs[0].clone())


@pytest.mark.parametrize("kept_bytes", [0, 2_000, 1 << 30])
def test_a_replay_hands_out_what_each_layer_really_sees(kept_bytes: int) -> None:
    model, images = winding()
    traced = trace(model, images[:2])
    replay = Replay(model, traced, images.split(4), Shelf(kept_bytes))
    for use in traced.uses:
        expected: list[Tensor] = []
        twins = [model.left, model.right] if use.name == "left" else [model.get_submodule(use.name)]
        handles = [m.register_forward_pre_hook(keeping(expected)) for m in twins]  # type: ignore[union-attr]
        for batch in images.split(4):
            model(batch)
        for handle in handles:
            handle.remove()
        got = [item for batch in replay.inputs_of(use) for _, item in batch]
        assert len(got) == len(expected) == 2 * use.calls
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        with torch.no_grad():  # what is changed once visited shows in the layers after it
            model.get_submodule(use.name).weight.mul_(1.1)  # type: ignore[operator, union-attr]


def test_a_replay_does_not_run_finished_modules_again() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(4))).eval()
    images = torch.randn(2, 3, 6, 6)
    traced = trace(model, images)
    replay = Replay(model, traced, [images])
    runs: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda *_, name=name: runs.append(name))
    for use in traced.uses:
        list(replay.inputs_of(use))
    assert runs == ["0.1", "1.1", "2.1"]
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_network_that_refuses_the_images_is_one_line() -> None:
    with pytest.raises(KernelsimpError) as caught:
        trace(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(2, 1, 8, 8))
    words = str(caught.value)
    assert words.startswith(
        "the network cannot take images 1 x 8 x 8: Given groups=1, weight of size [4, 3, 3, 3]"
    )
    assert words.endswith("see --input-size, --crop and --channels")
    assert "\n" not in words


def test_a_network_is_at_no_distance_from_itself() -> None:
    model, images = winding()
    distance = DistanceJudge(model, images.split(4)).distance(model)
    assert distance.divergence == 0
    assert distance.agreement == 1


def test_distance_is_kl_and_agreement() -> None:
    first, second = (
        nn.Sequential(nn.Flatten(), nn.Linear(12, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(12, 4)),
    )
    images = torch.randn(10, 3, 2, 2)
    found = DistanceJudge(first, images.split(3)).distance(second)
    p, q = (model(images).double().softmax(1).detach() for model in (first, second))
    assert found.divergence == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-6)
    assert found.agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))


def test_distance_of_other_networks_is_the_relative_output_error() -> None:
    first, second = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)
    images = torch.randn(4, 3, 6, 6)
    found = DistanceJudge(first, [images]).distance(second)
    expected = ((second(images) - first(images)).norm() / first(images).norm()).item()
    assert found.divergence == pytest.approx(expected, rel=1e-5)
    assert found.agreement is None
