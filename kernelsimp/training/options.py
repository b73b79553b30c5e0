"""What the settings of a fine-tuning run may be, and the optimiser they ask for."""

import math

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.settings import FinetuneSettings, Settings
from kernelsimp.training.schedule import SCHEDULES

PRECISIONS = {"32-true": "32-true", "tf32": "32-true", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}
"""What a training step may be calculated in, and what Fabric calls it: to it TF32 is float32."""

CPU = torch.device("cpu")


def check_settings(settings: FinetuneSettings) -> None:
    """Raise `KernelsimpError` for the first setting that makes no sense."""
    for name, known in (
        ("optimizer", ("sgd", "adamw")),
        ("schedule", SCHEDULES),
        ("batch_norm", ("train", "eval", "re-estimate")),
        ("strategy", ("auto", "ddp")),
        ("precision", PRECISIONS),
    ):
        value = getattr(settings, name)
        if value not in known:
            raise KernelsimpError(f"unknown {_spell(name)} '{value}'{did_you_mean(value, known)}")
    for name, (valid, expected) in _ranges(settings).items():
        if not valid:
            raise KernelsimpError(f"{_spell(name)} is {getattr(settings, name)}; expected {expected}")


def check_precision(precision: str, accelerator: str) -> None:
    """Raise `KernelsimpError` where an accelerator, `cpu` or `cuda`, cannot do a precision."""
    if accelerator == "cpu" and precision in ("tf32", "16-mixed"):
        raise KernelsimpError(f"precision {precision} needs a GPU; on the CPU use bf16-mixed or 32-true")
    if accelerator != "cuda":
        return
    if precision == "bf16-mixed" and not torch.cuda.is_bf16_supported(including_emulation=False):
        lacks = "bfloat16"
    elif precision == "tf32" and not torch.cuda.is_tf32_supported():
        lacks = "TF32"
    else:
        return
    name = torch.cuda.get_device_name()
    raise KernelsimpError(f"precision {precision}: {name} has no {lacks}; use 16-mixed or 32-true")


def _spell(name: str) -> str:
    return name.replace("_", "-")


def _ranges(settings: FinetuneSettings) -> dict[str, tuple[bool, str]]:
    return {
        "epochs": (settings.epochs >= 1, "1 or more"),
        "lr": (0 < settings.lr < math.inf, "greater than 0"),
        "distill": (0 <= settings.distill <= 1, "0..1"),
        "label_smoothing": (0 <= settings.label_smoothing < 1, "0 or more and less than 1"),
        "mixup": (0 <= settings.mixup < math.inf, "0 or more"),
        "cutmix": (0 <= settings.cutmix < math.inf, "0 or more"),
        "temperature": (0 < settings.temperature < math.inf, "greater than 0"),
        "accumulate": (settings.accumulate >= 1, "1 or more"),
        "momentum": (0 <= settings.momentum < 1, "0 or more and less than 1"),
        "weight_decay": (0 <= settings.weight_decay < math.inf, "0 or more"),
        "warmup": (0 <= settings.warmup < math.inf, "0 or more epochs"),
        "clip": (settings.clip is None or settings.clip > 0, "greater than 0"),
        "patience": (settings.patience is None or settings.patience >= 1, "1 or more epochs"),
        "soft": (settings.soft is None or 0 < settings.soft < math.inf, "greater than 0"),
        "ema": (settings.ema is None or 0 <= settings.ema < 1, "0 or more and less than 1"),
        "save_every": (settings.save_every is None or settings.save_every >= 0, "0 or more minutes"),
        "devices": (settings.devices >= 1, "1 or more"),
        "num_nodes": (settings.num_nodes >= 1, "1 or more"),
    }


def make_optimizer(model: nn.Module, settings: FinetuneSettings, device: torch.device = CPU) -> Optimizer:
    """Return SGD or AdamW over what takes gradients; vectors (norms, biases) get no weight decay.

    On a GPU a step is one kernel; with 16-mixed it is not, for Fabric cannot clip what unscales itself.
    """
    fused = True if device.type == "cuda" and settings.precision != "16-mixed" else None
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in free if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in free if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return AdamW(groups, lr=settings.lr, fused=fused)
    return SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=fused)


def hold_of(settings: Settings) -> str:
    """Return what is held: freeze (values, the usual), tie, scale, soft or none.

    Raises `KernelsimpError` for another word, and for settings that contradict each other.
    """
    chosen = settings.finetune
    if chosen.hold not in ("auto", "freeze", "tie", "none"):
        raise KernelsimpError(f"--hold is '{chosen.hold}'; expected freeze, tie or none")
    if chosen.free_scale and chosen.hold != "tie":
        raise KernelsimpError("--free-scale goes with --tie: a frozen kernel has no free scale")
    if chosen.soft is not None and chosen.hold not in ("auto", "none"):
        raise KernelsimpError(f"--soft pulls where --{chosen.hold} holds: choose one")
    if chosen.soft is not None:
        return "soft"
    return "scale" if chosen.free_scale else chosen.hold.replace("auto", "freeze")
