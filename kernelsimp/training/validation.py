"""Choosing the best epoch, by the validation split alone.

A checkpoint's own training images, or images near them, say little by accuracy: where the original is
right on 99 % of the validation split or more, epochs are ranked by KL(original || network) there, else
by cross-entropy. Both are nats an image, less is better.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernelsimp.batch_limit import BatchLimit
from kernelsimp.evaluation.accuracy import evaluation_mode, wilson
from kernelsimp.evaluation.divergence import divergence, is_memorised
from kernelsimp.evaluation.outputs import scores_of

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Mark:
    """How a network did on the validation split: percent right of `total` images, and nats an image."""

    top1: float
    loss: float
    divergence: float | None
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy, in percent."""
        return wilson(round(self.top1 * self.total / 100), self.total)


class EpochJudge:
    """Marks networks on one validation split, in evaluation mode and full precision.

    `limit` says how many images go through a network at once.
    """

    def __init__(
        self,
        batches: Batches,
        teacher: nn.Module | None,
        device: torch.device,
        limit: BatchLimit | None = None,
    ) -> None:
        self._batches, self._device, self._limit = batches, device, limit or BatchLimit()
        self._teacher: list[Tensor] | None = None
        self.rule = "validation loss"
        self.penalty: Callable[[float], Tensor] | None = None
        if teacher is not None:
            answers = list(self._outputs(teacher))
            self._teacher = [logits for logits, _ in answers]
            right = [logits.argmax(1) == labels for logits, labels in answers]
            if right and is_memorised(100 * float(torch.cat(right).double().mean())):
                self.rule = "divergence from the original on validation images"

    def mark(self, model: nn.Module) -> Mark | None:
        """Return the mark of `model`, or None where the validation split is empty."""
        right, loss, apart, total = 0, 0.0, 0.0, 0
        for index, (logits, labels) in enumerate(self._outputs(model)):
            count = len(labels)
            right += int((logits.argmax(1) == labels).sum())
            loss += count * float(F.cross_entropy(logits, labels))
            if self._teacher is not None:
                apart += count * float(divergence(self._teacher[index], logits))
            total += count
        if not total:
            return None
        distance = apart / total if self._teacher is not None else None
        return Mark(100 * right / total, loss / total, distance, total)

    def score(self, mark: Mark) -> float:
        """Return the number that ranks epochs: less is better; a penalty on weights counts in full."""
        by_teacher = self.rule != "validation loss" and mark.divergence is not None
        figure = mark.divergence if by_teacher and mark.divergence is not None else mark.loss
        if self.penalty is None:
            return figure
        with torch.no_grad():
            return figure + float(self.penalty(1.0))

    def _outputs(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (logits, labels) of the validation batches, the logits in float32."""

        def scores(images: Tensor) -> Tensor:
            return scores_of(model(images.to(self._device, non_blocking=True))).float()

        with evaluation_mode(model), torch.no_grad():
            for images, labels in self._batches:
                yield torch.cat(self._limit.in_parts(scores, images)), labels.to(self._device)
