"""How far the answers of two networks lie apart, and when that tells more than labels do."""

import torch
import torch.nn.functional as F
from torch import Tensor

MEMORISED = 99.0
"""A network at or above this accuracy, in percent, has probably been trained on these images."""


def is_memorised(top1: float) -> bool:
    """Say whether images on which the original has `top1` percent right no longer tell networks apart."""
    return top1 >= MEMORISED


def divergence(teacher: Tensor, student: Tensor, reduction: str = "batchmean") -> Tensor:
    """Return KL(softmax(teacher) || softmax(student)) in nats, the mean or `sum` over (n, classes) logits."""
    log_p, log_q = torch.log_softmax(teacher, 1), torch.log_softmax(student, 1)
    return F.kl_div(log_q, log_p, reduction=reduction, log_target=True)
