"""Pictures letter by letter, and names against sixty planted kernels that were labelled by hand."""

import numpy as np
import pytest
import torch

from kernelsimp.kernels import pictures
from kernelsimp.kernels.families import FAMILIES, find
from kernelsimp.kernels.pictures import describe, match, orbit_picture, picture, sentence
from kernelsimp.kernels.template_fit import fit
from kernelsimp.kernels.templates import NAMES

SOBEL = torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]])


def test_a_picture_has_a_sign_and_a_shade_for_each_cell():
    assert picture(SOBEL) == ["-▒ -█ -▒", " ·  ·  ·", "+▒ +█ +▒"]
    assert picture(SOBEL, ascii_only=True) == ["-= -# -=", " .  .  .", "+= +# +="]


def test_shades_rise_with_strength_and_do_not_depend_on_scale():
    ramp = torch.tensor([[0.0, 0.05, 0.2, 0.4, 0.7, 1.0]])
    assert picture(ramp) == [" ·  · +░ +▒ +▓ +█"]
    assert picture(-1e-30 * ramp.double()) == [" ·  · -░ -▒ -▓ -█"]


def test_broken_and_zero_kernels_have_pictures():
    assert picture(torch.tensor([[float("nan"), 1.0], [float("-inf"), 0.0]])) == ["?? +█", "??  ·"]
    assert picture(torch.zeros(1, 2)) == [" ·  ·"]


def test_a_family_is_drawn_as_letters():
    assert orbit_picture(find("odd-h", (3, 3))) == [" a  · -a", " b  · -b", " c  · -c"]
    assert orbit_picture(find("equal-rows", (2, 3))) == [" a  b  c", " a  b  c"]


def test_every_family_and_template_has_words():
    assert set(pictures.PHRASES) == {row.name for row in FAMILIES}
    assert set(pictures.NOUNS) == set(NAMES)


def grid(side):
    y, x = np.indices((side, side)) - (side - 1) / 2
    return x, y


def bell(side, sigma):
    x, y = grid(side)
    return np.exp(-(x**2 + y**2) / (2 * sigma**2))


def slope(side, sigma, degrees):
    """First derivative of a bell; the kernel varies along `degrees`, clockwise from the right."""
    x, y = grid(side)
    t = np.radians(degrees)
    return (x * np.cos(t) + y * np.sin(t)) * bell(side, sigma)


def ridge(side, sigma, degrees):
    x, y = grid(side)
    t = np.radians(degrees)
    return (1 - ((x * np.cos(t) + y * np.sin(t)) / sigma) ** 2) * bell(side, sigma)


def wave(side, wavelength, sigma, degrees, phase):
    x, y = grid(side)
    t = np.radians(degrees)
    return np.cos(2 * np.pi * (x * np.cos(t) + y * np.sin(t)) / wavelength + phase) * bell(side, sigma)


def mexican(side, sigma):
    x, y = grid(side)
    return (2 - (x**2 + y**2) / sigma**2) * bell(side, sigma)


def rows(*values):
    return np.array(values, dtype=float)


def random(side, seed):
    return np.random.default_rng(seed).standard_normal((side, side))


def long_bell(side, short, long, degrees):
    x, y = grid(side)
    t = np.radians(degrees)
    u, v = x * np.cos(t) + y * np.sin(t), y * np.cos(t) - x * np.sin(t)
    return np.exp(-((u / short) ** 2 + (v / long) ** 2) / 2)


D1, D2 = "Gaussian-derivative", "second Gaussian-derivative"
HALF, TOP, LEFT = "odd under half a turn", "odd top-bottom", "odd left-right"
BOTH = "even left-right and top-bottom"
A = random(3, 100)
B = random(5, 101)

