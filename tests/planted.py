"""Writes the checkpoint of the README: `python tests/planted.py planted.safetensors`.

1,000 kernels of 5 x 5 independent normal cells, of which the first 20, one in each of the first 20 filters,
are nearly symmetric: their right half is their left half mirrored, with 3 % noise.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

PLANTED, FILTERS, INPUTS = 20, 50, 20


def planted() -> torch.Tensor:
    """Return the weight (50, 20, 5, 5)."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(FILTERS, INPUTS, 5, 5, generator=generator)
    chosen = weight[:PLANTED, 0]
    symmetric = (chosen + chosen.flip(-1)) / 2
    noise = torch.randn(symmetric.shape, generator=generator)
    weight[:PLANTED, 0] = symmetric + 0.03 * noise
    return weight


def write(path: Path) -> None:
    save_file({"conv.weight": planted()}, path)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
