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
from kernelsimp.report.pictures.ideal import nearest_member

PIXELS = 416
"""A sheet is at most this wide, so that two stand beside each other."""

ACROSS = 12
MOST = 48
"""Kernels drawn of one family over all layers."""

_NEGATIVE, _ZERO, _POSITIVE = np.array([(33, 102, 172), (244, 243, 240), (178, 24, 43)], dtype=np.float64)

CLEAR = 255
"""The palette entry of what lies between the kernels."""

Image_ = NDArray[np.uint8]

TELLING = 8
"""Kernels on the first screen of a scan."""
TELLING_SAYS = (
    "The least chance-like kernel of each family, and the ideal nearest to it where its name tells one: blue "
    "is negative, red positive."
)


def telling_samples(scan: Scan) -> tuple[Markup, ...]:
    """Return a figure of the least chance-like kernel of each family, beside its ideal; the least first."""
    least: dict[str, tuple[str, Sample]] = {}
    for layer in scan.layers:
        for sample in layer.samples:
            known = least.get(sample.family)
            if sample.cells.ndim == 2 and (known is None or sample.p < known[1].p):
                least[sample.family] = (layer.name, sample)
    ranked = sorted(least.values(), key=lambda item: (item[1].p, item[1].residual))
    return tuple(_beside_its_ideal(layer, sample) for layer, sample in ranked[:TELLING])


def _beside_its_ideal(layer: str, sample: Sample) -> Markup:
    ideal = nearest_member(sample.family, sample.cells)
    grids = [sample.cells, *([] if ideal is None else [ideal])]
    top = max(float(np.abs(np.nan_to_num(grid)).max()) for grid in grids)
    name = f"{printable(layer)}[{sample.index[0]},{sample.index[1]}]"
    figures = (
        f"r\N{NO-BREAK SPACE}{fmt.number(sample.residual, 2)}, p\N{NO-BREAK SPACE}{fmt.p_value(sample.p)}"
    )
    caption = f"{printable(sample.name)}: {name}, {figures}"
    return img(sheet([tile(grid, top) for grid in grids]), f"{name} and its ideal", caption)


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
    yield img(sheet(tiles), f"filters of {printable(layer.name)} in colour", caption, "colour")


def sheet(tiles: Sequence[Image_]) -> Image_:
    """Return tiles (kh, kw, 3) of any sizes on one clear sheet (height, width, 4), `ACROSS` a row."""
    high, wide = (max(tile.shape[axis] for tile in tiles) + 1 for axis in (0, 1))
    rows = -(-len(tiles) // ACROSS)
    page = np.zeros((rows * high - 1, min(len(tiles), ACROSS) * wide - 1, 4), dtype=np.uint8)
    for place, tile in enumerate(tiles):
        y, x = (place // ACROSS) * high, (place % ACROSS) * wide
        page[y : y + tile.shape[0], x : x + tile.shape[1], :3] = tile
        page[y : y + tile.shape[0], x : x + tile.shape[1], 3] = 255
    enlarged = max(1, min(8, PIXELS // (ACROSS * wide)))
    return page.repeat(enlarged, axis=0).repeat(enlarged, axis=1)


def tile(cells: NDArray[np.floating[Any]], top: float | None = None) -> Image_:
    """Return one kernel in colours, (kh, kw, 3), full at `top`, its own largest value unless one is given.

    A kernel of three sides lies slice above slice.
    """
    grid = np.nan_to_num(np.asarray(cells, dtype=np.float64).reshape(-1, cells.shape[-1]))
    share = (grid / (top or float(np.abs(grid).max()) or 1.0))[..., None].clip(-1, 1)
    ends = np.where(share < 0, _NEGATIVE, _POSITIVE)
    return np.asarray(np.rint(_ZERO * (1 - np.abs(share)) + ends * np.abs(share)).astype(np.uint8))


def img(page: Image_, alt: str, caption: str, look: str = "") -> Markup:
    """Return a figure of a picture (height, width, 4), clear where its last channel is 0."""
    stream = io.BytesIO()
    drawn = Image.fromarray(np.ascontiguousarray(page[..., :3])).quantize(255)
    indices = np.where(page[..., 3] > 0, np.asarray(drawn), CLEAR).astype(np.uint8)
    palette = drawn.getpalette() or []
    drawn = Image.fromarray(indices).convert("L")
    drawn.putpalette([*palette, *[0] * (768 - len(palette))])
    drawn.save(stream, "PNG", optimize=True, transparency=CLEAR)
    address = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    size = f'width="{page.shape[1]}" height="{page.shape[0]}"'
    image = f'<img src="{address}" {size} alt="{escape(alt)}">'
    looks = f' class="{look}"' if look else ""
    return Markup(f"<figure{looks}>{image}<figcaption>{escape(caption)}</figcaption></figure>")
