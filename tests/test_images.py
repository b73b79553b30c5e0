"""Images of every size, mode, rotation and number type become what a network takes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import pixels
from PIL import Image
from saying import refusal

from kernelsimp.data.images import Geometry, read_image, to_image
from kernelsimp.data.stores import as_images, as_labels


def test_geometry_resizes_the_shorter_side_then_crops_the_centre() -> None:
    image = torch.zeros(1, 1, 40, 60, dtype=torch.uint8)
    image[:, :, 15:25, 25:35] = 255
    out = Geometry(size=20, crop=10)(image)
    assert out.shape == (1, 1, 10, 10)
    assert float(out[0, 0, 5, 5]) == 1
    assert float(out[0, 0, 0, 0]) == 0
    torch.testing.assert_close(out, out.flip(2))
    torch.testing.assert_close(out, out.flip(3))


def test_resizing_agrees_with_pillow() -> None:
    array = pixels(1, 40, 52, 3)[0]
    ours = Geometry(size=24)(torch.from_numpy(array).permute(2, 0, 1)[None])[0]
    theirs = np.array(Image.fromarray(array).resize((31, 24), Image.Resampling.BILINEAR))
    assert ours.shape == (3, 24, 31)
    assert float((ours * 255 - torch.from_numpy(theirs).permute(2, 0, 1)).abs().max()) <= 1


def test_channels() -> None:
    grey = torch.full((2, 1, 3, 3), 128, dtype=torch.uint8)
    rgb = Geometry(channels=3)(grey)
    assert rgb.shape == (2, 3, 3, 3)
    back = Geometry(channels=1)((rgb * 255).to(torch.uint8))
    torch.testing.assert_close(back, grey / 255)
    words = "images have 3 channels; --channels 4 can only repeat a grey image"
    assert refusal(lambda: Geometry(channels=4)(rgb)) == words


def test_geometry_refuses() -> None:
    words = "an image of 32 x 32 pixels has no crop of 224 x 224; resize with --input-size 224 or crop less"
    assert refusal(lambda: Geometry(crop=224)(torch.zeros(1, 3, 32, 32))) == words
    assert refusal(lambda: Geometry(size=0)) == "--input-size is 0; expected at least 1"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK", "I;16"])
def test_every_kind_of_file_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
    white = {"I;16": 65535, "P": 1, "CMYK": (0, 0, 0, 0)}.get(mode)
    image = Image.new(mode, (5, 4), white if white is not None else "white")
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.info["transparency"] = b"\x80\x40"
    image.save(path)
    pixels_read = read_image(path)
    assert pixels_read.shape == (3, 4, 5)
    assert int(pixels_read.min()) == 255


def test_exif_orientation_is_obeyed(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4))
    image.putpixel((0, 0), (255, 255, 255))
    exif = image.getexif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    image.save(tmp_path / "x.png", exif=exif)
    upright = read_image(tmp_path / "x.png")
    assert upright.shape == (3, 6, 4)
    assert upright[0].nonzero().tolist() == [[0, 3]]


def test_arrays_of_every_sort() -> None:
    assert as_images(np.ones((2, 3, 4), np.bool_), "x").unique().tolist() == [255]
    assert as_images(np.zeros((2, 3, 5, 6), np.int64), "x").shape == (2, 3, 5, 6)
    assert as_images(np.zeros((2, 5, 6, 3), np.float64), "x").dtype == torch.float32
    assert as_labels(np.array([[1.0], [2.0]]), "x").tolist() == [1, 2]
    words = "x: labels are float64; expected whole numbers from 0"
    assert refusal(lambda: as_labels(np.array([0.5]), "x")) == words
    assert to_image(np.zeros((4, 5, 3), np.uint8), "x").shape == (3, 4, 5)
