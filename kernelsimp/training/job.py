"""What settings and data mean for a fine-tuning run: which images, in which order, judged on which."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from kernelsimp.data.sources import Data
from kernelsimp.data.transforms import Batches, batches, epoch_seed, preprocess_of
from kernelsimp.errors import KernelsimpError
from kernelsimp.models.network import device_of
from kernelsimp.records.plan import Plan
from kernelsimp.settings import Settings
from kernelsimp.training.finetune import FinetuneJob, Shard
from kernelsimp.training.ranks import processes

MOST_WORKERS = 8
"""Threads that load images for a GPU, at most, where the settings name no number."""


def job_of(
    data: Data,
    settings: Settings,
    teacher: nn.Module | None,
    plan: Plan | None = None,
    folder: Path | None = None,
) -> FinetuneJob:
    """Return what to train on: the training split, judged on the validation split.

    `plan` is needed for a soft hold, `folder` for a state to resume from. Raises `KernelsimpError` for
    targets that are no classes.
    """
    if data.train.labels.ndim > 1:
        found = f"labels have shape {tuple(data.train.labels.shape)}"
        raise KernelsimpError(f"{data.name}: {found}; training takes one class an image")
    return FinetuneJob(
        train=lambda epoch, shard: epoch_batches(data, settings, epoch, shard),
        val=batches(
            data.val, preprocess_of(settings.data), settings.data.batch_size, **loading_of(settings, 0)
        ),
        teacher=teacher,
        device=str(device_of(settings)),
        seed=settings.run.seed,
        plan=plan,
        folder=folder,
        images=f"{len(data.train)} images, {data.fingerprint}",
        words=asdict(settings.data),
    )


def few_to_judge(data: Data) -> str | None:
    """Return a warning where the validation split is too small to choose an epoch by."""
    count = len(data.val)
    if count == 0 or count >= data.classes:
        return None
    return (
        f"the validation split has {count} images for {data.classes} classes: too few to choose the best"
        " epoch by; give it more images, see --split"
    )


def epoch_batches(data: Data, settings: Settings, epoch: int, shard: Shard = (0, 1)) -> Batches:
    """Return the augmented training batches of one epoch, the same for the same seed and epoch."""
    seed = settings.run.seed
    return batches(
        data.train,
        preprocess_of(settings.data),
        settings.data.batch_size,
        shuffle_seed=epoch_seed(seed, epoch, "order"),
        augment_seed=epoch_seed(seed, epoch, "augment"),
        shard=shard,
        **loading_of(settings, settings.data.workers),
    )


def loading_of(settings: Settings, workers: int) -> dict[str, Any]:
    """Return how batches are loaded: by `workers` threads; for a GPU into pinned memory, by one at least."""
    if device_of(settings).type != "cuda":
        return {"workers": workers}
    share = (os.cpu_count() or 1) // processes(settings.finetune)[0]
    return {"workers": settings.data.workers or max(1, min(MOST_WORKERS, share)), "pinned": True}
