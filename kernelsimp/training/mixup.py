"""Mixing pairs of training images, so that a network sees more inputs than there are images.

Taught by the original network, which answers for a mixed image as for any other, a student follows it over
a larger part of the input space than 4,500 photographs cover. Source: Zhang et al. 2018; as a teacher's
input, Beyer et al. 2022.
"""

import torch
from torch import Tensor


def mixed(images: Tensor, alpha: float) -> tuple[Tensor, float]:
    """Return share * images + (1 - share) * the batch rolled by one, and the share, drawn from Beta(a, a).

    The draw comes from torch's global generator, whose state a resumed run restores. With alpha 0 the images
    come back as they are, with share 1.
    """
    if alpha == 0:
        return images, 1.0
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return torch.lerp(images.roll(1, 0), images, share), share
