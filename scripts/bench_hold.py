"""Measure what a hold costs: the time of a training step with it over that without it.

    python scripts/bench_hold.py                         ResNet-20 and ResNet-50 at their usual sizes
    python scripts/bench_hold.py --networks layer:256 layer:512      3x3 layers of ResNet-50 alone
    python scripts/bench_hold.py --networks layer:512 --images 32    a smaller batch than its recipe's
    python scripts/bench_hold.py --families all                      templates, rank and few values as well
    python scripts/bench_hold.py --device cuda --precision bf16-mixed

On the CPU it is processor time of one thread, so a busy machine does no harm; on a GPU wall time after
synchronising. Steps of all arms take turns; the figure is the median of paired ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.kernels.families import SEVENTEEN, offered_families
from kernelsimp.kernels.structures import Templated, expand, kernel_sets
from kernelsimp.models.architectures import build_model
from kernelsimp.models.layers import bank_from_model
from kernelsimp.records.plan import SHAPES, LayerPlan, Plan
from kernelsimp.solver.candidates import linear_names
from kernelsimp.training.hold import hold, projections

ARMS = ("freeze", "tie", "scale")
NETWORKS = {"zoo:resnet20": (128, 32), "torchvision:resnet50": (8, 224)}
USUAL = (8, 224)
"""Images a step and their side: of the networks that are measured where none is named, and of any other."""
LAYERS = {"layer:256": (256, 14), "layer:512": (512, 7)}
"""Channels in and out, and the side of the maps, of the layers that hold most of ResNet-50's kernels."""
LAYER_IMAGES = 128
"""As many as the recipe of ResNet-50 takes: what a hold adds does not grow with the batch."""


class Layer(nn.Module):
    """One 3x3 convolution on its own input, (n, channels, side, side) -> (n, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.conv(maps)).relu().mean((2, 3))


def built(spec: str) -> nn.Module:
    """Return the network, or the layer, of this name."""
    return Layer(LAYERS[spec][0]) if spec in LAYERS else build_model(spec)


def inputs(spec: str, device: str, count: int | None) -> Tensor:
    """Return a batch of noise; a layer's asks for gradients, as it does inside a network."""
    if spec in LAYERS:
        channels, side = LAYERS[spec]
        return torch.randn(count or LAYER_IMAGES, channels, side, side, device=device, requires_grad=True)
    size, side = NETWORKS.get(spec, USUAL)
    return torch.randn(count or size, 3, side, side, device=device)


def random_plan(model: nn.Module, share: float, families: tuple[str, ...] = SEVENTEEN) -> Plan:
    """Return a plan that gives `share` of all kernels larger than 1x1 one of `families` at random."""
    dice = np.random.default_rng(0)
    spatial = bank_from_model(model).spatial
    names = {layer.grid: names_at(layer.grid, families) for layer in spatial}
    structures = ["free", *dict.fromkeys(name for here in names.values() for name in here)]
    layers = []
    for layer in spatial:
        shape = tuple(layer.kernels.shape[:2])
        here = [structures.index(name) for name in names[layer.grid]]
        choice = np.where(dice.random(shape) < share, dice.choice(here, shape), 0).astype(np.int16)
        none, dims = np.zeros(shape, bool), np.zeros(len(structures), np.int16)
        residual, shapes = np.zeros(shape, np.float32), shapes_of(layer, choice, structures)
        about = (layer.name, layer.kind, layer.groups, layer.grid)
        layers.append(LayerPlan(*about, choice, none, none, residual, dims, {SHAPES: shapes}))
    return Plan(tuple(structures), tuple(layers))


def names_at(grid: tuple[int, ...], families: tuple[str, ...]) -> list[str]:
    """Return the structures, of those called `families`, that kernels of this grid can have."""
    linear = [item.name for item in offered_families(grid, linear_names(families))]
    return linear + [item.name for item in kernel_sets(grid) if item.name in expand(families)]


