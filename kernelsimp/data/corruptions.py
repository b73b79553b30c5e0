"""The table of image corruptions, CIFAR-10-C style: five severities each, seeded, no file needed.

The kinds and strengths follow Hendrycks and Dietterich 2019 for images of 32 pixels; the pictures are our
own, so figures compare networks on the same pictures but not with published CIFAR-10-C figures. Images here
are (n, H, W, C) float32 in 0..1. What is random about an image follows from the seed and its place alone.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import grid_sample

from kernelsimp.data.images import Geometry
from kernelsimp.data.splits import Split
from kernelsimp.errors import KernelsimpError, did_you_mean

STYLE = "CIFAR-10-C style"
SEVERITIES = (1, 2, 3, 4, 5)

Images = NDArray[np.float32]
Strength = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Dice:
    """One random generator an image, so that no image's luck depends on its neighbours."""

    generators: Sequence[np.random.Generator]

    def each(self, draw: Callable[[np.random.Generator], NDArray[Any]]) -> Images:
        """Return the draws of all images, stacked."""
        return np.stack([draw(generator) for generator in self.generators]).astype(np.float32)

    def normal(self, images: Images) -> Images:
        return self.each(lambda rng: rng.standard_normal(images.shape[1:]))

    def uniform(self, shape: Sequence[int], low: float = 0, high: float = 1) -> Images:
        return self.each(lambda rng: rng.uniform(low, high, shape))


# --- noise


def _gaussian_noise(images: Images, strength: Strength, dice: Dice) -> Images:
    return images + np.float32(strength[0]) * dice.normal(images)


def _shot_noise(images: Images, strength: Strength, dice: Dice) -> Images:
    """Count photons: Poisson(c x) / c."""
    rows = [rng.poisson(image * strength[0]) for rng, image in zip(dice.generators, images, strict=True)]
    return (np.stack(rows) / strength[0]).astype(np.float32)


def _impulse_noise(images: Images, strength: Strength, dice: Dice) -> Images:
    """Turn a share of all values into 0 or 1, equally often."""
    draws = dice.uniform(images.shape[1:])
    half = strength[0] / 2
    return np.where(draws < half, np.float32(0), np.where(draws < 2 * half, np.float32(1), images))


def _speckle_noise(images: Images, strength: Strength, dice: Dice) -> Images:
    return images * (1 + np.float32(strength[0]) * dice.normal(images))


# --- blur


def _gaussian_blur(images: Images, strength: Strength, dice: Dice) -> Images:  # noqa: ARG001
    return _blur(images, strength[0])


def _blur(images: Images, sigma: float) -> Images:
    if sigma == 0:
        return images
    return np.asarray(ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="nearest"))


def _defocus_blur(images: Images, strength: Strength, dice: Dice) -> Images:  # noqa: ARG001
    """Average over a disk of `radius` pixels whose edge is softened by a 3x3 Gaussian of `alias`."""
    radius, alias = strength
    reach = int(np.ceil(radius)) + 1
    steps = np.arange(-reach, reach + 1)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float64)
    soft = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias**2))
    kernel = ndimage.convolve(disk, np.outer(soft, soft), mode="constant")
    kernel = (kernel / kernel.sum()).astype(np.float32)
    return np.asarray(ndimage.convolve(images, kernel[None, :, :, None], mode="mirror"))


def _glass_blur(images: Images, strength: Strength, dice: Dice) -> Images:
    """Blur, let each pixel show one up to `delta` above and left of it, `rounds` times, and blur again.

    The border stays. This is what the published pictures show: their swap of two pixels copies one.
    """
    sigma, delta, rounds = strength[0], int(strength[1]), int(strength[2])
    pixels = _blur(images, sigma)
    count, height, width = images.shape[:3]
    steps = dice.each(lambda rng: rng.integers(0, delta, (rounds, 2, height, width), endpoint=True)).astype(
        int
    )
    rows, columns = np.mgrid[:height, :width]
    inside = (rows > delta) & (columns > delta)
    for turn in range(rounds):
        up, left = np.where(inside, steps[:, turn, 0], 0), np.where(inside, steps[:, turn, 1], 0)
        pixels = pixels[np.arange(count)[:, None, None], rows - up, columns - left]
    return _blur(pixels, sigma)


