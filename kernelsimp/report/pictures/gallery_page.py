"""Walls of pictures for a page: by layer, by structure, and the largest changes of all.

Each layer's pictures lie in one sprite; a picture is placed by its box in the sprite of its layer, so the
same kernel can hang in several places for a few bytes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest

import numpy as np

from kernelsimp.error_text import printable
from kernelsimp.report import fmt
from kernelsimp.report.pictures.gallery import Gallery, Picture
from kernelsimp.report.pictures.ideal import family_words
from kernelsimp.report.pictures.sprites import Sprite, sprite

TOP = 24
"""Pictures in the opening row of the gallery: the largest changes of all layers."""

TELLING = 8
"""Pictures on the first screen."""

FEW = 4
"""Kernels that a page of two runs shows of each."""

OF_A_STRUCTURE = 12
"""Pictures of each structure where they hang by structure."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Shown:
    """One picture placed: its box in the sprite numbered `sheet`, its caption and its alt text."""

    sheet: int
    box: str
    family: str
    caption: str
    alt: str


@dataclass(frozen=True)
class LayerPictures:
    """The pictures of one layer, and the sprite they lie in."""

    layer: str
    sheet: Sprite
    pictures: tuple[Shown, ...]


@dataclass(frozen=True)
class PictureKind:
    """Some pictures of one structure, and how many of it are drawn on the page in all."""

    family: str
    drawn: int
    pictures: tuple[Shown, ...]


@dataclass(frozen=True, eq=False)
class _SheetOfPictures:
    """A picture, where it lies, and its change and its norm relative to the kernels of its layer."""

    picture: Picture
    sheet: int
    box: Box
    change: float
    strength: float

    @property
    def tells(self) -> bool:
        return self.picture.label in ("found", "imposed") and self.strength > 0

    @property
    def worth(self) -> float:
        """Strength in the layer less what is off, above one for what is found."""
        near = min(self.strength, 3) / 3 / (1 + 4 * self.change / self.strength)
        return near + (self.picture.label == "found")

    def shown(self) -> Shown:
        return _place_picture(self.sheet, self.picture, self.box, full=True)


def layer_pictures(gallery: Gallery) -> list[LayerPictures]:
    """Return one wall a layer, its pictures in the gallery's order."""
    grouped: dict[str, list[Picture]] = {}
    for picture in gallery.pictures:
        grouped.setdefault(picture.layer, []).append(picture)
    return [
        _layer_pictures(place, layer, pictures) for place, (layer, pictures) in enumerate(grouped.items())
    ]


def largest(gallery: Gallery, placed: list[LayerPictures]) -> list[Shown]:
    """Return the largest changes over all layers, the structures taking turns."""
    turns = _by_family(gallery, placed).values()
    dealt = (item for turn in zip_longest(*turns) for item in turn if item is not None)
    chosen = sorted(islice(dealt, TOP), key=lambda item: -item.change)
    return [item.shown() for item in chosen]


def telling(gallery: Gallery, placed: list[LayerPictures]) -> list[Shown]:
    """Return the kernels of the first screen: strong in their layer, near their structure, found ones first.

    Structures take turns, so that many are seen; kernels that became zero or were denoised show none.
    """
    return [item.shown() for item in islice(_ranked(gallery, placed), TELLING)]


def few_of_each(galleries: Sequence[Gallery], names: Sequence[str]) -> Gallery:
    """Return the most telling kernels that all runs changed, as each has them, under the runs' names."""
    known = [{(item.layer, item.index): item for item in gallery.pictures} for gallery in galleries]
    if not all(known) or not known:
        return Gallery(())
    ranked = (item.picture for item in _ranked(galleries[0], layer_pictures(galleries[0])))
    places = ((item.layer, item.index) for item in ranked)
    shared = list(islice((place for place in places if all(place in own for own in known)), FEW))
    named = zip(known, names, strict=True)
    return Gallery(
        tuple(replace(own[place], layer=f"{name}: {place[0]}") for own, name in named for place in shared)
    )


