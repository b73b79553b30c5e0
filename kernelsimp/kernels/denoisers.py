"""The table of denoisers: estimates that are simpler than the kernel and tied to no family.

`strength` means the same for all of them: the relative change ||w' - w|| / ||w|| over the whole bank, from 0
(nothing) to 1, in the units of a residual. Each denoiser has a knob from 0 to 1 of its own, and the largest
knob whose change stays within the strength is taken. Edges of a kernel are continued by reflection.
To add a denoiser, add a row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage
from torch import Tensor

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.kernels.cells import grid_of, rows_of

Floats = NDArray[np.float64]
Knob = Callable[[float], Floats]

HALVINGS = 30
"""Steps of the search for the knob; each halves the interval."""


@dataclass(frozen=True, eq=False)
class Bank:
    """What a denoiser works on: kernels (n, kh, kw) and the second moment of their cells, (cells, cells).

    `level` is the root mean square of the bank's cells: thresholds are in its units, one for the bank,
    because the noise of training is alike in all kernels of a layer.
    """

    kernels: Floats
    covariance: Floats

    @property
    def level(self) -> float:
        return float(np.sqrt(np.mean(np.square(self.kernels)))) if self.kernels.size else 0.0

    @property
    def flat(self) -> Floats:
        return self.kernels.reshape(len(self.kernels), -1)


@dataclass(frozen=True)
class Denoiser:
    """One row: `make` prepares a bank and returns the function of the knob; 0 must change nothing."""

    name: str
    meaning: str
    make: Callable[[Bank], Knob]


def denoise(kernels: Tensor, name: str, strength: float, covariance: Tensor | None = None) -> Tensor:
    """Return kernels (n, kh, kw) denoised so that the bank changes by at most `strength`, in their dtype.

    `covariance` (cells, cells) is the raw second moment of the layer's kernels, the bank's own if absent; it
    matters to `pca` and `wiener`. Kernels that are not finite come back untouched. Raises `KernelsimpError`
    for an unknown name, a strength outside 0..1 or a covariance of another size.
    """
    row = by_name(name)
    if not 0 <= strength <= 1:
        raise KernelsimpError(f"denoiser {name}: strength {strength}; expected a number from 0 to 1")
    flat, broken = rows_of(kernels)
    bank = Bank(flat.numpy().reshape(-1, *grid_of(kernels)), _second_moment(flat, covariance))
    if strength == 0 or bank.level == 0:
        return kernels.clone()
    found = torch.from_numpy(_within(row.make(bank), bank, strength)).to(kernels.dtype)
    return torch.where(broken[:, None, None], kernels, found)


def parse(text: str) -> tuple[str, float | None]:
    """Split 'NAME' or 'NAME:STRENGTH'; raises `KernelsimpError` for a bad name or number."""
    name, colon, number = text.partition(":")
    by_name(name)
    if not colon:
        return name, None
    try:
        strength = float(number)
    except ValueError:
        strength = -1.0
    if not 0 <= strength <= 1:
        raise KernelsimpError(f"denoiser '{text}': strength '{number}'; expected a number from 0 to 1")
    return name, strength


def by_name(name: str) -> Denoiser:
    """Return the denoiser called `name`; raises `KernelsimpError` with the nearest known name."""
    for row in DENOISERS:
        if row.name == name:
            return row
    raise KernelsimpError(f"unknown denoiser '{name}'{did_you_mean(name, [row.name for row in DENOISERS])}")


def _second_moment(flat: Tensor, covariance: Tensor | None) -> Floats:
    cells = flat.shape[1]
    if covariance is None:
        return np.asarray((flat.T @ flat / max(len(flat), 1)).numpy())
    if tuple(covariance.shape) != (cells, cells):
        raise KernelsimpError(f"covariance of shape {tuple(covariance.shape)}; expected {(cells, cells)}")
    return np.asarray(covariance.detach().double().numpy())


def _within(knob: Knob, bank: Bank, strength: float) -> Floats:
    """Return the result of the largest knob found whose change is at most `strength`, by bisection."""
    whole = float(np.square(bank.kernels).sum())
    low, high, best = 0.0, 1.0, bank.kernels
    tried = 1.0
    for _ in range(HALVINGS):
        result = knob(tried)
        far = float(np.square(result - bank.kernels).sum() / whole) ** 0.5
        if far <= strength:
            low, best = tried, result
            if tried == 1.0 or far > 0.999 * strength:
                break
        else:
            high = tried
        tried = (low + high) / 2
    return best


def _gaussian(bank: Bank) -> Knob:
    longest = max(bank.kernels.shape[1:])

    def blurred(knob: float) -> Floats:
        sigma = knob**2 * 2 * longest
        return np.asarray(ndimage.gaussian_filter(bank.kernels, (0, sigma, sigma), mode="reflect"))

    return blurred


def _median(bank: Bank) -> Knob:
    size = (1, *(min(side, 3) for side in bank.kernels.shape[1:]))
    middle = ndimage.median_filter(bank.kernels, size=size, mode="reflect")
    return lambda knob: np.asarray(bank.kernels + knob * (middle - bank.kernels))


def _total_variation(bank: Bank) -> Knob:
    """argmin 1/2 ||v - w||^2 + t ||grad v||, by fixed point on its dual (Chambolle 2004)."""

    def flattened(knob: float) -> Floats:
        weight = bank.level * knob / max(1 - knob, 1e-6)
        dual = np.zeros((2, *bank.kernels.shape))
        for _ in range(60 if weight else 0):
            step = gradient(divergence(dual) - bank.kernels / weight)
            dual = (dual + 0.25 * step) / (1 + 0.25 * np.sqrt(np.square(step).sum(axis=0)))
        return np.asarray(bank.kernels - weight * divergence(dual))

    return flattened


def gradient(values: Floats) -> Floats:
    """Forward differences down and right, zero at the far border, (2, n, kh, kw)."""
    slope = np.zeros((2, *values.shape))
    slope[0, :, :-1] = np.diff(values, axis=1)
    slope[1, :, :, :-1] = np.diff(values, axis=2)
    return slope


def divergence(field: Floats) -> Floats:
    """The negative adjoint of `gradient`."""
    down, right = field[0].copy(), field[1].copy()
    down[:, -1], right[:, :, -1] = 0, 0
    down[:, 1:] -= down[:, :-1].copy()
    right[:, :, 1:] -= right[:, :, :-1].copy()
    return np.asarray(down + right)


def _bilateral(bank: Bank) -> Knob:
    """Mean of the 3x3 neighbours weighted by closeness in place and in value."""
    pads = [(0, 0), *((1, 1) if side > 1 else (0, 0) for side in bank.kernels.shape[1:])]
    padded = np.pad(bank.kernels, pads, mode="symmetric")
    rows, columns = bank.kernels.shape[1:]
    moves = [(i, j) for i in range(1 + 2 * (rows > 1)) for j in range(1 + 2 * (columns > 1))]

    def averaged(knob: float) -> Floats:
        if knob == 0:
            return bank.kernels
        reach = bank.level * 4 * knob / max(1 - knob, 1e-6)
        total, weights = np.zeros_like(bank.kernels), np.zeros_like(bank.kernels)
        for i, j in moves:
            other = padded[:, i : i + rows, j : j + columns]
            far = (i - (rows > 1)) ** 2 + (j - (columns > 1)) ** 2
            weight = np.exp(-far / 2 - np.square((other - bank.kernels) / reach) / 2)
            total += weight * other
            weights += weight
        return np.asarray(total / weights)

    return averaged


def _dct(bank: Bank) -> Knob:
    """Keep frequencies under a cut that falls to the mean alone; the border passes in part."""
    sides = bank.kernels.shape[1:]
    spectrum = np.asarray(fft.dctn(bank.kernels, axes=(1, 2), norm="ortho"))
    frequency = np.sqrt(sum(np.square(part) for part in np.indices(sides)))
    top = float(frequency.max())

    def passed(knob: float) -> Floats:
        gain = np.where(frequency == 0, 1.0, np.clip((1 - knob) * (top + 1) - frequency + 1e-12, 0, 1))
        gain = gain if knob else np.ones(sides)
        return np.asarray(fft.idctn(spectrum * gain, axes=(1, 2), norm="ortho"))

    return passed


def _svd(bank: Bank) -> Knob:
    """Drop trailing singular values as long as the kernel's own relative change stays within the knob."""
    left, values, right = np.linalg.svd(bank.kernels, full_matrices=False)
    tail = np.sqrt(np.cumsum(np.square(values)[:, ::-1], axis=1)[:, ::-1])
    share = np.divide(tail, tail[:, :1], out=np.zeros_like(tail), where=tail[:, :1] > 0)

    def truncated(knob: float) -> Floats:
        kept = values * (share > knob)
        kept[:, 0] = values[:, 0]
        return np.asarray((left * kept[:, None, :]) @ right)

    return truncated


