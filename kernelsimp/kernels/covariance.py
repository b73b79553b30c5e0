"""Second moments of a layer's kernels, and random kernels drawn from them or from shuffled cells.

Covariances are (cells, cells), float64, uncentred: the mean kernel is part of what chance may repeat.
"""

import numpy as np
import torch
from scipy import fft
from torch import Tensor

from kernelsimp.kernels.subspace import Floats, Ints, Shape


def second_moment(kernels: Tensor) -> Floats:
    """Return C = mean of ww' over kernels (n, *shape), (cells, cells) in float64, uncentred."""
    flat = kernels.detach().reshape(len(kernels), -1)
    total = torch.zeros(flat.shape[1], flat.shape[1], dtype=torch.float64)
    for start in range(0, len(flat), 1 << 14):
        wide = flat[start : start + (1 << 14)].double()
        total += wide.T @ wide
    return np.asarray(total.numpy() / max(1, len(kernels)))


def ring_covariance(covariance: Floats, shape: Shape) -> Floats:
    """Return the covariance (cells, cells) with its cosine energies averaged over rings of i^2 + j^2."""
    cosine: Floats = np.ones((1, 1))
    for side in shape:
        cosine = np.asarray(np.kron(cosine, fft.dct(np.eye(side), axis=0, norm="ortho")), dtype=np.float64)
    energy = np.einsum("ij,jk,ik->i", cosine, covariance, cosine)
    ring = ring_numbers(shape)
    mean = np.bincount(ring, energy) / np.bincount(ring)
    return np.asarray(cosine.T @ (mean[ring][:, None] * cosine))


def gaussian_kernels(covariance: Floats, shape: Shape, count: int, seed: int) -> Tensor:
    """Draw `count` kernels (count, *shape) from N(0, covariance), float32."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(0))
    normal = np.random.default_rng(seed).standard_normal((count, len(values)))
    return torch.from_numpy((normal @ root.T).astype(np.float32).reshape(count, *shape))


def permuted_kernels(kernels: Tensor, count: int, seed: int) -> Tensor:
    """Draw `count` kernels (count, *shape) from `kernels`, each with its cells in a random order."""
    generator = torch.Generator().manual_seed(seed)
    flat = kernels.detach().reshape(len(kernels), -1)
    chosen = torch.randint(len(flat), (count,), generator=generator)
    order = torch.rand(count, flat.shape[1], generator=generator).argsort(dim=1)
    return flat[chosen].gather(1, order).reshape(count, *kernels.shape[1:])


def ring_numbers(shape: Shape) -> Ints:
    """Return for each cell of the cosine basis, row by row, the number of its ring i^2 + j^2."""
    squares = sum(np.square(axis) for axis in np.indices(shape)).reshape(-1)
    return np.asarray(np.unique(squares, return_inverse=True)[1].reshape(-1))
