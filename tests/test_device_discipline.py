"""Everything that runs on a GPU, on a device that is none: the same answers, and no tensor left behind."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from held import made
from networks import network, smooth_images
from pretend_device import DEVICE
from solving import HALF, solve
from torch import Tensor, nn

from kernelsimp.analysis.compare import ComparedPair, compare
from kernelsimp.data.images import Geometry
from kernelsimp.data.splits import Data, Split
from kernelsimp.data.stores import ArrayStore
from kernelsimp.data.transforms import Preprocess
from kernelsimp.evaluation.accuracy import measure
from kernelsimp.evaluation.robustness import assess
from kernelsimp.evaluation.stability import Bench
from kernelsimp.models.layers import bank_from_model
from kernelsimp.settings import CompareSettings, RobustnessSettings
from kernelsimp.solver import moments
from kernelsimp.solver.coding_search import prepare_ground
from kernelsimp.solver.coding_walk import code_network
from kernelsimp.solver.solve import calibrated_network
from kernelsimp.training.hold import hold, verify

CPU = torch.device("cpu")


def batches(device: torch.device, count: int = 48) -> list[Tensor]:
    return [batch.to(device) for batch in smooth_images(count).split(16)]


def labelled(device: torch.device) -> list[tuple[Tensor, Tensor]]:
    return [(batch, (batch.mean((1, 2, 3)) > 0).long()) for batch in batches(device)]


def solved(device: torch.device) -> list[Any]:
    calibrated = calibrated_network(
        network().to(device), bank_from_model(network()), batches(device), 0, flip=True
    )
    solution = solve(calibrated, HALF)
    return [*sorted(solution.tensors.items()), solution.best.distance]


def coded(device: torch.device) -> list[Any]:
    coding = code_network(prepare_ground(network().to(device), batches(device), {}), 1e-4)
    assert coding.model is not None
    return [coding.bits, coding.model(batches(device)[0]).detach().to("cpu")]


def trained(device: torch.device, mode: Any) -> list[Any]:
    model, plan = made(seed=3)
    model.to(device)
    hold(model, plan, mode)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for batch in smooth_images(8).split(4):
        model(batch.to(device)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    verify(model)
    return [model(smooth_images(4).to(device)).detach().to("cpu")]


def measured(device: torch.device) -> list[Any]:
    return [measure(network().to(device), labelled(CPU), device).loss]


def robust(device: torch.device) -> list[Any]:
    drawn = (smooth_images(24) * 40 + 128).clamp(0, 255).to(torch.uint8)
    split = Split(ArrayStore(drawn, drawn.float().mean((1, 2, 3)).gt(128).long()), range(24), Geometry())
    settings = RobustnessSettings(images=16, corruptions=("fog",), noise_draws=1, pgd_steps=2)
    bench = Bench(Preprocess(), batch_size=7, device=device)
    return [asdict(assess({"a": network().to(device)}, Data("x", split, split, split, 4), bench, settings))]


def compared(device: torch.device) -> list[Any]:
    model, other = network(), network()
    with torch.no_grad():
        other.get_submodule("conv1").weight.mul_(0.5)
    pair = ComparedPair(model.to(device), other.to(device), batches(device), 48)
    return [asdict(compare(pair, CompareSettings()))]


WORK: dict[str, Callable[[torch.device], list[Any]]] = {
    "survey, choose, re-solve": solved,
    "coding": coded,
    "freeze": lambda device: trained(device, "freeze"),
    "tie": lambda device: trained(device, "tie"),
    "scale": lambda device: trained(device, "scale"),
    "accuracy": measured,
    "robustness": robust,
    "comparison": compared,
}


@pytest.mark.parametrize("name", WORK)
def test_another_device_gives_the_same_answer(name: str) -> None:
    assert str(WORK[name](DEVICE)) == str(WORK[name](CPU))


def test_a_tensor_made_on_the_wrong_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def left_behind(call: Any, image: Tensor, place: Tensor) -> Tensor:
        view = moments.windows(call)
        taken = view.movedim(1, 3)[(image, *torch.unravel_index(place, view.shape[2:4]))].float()
        return taken.reshape(len(image), call[0].groups, -1).transpose(0, 1).contiguous()

    monkeypatch.setattr(moments, "rows_of", left_behind)
    solved(CPU)
    with pytest.raises(RuntimeError, match="tensors on pretend:0 and cpu"):
        solved(DEVICE)


def test_a_network_left_behind_is_found() -> None:
    with pytest.raises(RuntimeError, match="tensors on pretend:0 and cpu"):
        nn.Conv2d(3, 4, 3)(torch.zeros(1, 3, 5, 5, device=DEVICE))
