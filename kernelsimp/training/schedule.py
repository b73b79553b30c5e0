"""The learning rate as a function of the step, so that a resumed run needs no schedule state.

Rates are multiples of the peak rate; steps count optimiser steps from 0.
"""

import math

from kernelsimp.settings import FinetuneSettings

SCHEDULES = ("cosine", "one-cycle", "constant")

_RISE = 0.3
_START, _END = 1 / 25, 1e-4


def rate(step: int, steps: int, epoch_steps: int, settings: FinetuneSettings) -> float:
    """Return the learning rate of `step` of `steps`, of which `epoch_steps` make an epoch."""
    if settings.schedule == "one-cycle":
        return settings.lr * _one_cycle(step / max(1, steps - 1))
    warm = min(round(settings.warmup * epoch_steps), steps - 1)
    if step < warm:
        return settings.lr * (step + 1) / (warm + 1)
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * _cosine_fall((step - warm) / (steps - warm))


def _cosine_fall(t: float) -> float:
    """Fall from 1 to 0 along half a cosine while `t` runs from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * t))


def _one_cycle(t: float) -> float:
    """Rise from 1/25 to 1 over the first 30 %, then fall to 1e-4 (Smith and Topin 2018)."""
    if t < _RISE:
        return _START + (1 - _START) * (1 - _cosine_fall(t / _RISE))
    return _END + (1 - _END) * _cosine_fall((t - _RISE) / (1 - _RISE))