def _wavelet(bank: Bank) -> Knob:
    """Undecimated Haar, one level: soft-threshold the details of every 2x2 window, average the windows.

    Averaging over all shifts is cycle spinning (Coifman and Donoho 1995); it serves odd sides too.
    """
    wide = [side > 1 for side in bank.kernels.shape[1:]]
    padded = np.pad(bank.kernels, [(0, 0), *((1, 1) if go else (0, 0) for go in wide)], mode="symmetric")
    corners = [(i, j) for i in range(1 + wide[0]) for j in range(1 + wide[1])]
    rows, columns = (side - go for side, go in zip(padded.shape[1:], wide, strict=True))
    windows = np.stack([padded[:, i : i + rows, j : j + columns] for i, j in corners])
    haar = haar_matrix(wide)
    details = np.tensordot(haar, windows, axes=1)
    height, width = bank.kernels.shape[1:]

    def shrunk(knob: float) -> Floats:
        threshold = knob * np.abs(details[1:]).max(initial=0.0)
        soft = details.copy()
        soft[1:] = np.sign(details[1:]) * np.maximum(np.abs(details[1:]) - threshold, 0)
        back = np.tensordot(haar.T, soft, axes=1)
        parts = [
            back[at, :, wide[0] - i : wide[0] - i + height, wide[1] - j : wide[1] - j + width]
            for at, (i, j) in enumerate(corners)
        ]
        return np.asarray(np.mean(parts, axis=0))

    return shrunk