def _zoom_blur(images: Images, strength: Strength, dice: Dice) -> Images:  # noqa: ARG001
    """Average the image with itself enlarged by 1, 1.01, 1.02... below `top`."""
    zooms = np.arange(1, strength[0], 0.01)
    rows, columns = _grid(images)
    total = images.copy()
    for zoom in zooms:
        total += _sample_bilinear(images, rows / zoom, columns / zoom)
    return total / np.float32(len(zooms) + 1)


# --- weather


def _fog(images: Images, strength: Strength, dice: Dice) -> Images:
    """Add a cloud of `amount`, keeping the brightest value; larger `decay` gives smoother clouds."""
    amount, decay = strength
    height, width = images.shape[1:3]
    clouds = _clouds(max(height, width), decay, dice)[:, :height, :width, None]
    peak = images.max(axis=(1, 2, 3), keepdims=True)
    foggy = (images + np.float32(amount) * clouds) * peak / (peak + np.float32(amount))
    return np.asarray(foggy, dtype=np.float32)


def _clouds(side: int, decay: float, dice: Dice) -> Images:
    """Return plasma clouds in 0..1, (n, size, size), size a power of two, by midpoint displacement.

    The diamond-square scheme on a torus; the displacement falls by decay^2 with each halving of the step.
    """
    size = 1 << max(1, (side - 1).bit_length())
    cloud = np.zeros((len(dice.generators), size, size), dtype=np.float32)
    step, swing = size, 1.0
    while step >= 2:
        half, shape = step // 2, (size // step, size // step)
        corners = cloud[:, ::step, ::step]
        across = corners + np.roll(corners, -1, 1)
        cloud[:, half::step, half::step] = (across + np.roll(across, -1, 2)) / 4 + dice.uniform(
            shape, -swing, swing
        )
        centres = cloud[:, half::step, half::step]
        tops = corners + np.roll(corners, -1, 2) + centres + np.roll(centres, 1, 1)
        lefts = corners + np.roll(corners, -1, 1) + centres + np.roll(centres, 1, 2)
        cloud[:, ::step, half::step] = tops / 4 + dice.uniform(shape, -swing, swing)
        cloud[:, half::step, ::step] = lefts / 4 + dice.uniform(shape, -swing, swing)
        step, swing = half, swing / decay**2
    cloud -= cloud.min(axis=(1, 2), keepdims=True)
    return np.asarray(cloud / cloud.max(axis=(1, 2), keepdims=True), dtype=np.float32)


def _brightness(images: Images, strength: Strength, dice: Dice) -> Images:  # noqa: ARG001
    """Raise the value of hue-saturation-value; black becomes grey."""
    value = images.max(axis=3, keepdims=True)
    raised = np.minimum(value + np.float32(strength[0]), 1)
    scaled = images * raised / np.maximum(value, np.float32(1e-12))
    return np.asarray(np.where(value > 0, scaled, raised), dtype=np.float32)


# --- digital


def _contrast(images: Images, strength: Strength, dice: Dice) -> Images:  # noqa: ARG001
    mean = images.mean(axis=(1, 2), keepdims=True)
    return np.asarray((images - mean) * np.float32(strength[0]) + mean)


def _elastic(images: Images, strength: Strength, dice: Dice) -> Images:
    """Move three anchor points by up to `affine` sides, and pixels by a smooth field of `alpha` sides."""
    height, width = images.shape[1:3]
    side = min(height, width)
    alpha, sigma, affine = (part * side for part in strength)
    middle, reach = np.array([height, width]) / 2, side // 3
    anchors = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = anchors + dice.uniform((3, 2), -affine, affine)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    field = dice.uniform((2, height, width), -1, 1)
    field = alpha * ndimage.gaussian_filter(field, (0, 0, sigma, sigma), mode="reflect", truncate=3)
    places = np.stack([rows + field[:, 0], columns + field[:, 1], np.ones_like(field[:, 0])], axis=-1)
    homogeneous = np.concatenate([moved, np.ones((len(images), 3, 1))], axis=2)
    back = np.linalg.solve(homogeneous, np.broadcast_to(anchors, moved.shape))
    source = np.einsum("nhwk,nkc->nhwc", places, back)
    return _sample_bilinear(
        images,
        (2 * source[..., 0] + 1) / height - 1,
        (2 * source[..., 1] + 1) / width - 1,
        border="reflection",
    )


