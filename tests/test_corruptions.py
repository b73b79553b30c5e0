"""The corruptions: laws over the whole table, known answers, and the official folder."""

import colorsys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from saying import refusal
from torch import Tensor

from kernelsimp.data.cifar_c import EXTRA, MAIN, official_suite
from kernelsimp.data.corruptions import CORRUPTIONS, SEVERITIES, Dice, How, corrupt, style_suite
from kernelsimp.data.images import Geometry
from kernelsimp.data.splits import Split
from kernelsimp.data.stores import ArrayStore
from kernelsimp.data.transforms import Preprocess, batches

SMOOTH = ("fog", "brightness", "contrast", "saturate", "elastic_transform")
"""Their severities differ in kind or are not ordered by how far pixels move."""


def pictures(count: int = 6, side: int = 32, channels: int = 3) -> Tensor:
    """Smooth coloured shapes with a little texture, as 8-bit pictures."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, side, mode="bicubic", align_corners=False)
    texture = 0.1 * torch.rand(count, channels, side, side, generator=generator)
    return ((smooth + texture).clamp(0, 1) * 255).round() / 255


def split_of(images: Tensor) -> Split:
    store = ArrayStore((images * 255).round().to(torch.uint8), torch.arange(len(images)))
    return Split(store, range(len(images)), Geometry())


# --- laws over the table


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_gives_pictures_of_the_same_shape(name: str, channels: int) -> None:
    images = pictures(3, channels=channels)
    before = images.clone()
    for severity in SEVERITIES:
        out = corrupt(images, How(name, severity))
        assert out.shape == images.shape
        assert out.dtype == torch.float32
        levels = out * 255
        torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
        assert float(out.min()) >= 0
        assert float(out.max()) <= 1
    assert torch.equal(images, before)  # nobody writes into the caller's images


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_5_is_further_away_than_severity_1(name: str) -> None:
    images = pictures()
    distance = [float((corrupt(images, How(name, s)) - images).square().mean()) for s in SEVERITIES]
    assert all(value > 0 for value in distance[1:])
    if name not in SMOOTH:
        assert distance[4] > 1.3 * distance[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_whatever_stands_beside_it(name: str) -> None:
    images = pictures()
    how = How(name, 3, seed=4)
    whole = corrupt(images, how)
    assert torch.equal(whole, corrupt(images, how))
    alone = corrupt(images[4:5], how, [4])
    assert torch.equal(alone[0], whole[4])


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "glass_blur", "fog", "elastic_transform"])
def test_the_seed_and_the_place_change_what_is_random(name: str) -> None:
    images = pictures(1).expand(2, -1, -1, -1)
    out, other = corrupt(images, How(name, 3, seed=1)), corrupt(images, How(name, 3, seed=2))
    assert not torch.equal(out[0], out[1])
    assert not torch.equal(out, other)


def test_oblong_pictures_are_corrupted_too() -> None:
    images = pictures()[:, :, :20]
    for name in CORRUPTIONS:
        assert corrupt(images, How(name, 5)).shape == images.shape


# --- known answers


def grey(level: float, count: int = 40, side: int = 32) -> Tensor:
    return torch.full((count, 3, side, side), level)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("gaussian_noise", lambda level, c: c**2),
        ("shot_noise", lambda level, c: level / c),
        ("speckle_noise", lambda level, c: (level * c) ** 2),
        ("impulse_noise", lambda level, c: c * ((1 - level) ** 2 + level**2) / 2),
    ],
)
def test_noise_has_its_variance(name: str, variance: Callable[[float, float], float]) -> None:
    level = 102 / 255
    for severity in SEVERITIES:
        noise = corrupt(grey(level), How(name, severity)) - level
        expected = variance(level, CORRUPTIONS[name].strengths[severity - 1][0]) + 1 / (12 * 255**2)
        if name != "impulse_noise":  # salt is farther away than pepper at this level
            assert abs(float(noise.mean())) < 2e-3
        assert float((noise**2).mean()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "name", ["gaussian_blur", "defocus_blur", "glass_blur", "zoom_blur", "pixelate", "contrast"]
)
def test_a_flat_picture_stays_flat(name: str) -> None:
    for severity in SEVERITIES:
        assert torch.equal(corrupt(grey(0.4, 2), How(name, severity)), grey(0.4, 2))


def test_brightness_and_contrast_are_their_formulas() -> None:
    images = pictures().clamp_min(13 / 255)
    value = images.max(1, keepdim=True).values
    raised = images * (value + 0.15).clamp_max(1) / value
    torch.testing.assert_close(corrupt(images, How("brightness", 3)), raised, atol=0.51 / 255, rtol=0)
    assert torch.equal(
        corrupt(torch.zeros(1, 3, 2, 2), How("brightness", 5)), torch.full((1, 3, 2, 2), 76 / 255)
    )
    mean = images.mean((2, 3), keepdim=True)
    expected = ((images - mean) * 0.4 + mean).clamp(0, 1)
    torch.testing.assert_close(corrupt(images, How("contrast", 3)), expected, atol=0.51 / 255, rtol=0)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturate_agrees_with_colorsys(severity: int) -> None:
    images = pictures(1, 8)
    images[0, :, 0, 0] = 0.5  # grey: no hue of its own
    a, b = CORRUPTIONS["saturate"].strengths[severity - 1]
    out = corrupt(images, How("saturate", severity))
    for row in range(8):
        for column in range(8):
            h, s, v = colorsys.rgb_to_hsv(*images[0, :, row, column].tolist())
            expected = colorsys.hsv_to_rgb(h, min(max(a * s + b, 0), 1), v)
            assert out[0, :, row, column].tolist() == pytest.approx(expected, abs=0.51 / 255)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_shows_fewer_rows_and_columns_of_the_same_mean(severity: int) -> None:
    images = pictures(1)
    cells = int(32 * CORRUPTIONS["pixelate"].strengths[severity - 1][0])
    out = corrupt(images, How("pixelate", severity))[0]
    assert len(out.unique(dim=1)[0]) == len(out.unique(dim=2)[0, 0]) == cells
    assert float((out - images[0]).mean().abs()) < 0.02


def test_jpeg_is_pillows_at_its_quality() -> None:
    images = pictures(1)
    buffer = BytesIO()
    Image.fromarray((images[0] * 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(
        buffer, "JPEG", quality=50
    )
    expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float()
    torch.testing.assert_close(corrupt(images, How("jpeg_compression", 4))[0] * 255, expected)


def test_glass_shows_neighbours_only() -> None:
    images = torch.arange(1024.0).reshape(1, 1, 32, 32) % 256 / 255
    out = (corrupt(images, How("glass_blur", 1)) * 255).round().long()[0, 0]
    values = (images * 255).round().long()[0, 0]
    moved = 0
    for row in range(2, 32):
        for column in range(2, 32):
            near = values[row - 1 : row + 1, column - 1 : column + 1]
            assert out[row, column] in near
            moved += int(out[row, column] != values[row, column])
    assert 0.65 < moved / 900 < 0.85  # three of the four places are another pixel
    assert torch.equal(out[:2], values[:2])


def test_zoom_keeps_the_centre_and_draws_edges_outwards() -> None:
    images = torch.zeros(1, 1, 32, 32)
    images[:, :, :, 16:] = 1
    out = corrupt(images, How("zoom_blur", 5))
    torch.testing.assert_close(out, 1 - out.flip(3), atol=1.1 / 255, rtol=0)
    assert torch.equal(out[..., :15], images[..., :15])  # an edge through the middle stays there
    images = torch.zeros(1, 1, 32, 32)
    images[:, :, :, 24:] = 1
    row = corrupt(images, How("zoom_blur", 5))[0, 0, 16]
    assert float(row[24]) < 1
    assert float(row[28]) == 1
    assert float(row[22]) == 0


def test_fog_only_brightens_towards_its_peak_and_is_smoother_with_more_decay() -> None:
    images = grey(0.0, 30)
    assert torch.equal(corrupt(images, How("fog", 1)), images)  # black has no peak to keep
    images[:, :, 0, 0] = 1
    assert float(corrupt(images, How("fog", 5))[:, :, 1:].max()) == pytest.approx(1.5 / 2.5, abs=1 / 255)

    def roughness(decay: float) -> float:
        dice = Dice([np.random.default_rng(i) for i in range(30)])
        pixels = images.permute(0, 2, 3, 1).numpy()
        clouds = CORRUPTIONS["fog"].apply(pixels, (1.0, decay), dice)[:, 1:, 1:, 0]
        return float(np.square(np.diff(clouds, axis=2)).mean() / clouds.var())

    assert roughness(1.05) > 10 * roughness(3.0)


def test_elastic_severity_1_is_an_affine_map() -> None:
    side = 64
    rows, columns = torch.meshgrid(torch.arange(side) / 127, torch.arange(side) / 127, indexing="ij")
    images = torch.stack([rows + 0.25, columns + 0.25, rows])[None].expand(4, -1, -1, -1)
    out = corrupt(images, How("elastic_transform", 1))[:, :2, 24:40, 24:40]
    for axis in (2, 3):  # a ramp stays a ramp under an affine map
        bend = out.diff(n=2, dim=axis)
        assert float(bend.abs().max()) <= 2.1 / 255
    assert float((out - images[:, :2, 24:40, 24:40]).abs().max()) > 3 / 255


def test_defocus_5_is_a_disk_of_nine_pixels() -> None:
    images = torch.zeros(1, 1, 15, 15)
    images[0, 0, 7, 7] = 1
    out = corrupt(images, How("defocus_blur", 5))[0, 0]
    assert out.nonzero().tolist() == [[r, c] for r in (6, 7, 8) for c in (6, 7, 8)]
    assert len(out[6:9, 6:9].unique()) == 1


# --- as splits


def test_the_suite_is_five_severities_of_every_corruption_and_reads_like_any_split() -> None:
    split = split_of(pictures(5))
    suite = list(style_suite(split, seed=2))
    assert [(name, severity) for name, severity, _ in suite] == [
        (n, s) for n in CORRUPTIONS for s in SEVERITIES
    ]
    name, severity, corrupted = suite[2]
    small = torch.cat([images for images, _ in batches(corrupted, Preprocess(), 2)])
    whole = torch.cat([images for images, _ in batches(corrupted, Preprocess(), 5, workers=2)])
    assert torch.equal(small, whole)
    assert torch.equal(whole, corrupt(split.fetch(range(5))[0], How(name, severity, 2)))
    assert corrupted.labels.tolist() == list(range(5))
    assert corrupted.fingerprint() != suite[3][2].fingerprint()


def test_grey_pictures_have_no_saturation_to_change() -> None:
    names = {name for name, _, _ in style_suite(split_of(pictures(2, 8, 1)), seed=0)}
    assert names == set(CORRUPTIONS) - {"saturate"}


def test_what_is_no_picture_or_no_corruption_is_refused() -> None:
    words = "unknown corruption 'gausian_noise'; did you mean 'gaussian_noise'?"
    assert refusal(lambda: How("gausian_noise", 1)) == words
    assert refusal(lambda: list(style_suite(split_of(pictures(1)), 0, ["gausian_noise"]))) == words
    assert refusal(lambda: How("fog", 6)) == "severity 6 of fog; expected 1 to 5"
    words = "corruptions need images in 0..1; the images go from -1 to 0: give them before normalising"
    images = torch.tensor([-1.0, 0.0]).reshape(1, 1, 1, 2)
    assert refusal(lambda: corrupt(images, How("fog", 1))) == words
    words = "corruptions need 1 or 3 channels; the images have 2"
    assert refusal(lambda: corrupt(torch.zeros(1, 2, 4, 4), How("fog", 1))) == words


# --- the official folder


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A CIFAR-10-C folder of three images; a pixel is 50 (corruption mod 5) + 10 severity + image."""
    labels = np.tile(np.array([3, 1, 2]), 5)
    np.save(tmp_path / "labels.npy", labels)
    for i, name in enumerate((*MAIN, *EXTRA)):
        level = 50 * (i % 5) + np.repeat(np.arange(1, 6), 3) * 10 + np.tile(np.arange(3), 5)
        array = np.broadcast_to(level[:, None, None, None], (15, 32, 32, 3)).astype(np.uint8)
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path


