"""Pictures of kernels: the right kernel in the right place, on one scale, in a file that may be damaged."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reports
from PIL import Image

from kernelsimp.errors import KernelsimpError
from kernelsimp.report import (
    Gallery,
    Picture,
    choose,
    load_gallery,
    report_html,
    save_gallery,
    with_p,
)
from kernelsimp.report.pictures.ideal import ideal_of
from kernelsimp.report.pictures.sprites import LEVELS, sprite, tile

HOSTILE = "<script>alert(1)</script>\x1b[31m\n|`x`](javascript:1)"


def gallery() -> Gallery:
    before, after, plan = reports.before_and_after()
    return choose(plan, before, after)


def picture(before: np.ndarray, after: np.ndarray) -> Picture:
    return Picture("conv1", (0, 0), "mirror-h", "found", before.astype(np.float32), after.astype(np.float32))


def test_a_tile_shows_before_ideal_after_and_difference_on_one_scale() -> None:
    pixels = tile(picture(np.array([[2.0, -1.0]]), np.array([[1.0, 1.0]])))
    zero = 1 + LEVELS
    half, quarter = round(LEVELS / 2), round(LEVELS / 4)
    before, ideal, after, change = [LEVELS, -half], [quarter, quarter], [half, half], [-half, LEVELS]
    drawn = [[zero + level for level in grid] for grid in (before, ideal, after, change)]
    expected = [*drawn[0], 0, *drawn[1], 0, *drawn[2], 0, *drawn[3]]
    assert pixels.tolist() == [expected]


def test_zero_nan_and_infinite_kernels_have_tiles() -> None:
    zero = 1 + LEVELS
    assert set(tile(picture(np.zeros((3, 3)), np.zeros((3, 3)))).reshape(-1).tolist()) == {0, zero}
    odd = np.array([[np.nan, np.inf, -np.inf]])
    assert set(tile(picture(odd, odd)).reshape(-1).tolist()) == {0, zero}


def test_a_kernel_of_three_sides_is_unrolled() -> None:
    assert tile(picture(np.ones((2, 3, 3)), np.ones((2, 3, 3)))).shape == (6, 15)


def test_the_ideal_is_the_projection_and_clear_where_a_name_does_not_tell_it() -> None:
    before = np.arange(9.0).reshape(3, 3)
    given = picture(before, before)
    ideal = ideal_of(given)
    assert ideal is not None
    assert (ideal == (before + before[:, ::-1]) / 2).all()
    rank_one = ideal_of(replace(given, family="rank-one"))
    assert rank_one is not None
    assert np.linalg.matrix_rank(rank_one) == 1
    zero = ideal_of(replace(given, family="zero"))
    assert zero is not None
    assert not zero.any()
    for family in ("5 of 9 cells", "denoised-median", "sobel-x", "nonsense"):
        assert ideal_of(replace(given, family=family)) is None
    assert not tile(replace(given, family="5 of 9 cells"))[:, 4:7].any()


def decoded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))


def test_a_sprite_holds_every_tile_where_it_says() -> None:
    pictures = [item for item in gallery().pictures if item.layer == "layer1.0.conv1"]
    sheet = sprite(pictures)
    pixels = np.asarray(decoded(sheet.address))
    assert pixels.shape == (sheet.height, sheet.width)
    for item, (x, y, width, height) in zip(pictures, sheet.tiles, strict=True):
        assert (pixels[y : y + height, x : x + width] == tile(item)).all()
        assert not pixels[y + height].any(), "tiles are kept apart"


def test_colours_run_from_blue_over_light_to_red() -> None:
    image = decoded(sprite([picture(np.array([[-1.0, 0.0, 1.0]]), np.array([[-1.0, 0.0, 1.0]]))]).address)
    blue, light, red = (image.convert("RGBA").getpixel((x, 0)) for x in range(3))
    assert (blue, light, red) == ((33, 102, 172, 255), (244, 243, 240, 255), (178, 24, 43, 255))
    assert image.convert("RGBA").getpixel((3, 0))[3] == 0  # type: ignore[index]


def test_the_gallery_has_the_largest_changes_and_counts_the_rest() -> None:
    before, after, plan = reports.before_and_after()
    few = choose(plan, before, after, most=5)
    whole = gallery()
    assert few.left_out == len(whole.pictures) - len(few.pictures) > 0
    for layer in reports.LAYERS:
        changes = sorted((p.change for p in whole.pictures if p.layer == layer), reverse=True)
        assert [p.change for p in few.pictures if p.layer == layer] == changes[:5]


def test_a_picture_knows_its_kernel() -> None:
    before, after, plan = reports.before_and_after()
    for item in gallery().pictures:
        choice = plan.layer(item.layer).choice[item.index]
        assert plan.structures[choice] == item.family
        assert (item.before == before[item.layer][item.index].numpy()).all()
        assert (item.after == after[item.layer][item.index].numpy()).all()
        found = bool(plan.layer(item.layer).found[item.index])
        assert item.label == ("zeroed" if item.family == "zero" else "found" if found else "imposed")


def test_p_values_reach_the_captions() -> None:
    values = {"conv1": np.arange(24.0).reshape(8, 3) / 24}
    given = with_p(gallery(), values)
    for item in given.pictures:
        expected = values["conv1"][item.index] if item.layer == "conv1" else None
        assert item.p == expected
    assert "zeroed, r\N{NO-BREAK SPACE}" in report_html(reports.report(), given)
    assert ", p\N{NO-BREAK SPACE}0.04" in report_html(reports.report(), given)


def test_a_gallery_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "pictures.npz"
    whole = replace(gallery(), left_out=7)
    named = replace(whole.pictures[0], layer=HOSTILE, p=0.25, residual=None)
    whole = replace(whole, pictures=(*whole.pictures[1:], named))
    save_gallery(whole, path)
    back = load_gallery(path)
    assert back.left_out == 7
    pairs = list(zip(whole.pictures, back.pictures, strict=True))
    for a, b in pairs:
        assert (a.layer, a.index, a.family, a.label, a.p) == (b.layer, b.index, b.family, b.label, b.p)
        assert a.residual == b.residual
        assert (a.before == b.before).all()
        assert (a.after == b.after).all()


def test_no_gallery_and_a_damaged_one(tmp_path: Path) -> None:
    assert load_gallery(tmp_path / "pictures.npz").pictures == ()
    path = tmp_path / "bad.npz"
    save_gallery(gallery(), path)
    whole = path.read_bytes()
    flipped = whole[:1000] + bytes([whole[1000] ^ 255]) + whole[1001:]
    for data in (b"", b"PK\x03\x04 rubbish", whole[:-400], b"\x80\x04.", flipped):
        path.write_bytes(data)
        with pytest.raises(KernelsimpError, match="remove the file to render without") as caught:
            load_gallery(path)
        assert "\n" not in str(caught.value)


def test_a_flipped_byte_anywhere_is_one_line_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "pictures.npz"
    save_gallery(gallery(), path)
    whole = path.read_bytes()
    refused: list[str] = []
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            load_gallery(path)
        except KernelsimpError as error:
            refused.append(str(error))
    assert len(refused) > 40
    assert not any("\n" in message for message in refused)
