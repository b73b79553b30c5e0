"""From whatever holds one image to a tensor, and from its size to the network's.

An image is a tensor (channels, height, width), uint8 in 0..255 or float32 as it came; after `Geometry`
it is float32, and uint8 has become 0..1. Height comes before width everywhere.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from kernelsimp.error_text import short
from kernelsimp.errors import KernelsimpError

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey image (ITU-R BT.601)."""


OVERSHOOT = 0.02
"""The share of a range by which resampling may have carried floats beyond it."""


@dataclass(frozen=True)
class Geometry:
    """How an image gets the network's shape: channels, then the shorter side, then the centre crop.

    `size` is the shorter side in pixels after resizing, `crop` the side of the square cut from the centre;
    None leaves that step out.
    """

    size: int | None = None
    crop: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        for name in ("size", "crop", "channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise KernelsimpError(f"{_OPTION[name]} is {value}; expected at least 1")

    def __call__(self, images: Tensor) -> Tensor:
        """Turn images (n, C, H, W), uint8 or float, into float32 of the wanted shape.

        Raises `KernelsimpError` where the channels cannot be had or the crop is larger than the image.
        """
        images = self._with_channels(images)
        if self.size is not None:
            images = _resize(images, self.size)
        if self.crop is not None:
            images = _centre_crop(images, self.crop)
        return images.float().div_(255) if images.dtype == torch.uint8 else images.float()

    def _with_channels(self, images: Tensor) -> Tensor:
        have, want = images.shape[1], self.channels
        if want is None or want == have:
            return images
        if have == 1:
            return images.expand(-1, want, -1, -1)
        if (have, want) == (3, 1):
            weights = torch.tensor(LUMA).reshape(1, 3, 1, 1)
            grey = (images.float() * weights).sum(1, keepdim=True)
            return grey.round().to(torch.uint8) if images.dtype == torch.uint8 else grey
        raise KernelsimpError(f"images have {have} channels; --channels {want} can only repeat a grey image")


_OPTION = {"size": "--input-size", "crop": "--crop", "channels": "--channels"}


def _resize(images: Tensor, shorter: int) -> Tensor:
    """Bilinear with antialiasing; the longer side is rounded down."""
    height, width = images.shape[2:]
    short = min(height, width)
    if short == shorter:
        return images
    shape = [shorter * height // short, shorter * width // short]
    return interpolate(images.contiguous(), shape, mode="bilinear", antialias=True, align_corners=False)


def _centre_crop(images: Tensor, side: int) -> Tensor:
    height, width = images.shape[2:]
    if min(height, width) < side:
        advice = f"resize with --input-size {side} or crop less"
        raise KernelsimpError(
            f"an image of {height} x {width} pixels has no crop of {side} x {side}; {advice}"
        )
    top, left = round((height - side) / 2), round((width - side) / 2)
    return images[:, :, top : top + side, left : left + side]


def read_image(path: Path) -> Tensor:
    """Decode an image file into RGB (3, H, W) uint8, turned upright by its EXIF orientation.

    Transparency is dropped, palettes and grey become RGB. Raises `KernelsimpError` that names the file where
    it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return from_pil(ImageOps.exif_transpose(image), rgb=True)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, bomb errors...
        reason = short(error, 200)
        raise KernelsimpError(f"{path}: cannot decode the image: {reason}; repair or remove it") from error


def is_read_dark(path: Path) -> bool:
    """Say whether a picture of 16 bits holds nothing above 255, so that by its range it is all but black."""
    try:
        with Image.open(path) as image:
            deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
            return deep and 0 < float(np.asarray(image).max(initial=0)) <= 255
    except Exception:  # reading it says what is wrong
        return False


def from_pil(image: Image.Image, *, rgb: bool = False) -> Tensor:
    """Return a Pillow image as (C, H, W) uint8; grey stays one channel unless `rgb`."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_eight_bits(image))
    if image.mode == "P":  # straight to RGB would warn where the palette has a transparent colour
        image = image.convert("RGBA")
    grey = image.mode in ("L", "1", "LA") and not rgb
    pixels = np.array(image.convert("L" if grey else "RGB"))
    return torch.from_numpy(pixels[None] if grey else pixels.transpose(2, 0, 1).copy())


def _to_eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Return deep grey (H, W) as 0..255: of 16 bits by their range, of floats and 32 bits by their values.

    Floats are 0..1, 0..255 or 0..65535, whichever range holds them. Raises `KernelsimpError` for NaN and for
    values in none of these.
    """
    deep = np.asarray(image, dtype=np.float64)
    low, high = float(deep.min(initial=0)), float(deep.max(initial=0))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        whole = 65535.0
    else:
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        whole = next((end for end in ranges if high <= (1 + OVERSHOOT) * end), 0)
        if not low >= -OVERSHOOT * whole or not whole:  # NaN is in no range
            listed = ", ".join(f"0..{end:.0f}" for end in ranges)
            raise KernelsimpError(f"grey values from {low:g} to {high:g}; expected {listed}")
    return np.asarray(np.rint((deep * (255 / whole)).clip(0, 255)), dtype=np.uint8)


def to_image(item: Any, where: str) -> Tensor:
    """Return what a data set yields as an image (C, H, W), uint8 or float32.

    Takes Pillow images, numpy uint8 (H, W) or (H, W, C), and tensors (C, H, W) uint8 or float, which are
    taken as they are. Raises `KernelsimpError` for anything else and for NaN or Inf.
    """
    if isinstance(item, Image.Image):
        return from_pil(item)
    if isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim in (2, 3):
        return torch.from_numpy(np.array(item[None] if item.ndim == 2 else item.transpose(2, 0, 1)))
    if (
        isinstance(item, Tensor)
        and item.ndim == 3
        and (item.is_floating_point() or item.dtype == torch.uint8)
    ):
        if item.dtype == torch.uint8:
            return item
        if not bool(item.isfinite().all()):
            raise KernelsimpError(f"{where}: the image holds NaN or Inf; repair or remove it")
        return item.float()
    wanted = "a Pillow image, numpy uint8 (H, W) or (H, W, C), or a tensor (C, H, W)"
    raise KernelsimpError(f"{where}: the image is {_describe(item)}; expected {wanted}")


def _describe(item: Any) -> str:
    if isinstance(item, np.ndarray | Tensor):
        return f"{type(item).__name__} {str(item.dtype).removeprefix('torch.')} {tuple(item.shape)}"
    return type(item).__name__
