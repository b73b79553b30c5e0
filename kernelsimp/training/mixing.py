"""Mixing pairs of training images, so that a network sees more inputs than there are images.

Taught by the original network, which answers for a mixed image as for any other, a student follows it over
a larger part of the input space than few photographs cover. Sources: Zhang et al. 2018 (mixup), Yun et al.
2019 (CutMix); as a teacher's input, Beyer et al. 2022.
"""

import torch
from torch import Tensor

from kernelsimp.settings import FinetuneSettings


def mix_images(images: Tensor, settings: FinetuneSettings) -> tuple[Tensor, float]:
    """Return each image (n, C, H, W) mixed with the one before it in the batch, and the share of its own.

    With both mixup and CutMix, each batch takes one of them at random; with neither, the images come back
    as they are, with share 1. Draws come from torch's global generator, whose state a resumed run restores.
    """
    alphas = {"MixUp": settings.mixup, "CutMix": settings.cutmix}
    ways = [name for name, alpha in alphas.items() if alpha > 0]
    if not ways:
        return images, 1.0
    from torchvision.transforms import v2  # here, because importing it takes seconds

    name = ways[int(torch.randint(len(ways), ()))]
    places = torch.eye(len(images))  # for labels: how much of which place is where; reading it stalls no GPU
    result, shares = getattr(v2, name)(alpha=alphas[name])(images, places)
    return result, float(shares[0, 0])
