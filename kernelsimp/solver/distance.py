"""How far a simplified network has moved from the original one, on images that nothing was fitted to.

For a classifier: KL(original || simplified) in nats an image, and the share of images on which both give
the same answer. For any other network: the relative error of the output, and no agreement.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernelsimp.batch_limit import BatchLimit
from kernelsimp.evaluation.divergence import divergence
from kernelsimp.evaluation.outputs import class_scores
from kernelsimp.shelf import count_images
from kernelsimp.solver.fisher import output_tensors
from kernelsimp.solver.process_group import ALONE, ProcessGroup


@dataclass(frozen=True)
class Distance:
    """`divergence` is KL in nats, or a relative output error where `agreement` (0..1) is None."""

    divergence: float
    agreement: float | None


class DistanceJudge:
    """Remembers what the original network says about `images`, and compares others with it.

    With a `group`, `images` are this process's part of them, and distances are over those of all. `limit`
    says how many go through a network at once.
    """

    def __init__(
        self,
        original: nn.Module,
        images: Sequence[Tensor],
        group: ProcessGroup = ALONE,
        limit: BatchLimit | None = None,
    ) -> None:
        self.images, self.group, self.limit = images, group, limit or BatchLimit()
        self.answers = [_answers(original, batch, self.limit) for batch in images]
        self.count = count_images(images)

    def distance(self, model: nn.Module) -> Distance:
        """Return how far `model` is from the original network; NaN where there are no images."""
        if not self.count:
            return Distance(float("nan"), None)
        pairs = [
            (old, _answers(model, batch, self.limit))
            for old, batch in zip(self.answers, self.images, strict=True)
        ]
        if all(is_classifier(old) for old, _ in pairs):
            return self._as_classifier([(old[0], new[0]) for old, new in pairs])
        error = sum(
            float((n - o).square().sum()) for old, new in pairs for o, n in zip(old, new, strict=True)
        )
        whole = sum(float(o.square().sum()) for old, _ in pairs for o in old)
        error, whole = self.group.total([error, whole])
        return Distance((error / whole) ** 0.5 if whole else float("nan"), None)

    def _as_classifier(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Distance:
        total = sum(float(divergence(old, new, "sum")) for old, new in pairs)
        same = sum(float((old.argmax(1) == new.argmax(1)).sum()) for old, new in pairs)
        total, same = self.group.total([total, same])
        return Distance(total / self.count, same / self.count)


@torch.no_grad()
def relative_error(original: nn.Module, model: nn.Module, images: Iterable[Tensor]) -> float:
    """Return ||output - original output|| / ||original output|| over batches of images; NaN for no output."""
    error = whole = 0.0
    limit = BatchLimit()
    for batch in images:
        for old, new in zip(_answers(original, batch, limit), _answers(model, batch, limit), strict=True):
            error += float((new - old).square().sum())
            whole += float(old.square().sum())
    return float((error / whole) ** 0.5) if whole else float("nan")


def is_classifier(output: Sequence[Tensor]) -> bool:
    """Say whether a network's output is one score a class and image."""
    return len(output) == 1 and output[0].ndim == 2 and output[0].shape[1] > 1


@torch.no_grad()
def _answers(model: nn.Module, images: Tensor, limit: BatchLimit) -> list[Tensor]:
    def answer(part: Tensor) -> list[Tensor]:
        output = model(part)
        scores = class_scores(output)
        return [item.double() for item in (output_tensors(output) if scores is None else [scores])]

    parts = limit.in_parts(answer, images)
    return parts[0] if len(parts) == 1 else [torch.cat(items) for items in zip(*parts, strict=True)]
