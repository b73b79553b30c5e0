"""Do on the pretend device what runs on a GPU, and print as JSON which answers differ from the CPU's.

A process of its own: torch asks a registered device many things that a pretended one has no answer to.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pretend_device
import torch
from held import made, plan_for, simplified
from lightning_fabric import Fabric
from lightning_fabric.accelerators.cpu import CPUAccelerator
from lightning_fabric.strategies.single_device import SingleDeviceStrategy
from networks import network, smooth_images
from pretend_device import DEVICE
from solving import HALF, solve
from torch import Tensor, nn
from tuning import PLAIN, bar_net, bars, job

from kernelsimp.analysis.compare import ComparedPair, compare
from kernelsimp.data.images import Geometry
from kernelsimp.data.splits import Data, Split
from kernelsimp.data.stores import ArrayStore
from kernelsimp.data.transforms import Preprocess
from kernelsimp.evaluation.accuracy import measure
from kernelsimp.evaluation.robustness import assess
from kernelsimp.evaluation.stability import Bench
from kernelsimp.models.layers import bank_from_model
from kernelsimp.settings import CompareSettings, FinetuneSettings, RobustnessSettings
from kernelsimp.solver import moments
from kernelsimp.solver.coding_search import prepare_ground
from kernelsimp.solver.coding_walk import code_network
from kernelsimp.solver.solve import Solution, calibrated_network
from kernelsimp.training import engine
from kernelsimp.training.engine import Engine
from kernelsimp.training.finetune import finetune
from kernelsimp.training.hold import hold, verify
from kernelsimp.training.penalties import PENALTIES, Penalties

CPU = torch.device("cpu")


def batches(device: torch.device, count: int = 48) -> list[Tensor]:
    return [batch.to(device) for batch in smooth_images(count).split(16)]


def labelled(device: torch.device) -> list[tuple[Tensor, Tensor]]:
    return [(batch, (batch.mean((1, 2, 3)) > 0).long()) for batch in batches(device)]


def solution_on(device: torch.device) -> Solution:
    calibrated = calibrated_network(
        network().to(device), bank_from_model(network()), batches(device), 0, flip=True
    )
    return solve(calibrated, HALF)


def solved(device: torch.device) -> list[Any]:
    """Return the plan, and how far all is from what the CPU comes to, which multiplies in float64."""
    found, usual = solution_on(device), solution_on(CPU)
    far = max(
        float((found.tensors[name] - item).norm() / item.norm()) for name, item in usual.tensors.items()
    )
    apart = abs(found.best.distance.divergence / usual.best.distance.divergence - 1)
    return [[layer.choice for layer in found.plan.layers], far < 1e-5, apart < 1e-4]


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


class PretendAccelerator(CPUAccelerator):
    """The accelerator that Fabric is told of: it wants to know nothing of the device."""

    def setup_device(self, device: torch.device) -> None:
        """Take any device."""


class PretendEngine(Engine):
    """The engine of training, which also goes on the pretend device."""

    def __init__(self, device: str, settings: FinetuneSettings) -> None:
        super().__init__("cpu", settings)
        if device != "cpu":
            self.fabric = Fabric(strategy=SingleDeviceStrategy(DEVICE, accelerator=PretendAccelerator()))


@dataclass(frozen=True, eq=False)
class Steps:
    """Batches of an epoch; `seen` is what the steps after the first one waited for, before the last one."""

    batches: list[tuple[Tensor, Tensor]]
    seen: Counter[str]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index, batch in enumerate(self.batches):
            if index == 1:  # a loss is read at the first of fifty
                pretend_device.waits.clear()
            if index + 1 == len(self.batches):
                self.seen.update(+pretend_device.waits)
            yield batch


def fine_tuned(
    device: torch.device,
    mode: Any,
    *,
    taught: bool = False,
    planted: Callable[[Tensor], object] | None = None,
    penalties: Mapping[str, float] | None = None,
) -> tuple[nn.Module, Counter[str]]:
    """Train a held network for two steps and two more, and return it with what these two waited for."""
    model, seen = bar_net(), Counter[str]()
    plan = plan_for(model)
    hold(simplified(model, plan), plan, mode)

    def hook(module: nn.Module, _: object, made: Tensor) -> None:
        if planted is not None and module.training:
            planted(made.detach())

    model[1].register_forward_hook(hook)
    teacher = bar_net(seed=1).eval() if taught else None
    work = job(train=lambda epoch, shard: Steps(bars(epoch), seen), teacher=teacher, device=str(device))
    if penalties is not None:
        work = replace(work, penalty=Penalties(model, penalties))
    finetune(model, work, replace(PLAIN, epochs=1, clip=1.0, ema=0.9, distill=0.5))
    return model, seen


def tuned(device: torch.device, mode: Any) -> list[Any]:
    model, _ = fine_tuned(device, mode, taught=True)
    verify(model)
    return [model(bars(7)[0][0].to(device)).detach().to("cpu")]


PLANTED: dict[str, Callable[[Tensor], object]] = {
    "item": lambda made: made.sum().item(),
    "truth": lambda made: bool(made.sum() > 0),
    "copy": lambda made: made.cpu(),
    "copy there": lambda made: torch.ones(3).to(made.device),
    "number there": lambda made: torch.tensor(3.0, device=made.device),
    "mask": lambda made: made[made > 0],
    "places": lambda made: made.nonzero(),
}
"""Ways to have the host wait for the device."""


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
    "fine-tuning, freeze": lambda device: tuned(device, "freeze"),
    "fine-tuning, scale": lambda device: tuned(device, "scale"),
    "accuracy": measured,
    "robustness": robust,
    "comparison": compared,
}


def left_behind(call: Any, image: Tensor, place: Tensor) -> Tensor:
    """Read windows as `moments.rows_of` does, with places that stay on the CPU: a planted fault."""
    view = moments.windows(call)
    taken = view.movedim(1, 3)[(image, *torch.unravel_index(place, view.shape[2:4]))].float()
    return taken.reshape(len(image), call[0].groups, -1).transpose(0, 1).contiguous()


def fault_of(work: Callable[[], Any]) -> str:
    """Return what was raised, the empty text where nothing was."""
    try:
        work()
    except RuntimeError as error:
        return str(error)
    return ""


def main() -> None:
    engine.Engine = PretendEngine  # type: ignore[misc]
    found = {name: str(work(DEVICE)) == str(work(CPU)) for name, work in WORK.items()}
    said = {"a network": fault_of(lambda: nn.Conv2d(3, 4, 3)(torch.zeros(1, 3, 5, 5, device=DEVICE)))}
    moments.rows_of = left_behind
    said["places, on the CPU"] = fault_of(lambda: solution_on(CPU))
    said["places"] = fault_of(lambda: solution_on(DEVICE))
    waits = {
        f"{mode}, {'taught' if taught else 'not taught'}": fine_tuned(DEVICE, mode, taught=taught)[1]
        for mode in ("freeze", "scale")
        for taught in (True, False)
    }
    waits["tie, penalties"] = fine_tuned(DEVICE, "tie", penalties=dict.fromkeys(PENALTIES, 0.1))[1]
    planted = {
        name: sum(fine_tuned(DEVICE, "freeze", planted=fault)[1].values()) for name, fault in PLANTED.items()
    }
    print(json.dumps({"same": found, "said": said, "waits": waits, "planted": planted}))  # noqa: T201


if __name__ == "__main__":
    main()
