"""The soft hold: kernels are drawn towards their structure, ever harder, and put into it at the end.

The penalty rho * ||(I - P) w||^2 is applied as an exact proximal step after each step of the optimiser,
w <- P w + (w - P w) / (1 + 2 lr rho): stable for every rho, and no momentum carries it on. Source: Parikh
and Boyd, Proximal algorithms, 2014.
"""

import torch
from torch import nn

from kernelsimp.records.plan import Plan
from kernelsimp.training.hold import projections


class Pull:
    """Draws the weights of `model` towards `plan`; `rho` is reached at the last step."""

    def __init__(self, model: nn.Module, plan: Plan, rho: float) -> None:
        self._rho = rho
        self._parts = projections(model, plan)

    @torch.no_grad()
    def step(self, lr: float, progress: float) -> None:
        """Shrink what is outside the structure; `progress` runs from 0 to 1 over the whole training."""
        shrink = 1 / (1 + 2 * lr * self._rho * progress)
        for weight, tied in self._parts:
            inside = tied.project(weight)
            weight.copy_(inside + shrink * (weight - inside))

    @torch.no_grad()
    def snap(self) -> None:
        """Write every kernel into its structure, exactly."""
        for weight, tied in self._parts:
            weight.copy_(tied.project(weight))

    @torch.no_grad()
    def outside(self) -> float:
        """Return ||(I - P) w|| / ||w|| over all layers of the plan."""
        left = sum(float((weight - tied.project(weight)).square().sum()) for weight, tied in self._parts)
        whole = sum(float(weight.square().sum()) for weight, _ in self._parts)
        return (left / whole) ** 0.5 if whole else 0.0
