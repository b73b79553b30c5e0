"""Fine-tuning a small network on bars that stand or lie: what the tests of training share."""

from dataclasses import replace

import torch
from held import plan_for, simplified
from torch import nn

from kernelsimp.settings import FinetuneSettings
from kernelsimp.training.finetune import FinetuneJob
from kernelsimp.training.hold import hold

PLAIN = FinetuneSettings(epochs=3, lr=0.05, distill=0.0)
FULL = replace(
    PLAIN, epochs=4, lr=0.02, save_every=0.0, ema=0.9, warmup=0.5, clip=1.0, accumulate=2, distill=0.3
)
VARIANTS = {
    "sgd": FULL,
    "adamw": replace(FULL, optimizer="adamw", accumulate=1, schedule="one-cycle", mixup=0.5, cutmix=0.5),
    "soft": replace(FULL, soft=5.0, ema=None),
}


def bar_net(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 2),
    )


def bars(seed, batches=4, size=8):
    """Bars that stand (0) or lie (1), in noise."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(batches):
        labels = torch.randint(0, 2, (size,), generator=generator)
        picture = torch.randn(size, 1, 6, 6, generator=generator) * 0.5
        picture[labels == 0, :, :, 2] += 2
        picture[labels == 1, :, 2, :] += 2
        result.append((picture, labels))
    return result


def job(**changes):
    usual = FinetuneJob(train=lambda epoch, shard: bars(epoch), val=bars(100), device="cpu")
    return replace(usual, **changes)


def prepared(variant):
    """Return a network held as one of VARIANTS wants it, and its plan."""
    model = bar_net(dropout=0.2)
    plan = plan_for(model)
    simplified(model, plan)
    if variant != "soft":
        hold(model, plan, "tie" if variant == "adamw" else "freeze")
    return model, plan


def values_of(model):
    return [value.clone() for value in model.state_dict().values()]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