PLANTED = [
    (rows([-1, 0, 1], [-2, 0, 2], [-1, 0, 1]), f"vertical Sobel, {LEFT}"),
    (rows([1, 0, -1], [2, 0, -2], [1, 0, -1]), f"vertical Sobel, {LEFT}"),
    (rows([-1, -2, -1], [0, 0, 0], [1, 2, 1]), f"horizontal Sobel, {TOP}"),
    (rows([3, 6, 3], [0, 0, 0], [-3, -6, -3]), f"horizontal Sobel, {TOP}"),
    (rows([-1, 0, 1], [-1, 0, 1], [-1, 0, 1]), f"vertical Prewitt, {LEFT}"),
    (rows([1, 1, 1], [0, 0, 0], [-1, -1, -1]), f"horizontal Prewitt, {TOP}"),
    (rows([0, 1, 0], [1, -4, 1], [0, 1, 0]), "Laplacian"),
    (rows([0, -1, 0], [-1, 5, -1], [0, -1, 0]), "Laplacian"),
    (rows([-1, -1, -1], [-1, 8, -1], [-1, -1, -1]), "eight-neighbour Laplacian"),
    (rows([1, 1, 1], [1, 1, 1], [1, 1, 1]), "constant"),
    (np.full((5, 5), -0.3), "constant"),
    (rows([0, 0, 0], [0, 1, 0], [0, 0, 0]), "centre cell"),
    (-np.pad([[1.0]], 2), "centre cell"),
    (np.zeros((3, 3)), "zero"),
    (np.zeros((5, 5)), "zero"),
    (bell(5, 1.0), "Gaussian"),
    (bell(5, 1.4), "Gaussian"),
    (bell(7, 1.5), "Gaussian"),
    (-bell(7, 2.0) + 0.2, "Gaussian"),
    (mexican(7, 1.2), "Laplacian of Gaussian"),
    (-mexican(7, 1.6), "Laplacian of Gaussian"),
    (mexican(5, 1.0), "Laplacian of Gaussian"),
    (bell(7, 0.8) - bell(7, 2.4) / 9, "difference of Gaussians"),
    (bell(7, 1.0) - bell(7, 2.5) / 6.25, "difference of Gaussians"),
    (slope(5, 1.0, 90), f"horizontal {D1}, {TOP}"),
    (-slope(7, 1.5, 90), f"horizontal {D1}, {TOP}"),
    (slope(5, 1.2, 0), f"vertical {D1}, {LEFT}"),
    (slope(7, 1.8, 180), f"vertical {D1}, {LEFT}"),
    (slope(7, 1.5, 45), f"anti-diagonal {D1}, odd across the anti-diagonal"),
    (slope(7, 1.5, 135), f"diagonal {D1}, odd across the diagonal"),
    (slope(7, 1.4, 30), f"{D1} at 60 degrees, {HALF}"),
    (slope(5, 1.1, 60), f"{D1} at 30 degrees, {HALF}"),
    (slope(7, 1.7, 105), f"{D1} at 165 degrees, {HALF}"),
    (ridge(5, 1.0, 0), f"vertical {D2}, {BOTH}"),
    (ridge(7, 1.3, 90), f"horizontal {D2}, {BOTH}"),
    (-ridge(7, 1.6, 0), f"vertical {D2}, {BOTH}"),
    (ridge(7, 1.3, 45), f"anti-diagonal {D2}, even across both diagonals"),
    (ridge(7, 1.4, 120), f"{D2} at 150 degrees, even under half a turn"),
    (wave(7, 3.0, 1.8, 0, 0.0), f"vertical Gabor, {BOTH}"),
    (wave(7, 3.2, 1.9, 90, np.pi / 2), f"horizontal Gabor, {TOP}"),
    (wave(7, 3.0, 2.0, 30, 0.6), "Gabor at 60 degrees"),
    (wave(7, 3.5, 2.0, 75, 1.0), "Gabor at 15 degrees"),
    (long_bell(7, 0.8, 2.2, 0), f"vertical long Gaussian, {BOTH}"),
    (long_bell(7, 0.8, 2.0, 90), f"horizontal long Gaussian, {BOTH}"),
    (long_bell(7, 0.8, 2.4, 30), "long Gaussian at 60 degrees, even under half a turn"),
    (np.repeat(rows([1, -0.2, 0.4, -1.3, 0.6]), 5, axis=0), "equal rows"),
    (np.repeat(rows([1, -0.2, 0.4, -1.3, 0.6]), 5, axis=0).T, "equal columns"),
    (A + A[:, ::-1], "even left-right"),
    (A + A[::-1], "even top-bottom"),
    (A + A.T, "even across the diagonal"),
    (A - A[:, ::-1], LEFT),
    (A - A.T, "odd across the diagonal"),
    (B + B[::-1, ::-1], "even under half a turn"),
    (B - B[::-1, ::-1], HALF),
    (B + B[:, ::-1] + B[::-1] + B[::-1, ::-1], BOTH),
    (np.outer([1, 0.3, -0.7, 0.2, 1.1], [0.4, 1, -0.8, 0.5, -0.2]), "rank one"),
    (np.where(random(5, 7) > 0, 1.0, -0.4), "two values"),
    (random(5, 103), "no simple structure"),
    (random(7, 104), "no simple structure"),
    (np.pad(rows([0.7, -0.4, 1, 0.5, -0.9]), ((2, 2), (0, 0))), "centre row only"),
]