def test_the_official_folder_is_read_by_severity(official: Path) -> None:
    suite = list(official_suite(official, Geometry()))
    assert [(name, severity) for name, severity, _ in suite] == [(n, s) for n in MAIN for s in SEVERITIES]
    for i, (_, severity, split) in enumerate(suite):
        images, labels = split.fetch(range(3))
        assert labels.tolist() == [3, 1, 2]
        assert images.shape == (3, 3, 32, 32)
        levels = [50 * (i // 5 % 5) + 10 * severity + image for image in range(3)]
        assert (images[:, 0, 0, 0] * 255).round().tolist() == levels
    assert [name for name, _, _ in official_suite(official, Geometry(), ["spatter"])] == ["spatter"] * 5


def test_an_incomplete_or_foreign_folder_is_refused(official: Path) -> None:
    (official / "snow.npy").unlink()
    (official / "frost.npy").unlink()
    words = f"{official}: snow.npy, frost.npy missing; expected a whole CIFAR-10-C folder"
    assert refusal(lambda: official_suite(official, Geometry())) == words
    words = "unknown corruption 'fogg'; did you mean 'fog'?"
    assert refusal(lambda: official_suite(official, Geometry(), ["fogg"])) == words
    np.save(official / "fog.npy", np.zeros((10, 32, 32, 3), np.uint8))
    words = (
        f"{official}/fog.npy: uint8 (10, 32, 32, 3); expected uint8 (15, H, W, 3), one picture a label and "
    )
    assert refusal(lambda: official_suite(official, Geometry(), ["fog"])) == words + "five severities"
    (official / "fog.npy").write_bytes(b"not an array")
    words = refusal(lambda: official_suite(official, Geometry(), ["fog"]))
    assert words.startswith(f"{official}/fog.npy: cannot read as .npy: ")
