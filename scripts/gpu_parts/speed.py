"""How fast the device is: held steps beside free ones, a training step and its waits, survey and re-solve."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import bench_hold
import torch

from gpu_parts.place import Answer
from gpu_parts.step_profile import profile_training
from kernelsimp.data.images import Geometry
from kernelsimp.data.splits import Data, Split
from kernelsimp.data.stores import ArrayStore
from kernelsimp.kernels.families import SEVENTEEN
from kernelsimp.memory import Room
from kernelsimp.models.architectures import build_model
from kernelsimp.models.layers import bank_from_model
from kernelsimp.settings import DataSettings, FinetuneSettings, PlanSettings, RunSettings, Settings
from kernelsimp.solver.plan_builder import chooser
from kernelsimp.solver.solve import calibrated_network, solve_at_budget, survey_layers

SHARE, BATCH = 0.9, 64
"""The share of kernels that are held, and the images a step."""


def held_step(network: str) -> Callable[[torch.device], Answer]:
    """Set the time of a held step beside that of a free one, in bf16 (goal 1.05)."""

    def measured(device: torch.device) -> Answer:
        taken = bench_hold.measure(network, str(device), "bf16-mixed", SHARE, images=BATCH)
        ratios = {arm: taken.ratio(arm) for arm in bench_hold.ARMS}
        words = ", ".join(f"{arm} {ratio:.3f}" for arm, ratio in ratios.items())
        figure = f"{taken.per_second:.0f} images/s, times a free step: {words} (goal 1.05)"
        return Answer(ok=True, figure=figure, numbers={"images_per_second": taken.per_second, **ratios})

    return measured


def training_step(device: torch.device, network: str = "torchvision:resnet50", side: int = 224) -> Answer:
    """Listen to steps of fine-tuning under `tie`, taught by the original, in bf16."""
    models = bench_hold.arms(network, SHARE, str(device), SEVENTEEN)
    images = torch.randint(0, 256, (256, 3, side, side), dtype=torch.uint8)
    store = ArrayStore(images, torch.arange(256) % 10)
    few = Split(store, range(BATCH), Geometry())
    data = Data("noise", Split(store, [place % 256 for place in range(32 * BATCH)], Geometry()), few, few, 10)
    settings = Settings(
        data=DataSettings(batch_size=BATCH),
        finetune=FinetuneSettings(precision="bf16-mixed"),
        run=RunSettings(device=str(device)),
    )
    figures = profile_training(models["tie"], models["none"], data, settings)
    return Answer(ok=True, figure=str(figures), numbers=asdict(figures))


def walk(device: torch.device, count: int = 1024) -> Answer:
    """Survey and re-solve ResNet-50 with random weights on noise at 224 pixels."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = build_model("torchvision:resnet50").to(device).eval()
    bank = bank_from_model(build_model("torchvision:resnet50"))
    batches = (torch.randn(64, 3, 224, 224, device=device) for _ in range(count // 64))
    settings = PlanSettings(dof=0.5, cost="absolute")
    with tempfile.TemporaryDirectory() as folder:
        calibrated = calibrated_network(model, bank, batches, 0, Room(20e9, 64, Path(folder)))
        start = time.perf_counter()
        surveyed = survey_layers(calibrated, settings)
        middle = time.perf_counter()
        solve_at_budget(surveyed, chooser(settings), settings.cost)
        end = time.perf_counter()
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else float("nan")
    numbers = {"survey_s": middle - start, "resolve_s": end - middle, "peak_gb": peak}
    times = f"survey {middle - start:.0f} s, re-solve {end - middle:.0f} s (goal 120 in all)"
    return Answer(ok=True, figure=f"{times}, peak {peak:.1f} GB", numbers=numbers)


SPEED: dict[str, Callable[[torch.device], Answer]] = {
    "held step": held_step("torchvision:resnet50"),
    "held step B0": held_step("torchvision:efficientnet_b0"),
    "training step": training_step,
    "ResNet-50": walk,
}
"""EfficientNet-B0 stands for Lite0: the same depthwise layers, with gates on channels and SiLU besides."""