def names_of_planted(noise):
    """Name each planted kernel after adding white noise of relative norm `noise`."""
    generator = np.random.default_rng(0)
    found = [""] * len(PLANTED)
    for side in (3, 5, 7):
        places = [place for place, (kernel, _) in enumerate(PLANTED) if len(kernel) == side]
        bank = np.stack([PLANTED[place][0] for place in places])
        dirt = generator.standard_normal(bank.shape)
        size = np.linalg.norm(bank, axis=(1, 2)) / np.linalg.norm(dirt, axis=(1, 2))
        for place, name in zip(
            places, describe(torch.from_numpy(bank + noise * size[:, None, None] * dirt)), strict=True
        ):
            found[place] = name
    return found


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03])
def test_names_agree_with_the_labels_of_sixty_planted_kernels(noise):
    labels = [label for _, label in PLANTED]
    assert len(labels) == 60
    found = names_of_planted(noise)
    wrong = [(label, name) for label, name in zip(labels, found, strict=True) if label != name]
    assert len(wrong) <= 6, wrong


def test_a_bank_is_named_as_its_kernels_one_by_one():
    kernels = torch.stack([torch.from_numpy(kernel).float() for kernel, _ in PLANTED if len(kernel) == 3])
    together = describe(kernels)
    assert together == [describe(kernel[None])[0] for kernel in kernels]
    assert describe(kernels, match(kernels), fit(kernels)) == together
    assert len(set(together)) > 8


def test_match_takes_least_dimension_then_least_residual():
    kernels = torch.stack(
        [SOBEL, torch.ones(3, 3), torch.randn(3, 3, generator=torch.Generator().manual_seed(0))]
    )
    found = match(kernels)
    assert [found.families[index] if index >= 0 else None for index in found.best] == [
        "even-h-odd-v",
        "constant",
        None,
    ]
    assert match(torch.ones(2, 1, 1)).best.tolist() == [-1, -1]


def test_broken_kernels_and_lines_have_names():
    kernels = SOBEL.repeat(2, 1, 1)
    kernels[1, 0, 0] = torch.nan
    assert describe(kernels) == [f"horizontal Sobel, {TOP}", "no simple structure"]
    assert describe(torch.tensor([[[-1.0, -2.0, 0.0, 2.0, 1.0]]])) == [f"vertical Sobel, {LEFT}"]
    assert describe(torch.zeros(0, 3, 3)) == []


def test_a_template_with_more_numbers_than_the_kernel_needs_is_not_named():
    kernels = torch.randn(3000, 3, 3, generator=torch.Generator().manual_seed(1))
    fitted = fit(kernels)
    gabor = fitted.names.index("gabor")
    chance = torch.nonzero((fitted.template == gabor) & (fitted.residual <= 0.1))[:, 0]
    alone = chance[match(kernels[chance]).best < 0]
    assert len(alone) > 5
    assert describe(kernels[alone]).count("no simple structure") >= 0.75 * len(alone)


def test_pairs_of_lines_are_said_in_words():
    kernel = torch.tensor(
        [[1.0, -0.4, 0.3, 0.9], [0.1, 0.7, -1, 0.2], [-0.9, 0.5, 0.6, 0.3], [0.1, 0.7, -1, 0.2]]
    )
    assert describe(kernel[None]) == ["rows 1 and 3 equal"]


def test_layers_in_a_sentence():
    names = ["bar"] * 3 + ["edge"] * 2 + ["Gabor", "Gaussian"] + ["no simple structure"] * 4
    assert sentence(names, 2) == "11 kernels: 3 bar, 2 edge, 2 of other shapes, 4 with no simple structure"
    assert sentence(["no simple structure"]) == "1 kernel: 1 with no simple structure"
    assert sentence([]) == "no kernels"
