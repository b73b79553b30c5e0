"""A figure of the user's own in place of accuracy: any network, any output, higher is better."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernelsimp.error_text import kind_and_words
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import evaluation_mode
from kernelsimp.files import user_function
from kernelsimp.settings import Settings


@dataclass(frozen=True, eq=False)
class UserMetric:
    """The callable of `--metric file.py:callable`, called as `function(model, batches)`.

    `batches` is an iterable of (images, labels) on the network's device that may be gone through again.
    """

    name: str
    function: Callable[..., Any]

    def __call__(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Return the figure, with the network in evaluation mode and without gradients.

        Raises `KernelsimpError` where the callable raises, or gives no finite number.
        """
        with evaluation_mode(model), torch.no_grad():
            try:
                value = self.function(model, batches)
            except Exception as error:  # the user's code
                raise KernelsimpError(
                    f"--metric {self.name}: {kind_and_words(error, 200)}; mend the function"
                ) from error
        try:
            figure = float(value)
        except (TypeError, ValueError) as error:
            found = type(value).__name__
            raise KernelsimpError(f"--metric {self.name}: returned a {found}; expected a number") from error
        if not math.isfinite(figure):
            raise KernelsimpError(f"--metric {self.name}: returned {figure}; expected a finite number")
        return figure


def load_metric(spec: str) -> UserMetric:
    """Return the metric that `file.py:callable` names.

    Raises `KernelsimpError` for another form, a missing file or function, and a file that raises.
    """
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise KernelsimpError(f"--metric is '{spec}'; expected file.py:callable")
    return UserMetric(spec, user_function(spec))


def metric_of(settings: Settings) -> UserMetric | None:
    """Return the user's metric, if one is named."""
    return load_metric(settings.plan.metric) if settings.plan.metric is not None else None