def _pixelate(images: Images, strength: Strength, dice: Dice) -> Images:  # noqa: ARG001
    """Average onto a coarser grid of `share` of the side, and show its cells as boxes."""

    def coarser(picture: Image.Image) -> Image.Image:
        cells = (max(1, int(picture.width * strength[0])), max(1, int(picture.height * strength[0])))
        return picture.resize(cells, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX)

    return _by_picture(images, coarser)


def _jpeg(images: Images, strength: Strength, dice: Dice) -> Images:  # noqa: ARG001
    def compressed(picture: Image.Image) -> Image.Image:
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=int(strength[0]))
        return Image.open(buffer)

    return _by_picture(images, compressed)


def _by_picture(images: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    """Give each image to `change` as an 8-bit picture."""
    pixels = np.rint(images.clip(0, 1) * 255).astype(np.uint8)
    rows = [np.array(change(Image.fromarray(row.squeeze(2) if row.shape[2] == 1 else row))) for row in pixels]
    return (np.stack(rows).reshape(images.shape) / 255).astype(np.float32)


def _saturate(images: Images, strength: Strength, dice: Dice) -> Images:  # noqa: ARG001
    """Map the saturation s of hue-saturation-value to a s + b; grey has hue 0, red."""
    value = images.max(axis=3, keepdims=True)
    least = images.min(axis=3, keepdims=True)
    spread = value - least
    old = spread / np.maximum(value, np.float32(1e-12))
    new = np.clip(np.float32(strength[0]) * old + np.float32(strength[1]), 0, 1)
    red = value - value * new * np.array([0, 1, 1], dtype=np.float32)
    scale = value * new / np.maximum(spread, np.float32(1e-12))
    return np.asarray(np.where(spread > 0, value - (value - images) * scale, red), dtype=np.float32)


def _grid(images: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the middles of all pixels on -1..1: rows and columns, (H, W) each."""
    height, width = images.shape[1:3]
    rows, columns = (2 * np.arange(height) + 1) / height - 1, (2 * np.arange(width) + 1) / width - 1
    spread = np.meshgrid(rows, columns, indexing="ij")
    return spread[0], spread[1]


def _sample_bilinear(
    images: Images, rows: NDArray[np.float64], columns: NDArray[np.float64], border: str = "border"
) -> Images:
    """Return the images read at places on -1..1, (H, W) or (n, H, W), bilinearly."""
    grid = torch.from_numpy(np.stack([columns, rows], axis=-1).astype(np.float32))
    grid = grid.expand(len(images), *grid.shape[-3:])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    out = grid_sample(pixels, grid, mode="bilinear", padding_mode=border, align_corners=False)
    return np.asarray(out.permute(0, 2, 3, 1).numpy())


@dataclass(frozen=True)
class Corruption:
    """One row: the strengths of the five severities, and `apply`; `colour` where grey has no such thing."""

    group: str
    strengths: tuple[Strength, Strength, Strength, Strength, Strength]
    apply: Callable[[Images, Strength, Dice], Images]
    colour: bool = False


def _singly(*values: float) -> tuple[Strength, Strength, Strength, Strength, Strength]:
    one, two, three, four, five = values
    return (one,), (two,), (three,), (four,), (five,)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption("noise", _singly(0.04, 0.06, 0.08, 0.09, 0.10), _gaussian_noise),
    "shot_noise": Corruption("noise", _singly(500, 250, 100, 75, 50), _shot_noise),
    "impulse_noise": Corruption("noise", _singly(0.01, 0.02, 0.03, 0.05, 0.07), _impulse_noise),
    "speckle_noise": Corruption("noise", _singly(0.06, 0.1, 0.12, 0.16, 0.2), _speckle_noise),
    "gaussian_blur": Corruption("blur", _singly(0.4, 0.6, 0.7, 0.8, 1), _gaussian_blur),
    "defocus_blur": Corruption(
        "blur", ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), _defocus_blur
    ),
    "glass_blur": Corruption(
        "blur", ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)), _glass_blur
    ),
    "zoom_blur": Corruption("blur", _singly(1.06, 1.11, 1.16, 1.21, 1.26), _zoom_blur),
    "fog": Corruption("weather", ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), _fog),
    "brightness": Corruption("weather", _singly(0.05, 0.1, 0.15, 0.2, 0.3), _brightness),
    "contrast": Corruption("digital", _singly(0.75, 0.5, 0.4, 0.3, 0.15), _contrast),
    "elastic_transform": Corruption(
        "digital",
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        _elastic,
    ),
    "pixelate": Corruption("digital", _singly(0.95, 0.9, 0.85, 0.75, 0.65), _pixelate),
    "jpeg_compression": Corruption("digital", _singly(80, 65, 58, 50, 40), _jpeg),
    "saturate": Corruption("digital", ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), _saturate, True),
}


@dataclass(frozen=True)
class How:
    """Which corruption, how strong (1..5), and the seed.

    Raises `KernelsimpError` for an unknown name or another severity.
    """

    name: str
    severity: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            raise KernelsimpError(f"unknown corruption '{self.name}'{did_you_mean(self.name, CORRUPTIONS)}")
        if self.severity not in SEVERITIES:
            raise KernelsimpError(f"severity {self.severity} of {self.name}; expected 1 to 5")


def corrupt(images: Tensor, how: How, places: Sequence[int] | None = None) -> Tensor:
    """Return images (n, C, H, W) in 0..1 corrupted, as 8-bit pictures would be, float32.

    `places` number the images for their random generators; without them they are 0, 1, 2... Raises
    `KernelsimpError` for images that are no pictures: other values, or neither one nor three channels.
    """
    row = CORRUPTIONS[how.name]
    pixels = _pixels(images)
    if row.colour and pixels.shape[3] == 1:
        return images
    word = zlib.crc32(f"{how.name}:{how.severity}".encode())
    numbers = range(len(images)) if places is None else places
    dice = Dice([np.random.default_rng((how.seed, word, place)) for place in numbers])
    changed = row.apply(pixels, row.strengths[how.severity - 1], dice)
    stored = np.rint(np.clip(changed, 0, 1) * 255).astype(np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(stored)).permute(0, 3, 1, 2)


def _pixels(images: Tensor) -> Images:
    """Return (n, H, W, C) once it is known that a corruption means something on them."""
    if images.shape[1] not in (1, 3):
        raise KernelsimpError(f"corruptions need 1 or 3 channels; the images have {images.shape[1]}")
    if len(images) and not (float(images.min()) >= 0 and float(images.max()) <= 1):
        found = f"the images go from {float(images.min()):g} to {float(images.max()):g}"
        raise KernelsimpError(f"corruptions need images in 0..1; {found}: give them before normalising")
    return np.asarray(images.permute(0, 2, 3, 1).contiguous().numpy())


@dataclass(frozen=True, eq=False)
class CorruptedStore:
    """A split seen through a corruption: itself a store, so that all that reads splits reads it."""

    split: Split
    how: How

    @cached_property
    def labels(self) -> Tensor:
        return self.split.labels

    def batch(self, indices: Sequence[int], geometry: Geometry) -> Tensor:
        """Return corrupted images: the split's own geometry comes first, `geometry` after."""
        return geometry(corrupt(self.split.fetch(indices)[0], self.how, indices))

    def mark(self, index: int) -> bytes:
        return f"{self.how}".encode() + self.split.store.mark(int(self.split.places[index]))


Suite = Iterator[tuple[str, int, Split]]


def style_suite(split: Split, seed: int, names: Sequence[str] | None = None) -> Suite:
    """Yield (name, severity, split) for every corruption (or `names`) at every severity.

    Corruptions of colour are left out where images are grey. Raises `KernelsimpError` for unknown names.
    """
    chosen = [How(name, 1, seed).name for name in (names or CORRUPTIONS)]
    grey = len(split) > 0 and split[0][0].shape[0] == 1
    for name in chosen:
        if grey and CORRUPTIONS[name].colour:
            continue
        for severity in SEVERITIES:
            store = CorruptedStore(split, How(name, severity, seed))
            yield name, severity, Split(store, range(len(split)), Geometry())