def placed_pictures(gallery: Gallery, placed: list[LayerPictures]) -> list[Shown]:
    """Return all pictures of a gallery, layer by layer, each with the name of its layer."""
    return [item.shown() for item in _hung(gallery.pictures, placed)]


def _ranked(gallery: Gallery, placed: list[LayerPictures]) -> Iterator[_SheetOfPictures]:
    """Yield the kernels that tell, the structures by turns, in each turn the worthiest first."""
    turns = [
        sorted((item for item in items if item.tells), key=lambda item: -item.worth)
        for items in _by_family(gallery, placed).values()
    ]
    for turn in zip_longest(*turns):
        yield from sorted(filter(None, turn), key=lambda item: -item.worth)


def by_structure(gallery: Gallery, placed: list[LayerPictures]) -> list[PictureKind]:
    """Return the largest changes of each structure over all layers, the commonest structures first."""
    kinds = [
        PictureKind(printable(family), len(items), tuple(item.shown() for item in items[:OF_A_STRUCTURE]))
        for family, items in _by_family(gallery, placed).items()
    ]
    return sorted(kinds, key=lambda kind: (-kind.drawn, kind.family))


def _by_family(gallery: Gallery, placed: list[LayerPictures]) -> dict[str, list[_SheetOfPictures]]:
    """Return the pictures of each structure, the largest changes first."""
    families: dict[str, list[_SheetOfPictures]] = {}
    for item in _hung(gallery.pictures, placed):
        families.setdefault(item.picture.family, []).append(item)
    for items in families.values():
        items.sort(key=lambda item: -item.change)
    return families


def _hung(pictures: Iterable[Picture], placed: list[LayerPictures]) -> Iterator[_SheetOfPictures]:
    """Yield each picture with its place; a change is measured by its layer's root mean square norm."""
    grouped: dict[str, list[Picture]] = {}
    for picture in pictures:
        grouped.setdefault(picture.layer, []).append(picture)
    for sheet, items in enumerate(grouped.values()):
        energies = [float(np.square(item.before, dtype=np.float64).sum()) for item in items]
        norm = float(np.sqrt(np.mean(energies))) or 1.0
        for picture, box, energy in zip(items, placed[sheet].sheet.tiles, energies, strict=True):
            yield _SheetOfPictures(picture, sheet, box, picture.change / norm, float(np.sqrt(energy)) / norm)


def _layer_pictures(place: int, layer: str, pictures: list[Picture]) -> LayerPictures:
    sheet = sprite(pictures)
    placed = [_place_picture(place, picture, box) for picture, box in zip(pictures, sheet.tiles, strict=True)]
    return LayerPictures(printable(layer), sheet, tuple(placed))


def _place_picture(sheet: int, picture: Picture, box: Box, *, full: bool = False) -> Shown:
    """Return a picture in its place; a figure and its letter stay on one line of the caption."""
    index = f"[{picture.index[0]},{picture.index[1]}]"
    words = printable(family_words(picture.family))
    figures = ["zeroed"] if picture.label == "zeroed" else [words, picture.label]
    figures += [f"r\N{NO-BREAK SPACE}{fmt.number(picture.residual, 2)}"] * (picture.residual is not None)
    figures += _change_words(picture)
    figures += [f"p\N{NO-BREAK SPACE}{fmt.p_value(picture.p)}"] * (picture.p is not None)
    name = printable(picture.layer) + index if full else index
    alt = f"{name} before, ideal, after, difference"
    boxed = " ".join(str(side) for side in box)
    caption = f"{name} {', '.join(figures)}".replace("e-", "e\N{NON-BREAKING HYPHEN}")
    return Shown(sheet, boxed, printable(picture.family), caption, alt)


def _change_words(picture: Picture) -> list[str]:
    """Say by how much of its own norm a kernel changed."""
    norm = float(np.linalg.norm(picture.before.astype(np.float64)))
    known = norm > 0 and np.isfinite(norm) and np.isfinite(picture.change) and picture.label != "zeroed"
    return [f"changed by {100 * picture.change / norm:.0f}\N{NO-BREAK SPACE}%"] if known else []