def shapes_of(layer: LayerKernels, choice: NDArray[np.int16], structures: list[str]) -> NDArray[np.float32]:
    """Return the shape parameters of the kernels that are to be templates: those that fit them best."""
    shapes = np.zeros((*choice.shape, 4), np.float32)
    for item in kernel_sets(layer.grid):
        if isinstance(item, Templated) and item.name in structures:
            mask = choice == structures.index(item.name)
            found = item.shapes_of(layer.kernels.detach()[torch.from_numpy(mask)])
            shapes[mask, : found.shape[1]] = found.numpy()
    return shapes


def stepper(model: nn.Module, batch: tuple[Tensor, Tensor], precision: str) -> Callable[[], None]:
    """Return one step of SGD with momentum on `batch`."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3, momentum=0.9)
    images, labels = batch

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        images.grad = None
        loss.backward()
        optimizer.step()

    return step


def arms(spec: str, share: float, device: str, families: tuple[str, ...]) -> dict[str, nn.Module]:
    """Return the network without a hold, and with each."""
    result: dict[str, nn.Module] = {}
    for arm in ("none", *ARMS):
        torch.manual_seed(0)
        model = built(spec).to(device).train()
        plan = random_plan(model, share, families)
        with torch.no_grad():
            for weight, tied in projections(model, plan):
                weight.copy_(tied.project(weight))
        if arm != "none":
            hold(model, plan, arm)  # type: ignore[arg-type]
        result[arm] = model
    return result


def seconds(step: Callable[[], None], device: str) -> float:
    """Return what one step takes."""
    if device == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass(frozen=True)
class StepTimes:
    """Seconds of each arm's steps, which took turns, of `images` images of `side` pixels."""

    images: int
    side: int
    taken: Mapping[str, Sequence[float]]

    @property
    def free(self) -> float:
        """The median seconds of a step without a hold."""
        return statistics.median(self.taken["none"])

    @property
    def per_second(self) -> float:
        """Images a second without a hold."""
        return self.images / self.free

    def ratios(self, arm: str) -> list[float]:
        """Return the time of each step over that of the free one beside it."""
        return [held / free for held, free in zip(self.taken[arm], self.taken["none"], strict=True)]

    def ratio(self, arm: str) -> float:
        """Return the median of these."""
        return statistics.median(self.ratios(arm))


def measure(
    spec: str,
    device: str,
    precision: str,
    share: float,
    *,
    families: tuple[str, ...] = SEVENTEEN,
    images: int | None = None,
    steps: int = 9,
) -> StepTimes:
    """Let the arms of a network take turns, after one step each that warms up."""
    shown = inputs(spec, device, images)
    batch = (shown, (torch.arange(len(shown)) % 10).to(device))
    models = arms(spec, share, device, families)
    work = {arm: stepper(model, batch, precision) for arm, model in models.items()}
    taken: dict[str, list[float]] = {arm: [] for arm in work}
    for turn in range(steps + 1):
        for arm, step in work.items():
            now = seconds(step, device)
            if turn:
                taken[arm].append(now)
    return StepTimes(len(shown), shown.shape[-1], taken)


def main() -> None:
    """Print one line a network and hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--share", type=float, default=0.9, help="share of kernels that are held")
    parser.add_argument("--families", default="seventeen", help="what kernels are held in, comma-separated")
    parser.add_argument("--images", type=int, help="images a step")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    families = tuple(options.families.split(","))
    for spec in options.networks:
        found = measure(
            spec,
            options.device,
            options.precision,
            options.share,
            families=families,
            images=options.images,
            steps=options.steps,
        )
        about = f"{spec}, {found.images} images of {found.side} x {found.side}"
        print(f"{about}: {found.free:.3f} s a step, {found.per_second:.1f} images/s")
        for arm in ARMS:
            ratios = found.ratios(arm)
            print(f"  {arm:<7} {found.ratio(arm):.3f} times that ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
