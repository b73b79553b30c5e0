"""How far the answers of two networks lie apart."""

import torch
import torch.nn.functional as F
from torch import Tensor


def divergence(teacher: Tensor, student: Tensor, reduction: str = "batchmean") -> Tensor:
    """Return KL(softmax(teacher) || softmax(student)) in nats, the mean or `sum` over (n, classes) logits."""
    log_p, log_q = torch.log_softmax(teacher, 1), torch.log_softmax(student, 1)
    return F.kl_div(log_q, log_p, reduction=reduction, log_target=True)
