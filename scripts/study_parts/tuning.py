"""How the study tunes what is not simplified: one short schedule, the same for every arm and network."""

import copy
from typing import Any

from torch import nn

from kernelsimp.records.plan import Plan
from kernelsimp.settings import FinetuneSettings, RunSettings, Settings
from kernelsimp.training.finetune import finetune
from kernelsimp.training.hold import hold, release
from kernelsimp.training.job import job_of

TUNING = FinetuneSettings(finetune=True, epochs=3, lr=0.003, distill=1.0, log="none")
"""The recipe of the CIFAR-10 ResNets takes 12 epochs and CutMix."""


def tuned(ground: Any, model: nn.Module, plan: Plan | None, seed: int) -> nn.Module:
    """Return a copy that the original has taught, every simplified kernel held at its values.

    `ground` is the original with its training images, as `bench_simplify` has them.
    """
    student, run = copy.deepcopy(model), RunSettings(seed=seed, device="cpu")
    settings = Settings(data=ground.settings, finetune=TUNING, run=run)
    if plan is not None:
        hold(student, plan, "freeze")
    finetune(student, job_of(ground.data, settings, copy.deepcopy(ground.model)), TUNING)
    release(student)
    return student.eval()
