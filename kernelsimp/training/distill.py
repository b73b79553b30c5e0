"""What a step minimises: the labels, and the original network as a teacher.

L = (1 - a) * CE(labels) + a * T^2 * KL(softmax(teacher / T) || softmax(student / T)), in nats a sample;
T^2 keeps the size of the gradient independent of T. Source: Hinton, Vinyals and Dean 2015.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from kernelsimp.evaluation.divergence import divergence
from kernelsimp.settings import FinetuneSettings


def objective(
    logits: Tensor, labels: Tensor, teacher: Tensor | None, settings: FinetuneSettings, mix: float = 1.0
) -> Tensor:
    """Return the mean loss of a batch; `logits` and `teacher` are (n, classes), `labels` (n,).

    Without a teacher, or at weight 0, it is plain cross-entropy; at weight 1 the labels are not read. `mix`
    is the share of each image's own label, as `mixing.mixed` returns it.
    """
    share = settings.distill if teacher is not None else 0.0
    loss = logits.new_zeros(())
    if share < 1:
        entropy = partial(F.cross_entropy, logits, label_smoothing=settings.label_smoothing)
        hard = entropy(labels) if mix == 1 else mix * entropy(labels) + (1 - mix) * entropy(labels.roll(1))
        loss = loss + (1 - share) * hard
    if teacher is not None and share > 0:
        heat = settings.temperature
        loss = loss + share * heat**2 * divergence(teacher / heat, logits / heat)
    return loss
