"""Kernels of a scan as pictures: the nearest of each family, and a first layer's filters in colour.

Each picture is a PNG in the page itself, enlarged in its pixels, one scale a kernel: blue is negative, red
positive, near-white zero. Colours are the filter's response to red, green and blue, grey where none.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

from kernelsimp.error_text import printable
from kernelsimp.records.scan import LayerScan, Sample, Scan
from kernelsimp.report import fmt

PIXELS = 416
"""A sheet is at most this wide, so that two stand beside each other."""

ACROSS = 12
MOST = 48
"""Kernels drawn of one family over all layers."""

_NEGATIVE, _ZERO, _POSITIVE = np.array([(33, 102, 172), (244, 243, 240), (178, 24, 43)], dtype=np.float64)

Image_ = NDArray[np.uint8]


def family_pictures(scan: Scan) -> tuple[Markup, ...]:
    """Return one figure for each family that has kernels, those with most kernels first."""
    groups: dict[str, list[tuple[str, Sample]]] = {}
    for layer in scan.layers:
        for sample in layer.samples:
            groups.setdefault(sample.family, []).append((layer.name, sample))
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(_figure(family, items) for family, items in ordered)


def colour_pictures(scan: Scan) -> tuple[Markup, ...]:
    """Return the filters of a first layer that are nearly colour x kernel, drawn in colour."""
    return tuple(figure for layer in scan.layers for figure in _colour_layer(layer))


def _figure(family: str, items: Sequence[tuple[str, Sample]]) -> Markup:
    nearest = sorted(items, key=lambda item: item[1].residual)[:MOST]
    tiles = [tile(sample.cells) for _, sample in nearest]
    said = "; ".join(
        f"{printable(layer)}[{sample.index[0]},{sample.index[1]}] {printable(sample.name)}, "
        f"r {fmt.number(sample.residual, 2)}, p {fmt.p_value(sample.p)}"
        for layer, sample in nearest[:3]
    )
    caption = f"{printable(family)}: the nearest {len(nearest)}, from left to right. {said}"
    return img(sheet(tiles), f"kernels of the family {printable(family)}", caption)


def _colour_layer(layer: LayerScan) -> Iterator[Markup]:
    found = layer.extra.get("colour")
    if not found:
        return
    tiles = []
    for colour, kernel in zip(found["colour"], found["kernel"], strict=True):
        product = np.multiply.outer(np.asarray(kernel), np.asarray(colour))
        top = float(np.abs(product).max()) or 1.0
        tiles.append(np.rint(127.5 + 127.5 * product / top).astype(np.uint8))
    caption = (
        f"{printable(layer.name)}: each filter as the nearest colour times a kernel; {found['separable']} of "
        f"{found['filters']} are that within the tolerance."
    )
    yield img(sheet(tiles), f"filters of {printable(layer.name)} in colour", caption)


def sheet(tiles: Sequence[Image_]) -> Image_:
    """Return tiles (kh, kw, 3) of any sizes on one white sheet, `ACROSS` a row."""
    high, wide = (max(tile.shape[axis] for tile in tiles) + 1 for axis in (0, 1))
    rows = -(-len(tiles) // ACROSS)
    page = np.full((rows * high, min(len(tiles), ACROSS) * wide, 3), 255, dtype=np.uint8)
    for place, tile in enumerate(tiles):
        y, x = (place // ACROSS) * high, (place % ACROSS) * wide
        page[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    enlarged = max(1, min(8, PIXELS // (ACROSS * wide)))
    return page.repeat(enlarged, axis=0).repeat(enlarged, axis=1)


def tile(cells: NDArray[np.floating[Any]]) -> Image_:
    """Return one kernel in colours, (kh, kw, 3); a kernel of three sides lies slice above slice."""
    grid = np.nan_to_num(np.asarray(cells, dtype=np.float64).reshape(-1, cells.shape[-1]))
    share = (grid / (float(np.abs(grid).max()) or 1.0))[..., None]
    ends = np.where(share < 0, _NEGATIVE, _POSITIVE)
    return np.asarray(np.rint(_ZERO * (1 - np.abs(share)) + ends * np.abs(share)).astype(np.uint8))


def img(page: Image_, alt: str, caption: str) -> Markup:
    stream = io.BytesIO()
    Image.fromarray(page).quantize(255).save(stream, "PNG", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    size = f'width="{page.shape[1]}" height="{page.shape[0]}"'
    image = f'<img src="{address}" {size} alt="{escape(alt)}">'
    return Markup(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")
