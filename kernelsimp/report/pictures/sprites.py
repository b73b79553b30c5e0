"""Many kernels as one small palette PNG, so that a page of thousands stays light.

A tile is before, ideal, after and difference side by side, one pixel a cell, with clear columns between;
tiles stand in rows with a clear pixel around each. The grids of a kernel share one scale: the largest
absolute value of before and after. The ideal is the nearest member of the kernel's structure, clear where
its name does not tell one. Blue is negative, red positive, near-white zero.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kernelsimp.report.pictures.gallery import Grid, Picture
from kernelsimp.report.pictures.ideal import ideal_of

LEVELS = 63
"""Levels on each side of zero; the palette has one clear entry besides."""

ACROSS = 16
"""Tiles in a row of the sprite."""

_NEGATIVE, _ZERO, _POSITIVE = (33, 102, 172), (244, 243, 240), (178, 24, 43)
_CLEAR = 0

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Sprite:
    """A PNG as a data address, its size in pixels, and each tile's (x, y, width, height)."""

    address: str
    width: int
    height: int
    tiles: tuple[tuple[int, int, int, int], ...]


def sprite(pictures: Sequence[Picture]) -> Sprite:
    """Return one sprite of `pictures`, which all have kernels of one shape."""
    tiles = [tile(picture) for picture in pictures]
    high, wide = tiles[0].shape
    rows = -(-len(tiles) // ACROSS)
    sheet = np.full((rows * (high + 1), min(len(tiles), ACROSS) * (wide + 1)), _CLEAR, dtype=np.uint8)
    boxes = []
    for place, pixels in enumerate(tiles):
        y, x = (place // ACROSS) * (high + 1), (place % ACROSS) * (wide + 1)
        sheet[y : y + high, x : x + wide] = pixels
        boxes.append((x, y, wide, high))
    return Sprite(_png_address(sheet), sheet.shape[1], sheet.shape[0], tuple(boxes))


def tile(picture: Picture) -> Pixels:
    """Return the palette indices of one kernel's tile, (kh, 4 * kw + 3)."""
    before, after = _flat(picture.before), _flat(picture.after)
    top = max(float(np.abs(before).max(initial=0)), float(np.abs(after).max(initial=0)))
    ideal = ideal_of(picture)
    drawn = np.full(before.shape, _CLEAR, np.uint8) if ideal is None else _indices(_flat(ideal), top)
    gap = np.full((before.shape[0], 1), _CLEAR, dtype=np.uint8)
    first, last, change = (_indices(grid, top) for grid in (before, after, after - before))
    return np.hstack([first, gap, drawn, gap, last, gap, change])


def _flat(grid: Grid) -> NDArray[np.float64]:
    """Return a kernel of any number of sides as rows of its last side, without NaN or infinity."""
    rows = np.asarray(grid, dtype=np.float64)
    return np.nan_to_num(rows.reshape(-1, rows.shape[-1]), nan=0.0, posinf=0.0, neginf=0.0)


def _indices(grid: NDArray[np.float64], top: float) -> Pixels:
    scaled = np.clip(grid / top, -1, 1) if top > 0 else np.zeros_like(grid)
    return (1 + LEVELS + np.rint(scaled * LEVELS)).astype(np.uint8)


def _palette() -> list[int]:
    """Return clear, then 2 * LEVELS + 1 colours from negative over zero to positive, as r, g, b."""
    steps = np.linspace(-1, 1, 2 * LEVELS + 1)[:, None]
    ends = np.where(steps < 0, _NEGATIVE, _POSITIVE)
    colours = np.rint(np.asarray(_ZERO) * (1 - np.abs(steps)) + ends * np.abs(steps))
    return [0, 0, 0, *(int(value) for value in colours.reshape(-1))]


def _png_address(sheet: Pixels) -> str:
    image = Image.fromarray(sheet, mode=None).convert("L")
    image.putpalette(_palette())
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True, transparency=_CLEAR)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