def haar_matrix(wide: list[bool]) -> Floats:
    """The orthonormal Haar matrix of a window of 1 or 2 cells a side; its first row is the mean."""
    pair, single = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2), np.ones((1, 1))
    return np.asarray(np.kron(pair if wide[0] else single, pair if wide[1] else single))


def _principal(bank: Bank) -> Knob:
    """Soft-threshold each kernel's coefficients in the eigenvectors of the layer's second moment."""
    _, vectors = np.linalg.eigh(bank.covariance)
    scores = bank.flat @ vectors
    top = float(np.abs(scores).max())

    def shrunk(knob: float) -> Floats:
        soft = np.sign(scores) * np.maximum(np.abs(scores) - knob * top, 0)
        return np.asarray((soft @ vectors.T).reshape(bank.kernels.shape))

    return shrunk


def _wiener(bank: Bank) -> Knob:
    """C (C + s^2 I)^-1 w: what is least wrong if w is N(0, C) plus white noise of variance s^2."""
    variances, vectors = np.linalg.eigh(bank.covariance)
    variances = np.maximum(variances, 0)
    scores = bank.flat @ vectors

    def filtered(knob: float) -> Floats:
        if knob == 0:
            return bank.kernels
        noise = float(variances.mean()) * (knob / max(1 - knob, 1e-9)) ** 2
        gain = variances / (variances + max(noise, 1e-300))
        return np.asarray(((scores * gain) @ vectors.T).reshape(bank.kernels.shape))

    return filtered


DENOISERS: tuple[Denoiser, ...] = (
    Denoiser("gaussian", "Gaussian blur", _gaussian),
    Denoiser("median", "towards the median of the 3x3 neighbours", _median),
    Denoiser("tv", "total variation, which leaves flat patches and steps", _total_variation),
    Denoiser("bilateral", "mean of near neighbours of like value", _bilateral),
    Denoiser("dct", "low frequencies of the cosine transform", _dct),
    Denoiser("svd", "fewer singular values", _svd),
    Denoiser("wavelet", "soft threshold on Haar details of all 2x2 windows", _wavelet),
    Denoiser("pca", "soft threshold in the layer's own principal components", _principal),
    Denoiser("wiener", "Wiener filter with the layer's covariance", _wiener),
)
