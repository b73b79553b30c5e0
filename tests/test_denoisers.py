"""Denoisers: laws over the whole table, and the definitions of those that have a direct form."""

import numpy as np
import pytest
import torch
from builders import white
from scipy import ndimage

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import denoisers
from kernelsimp.kernels.denoisers import DENOISERS, denoise, parse

EVERY = [row.name for row in DENOISERS]
LOCAL = [name for name in EVERY if name not in ("svd", "pca", "wiener")]
GRIDS = [(1, 5), (5, 1), (2, 2), (3, 3), (3, 5), (7, 7)]


def smooth_bank(noise, count=400):
    """Slowly varying kernels 5x5, and the same with white noise of relative energy noise^2."""
    generator = torch.Generator().manual_seed(1)
    waves = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    y, x = (torch.from_numpy(part).double() - 2 for part in np.indices((5, 5)))
    clean = waves[:, :1, None] + waves[:, 1:2, None] * x / 2 + waves[:, 2:, None] * y / 2
    dirt = torch.randn(count, 5, 5, generator=generator, dtype=torch.float64)
    return clean, clean + noise * clean.square().mean().sqrt() * dirt


def change(before, after):
    """Return ||after - before|| / ||before|| over the bank, the unit of strength."""
    return float((after.double() - before.double()).norm() / before.double().norm())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("grid", GRIDS)
def test_changes_by_no_more_than_the_strength_and_keeps_form(name, grid):
    kernels = white(60, *grid)
    for strength in (0.05, 0.3):
        found = denoise(kernels, name, strength)
        assert found.shape == kernels.shape
        assert found.dtype == kernels.dtype
        assert change(kernels, found) <= strength + 1e-6


@pytest.mark.parametrize("name", EVERY)
def test_comes_near_the_strength_where_it_can(name):
    kernels = white(200, 5, 5)
    reached = change(kernels, denoise(kernels, name, 0.3))
    assert reached >= (0.2 if name == "svd" else 0.295)


@pytest.mark.parametrize("name", EVERY)
def test_strength_zero_changes_nothing(name):
    assert torch.equal(denoise(white(60, 3, 3), name, 0), white(60, 3, 3))


@pytest.mark.parametrize("name", EVERY)
def test_scale_and_sign_go_through(name):
    kernels = white(60, 3, 3).double()
    assert torch.allclose(denoise(-1e-3 * kernels, name, 0.2), -1e-3 * denoise(kernels, name, 0.2), atol=1e-7)


@pytest.mark.parametrize("name", LOCAL)
def test_constant_kernels_stay(name):
    kernels = torch.ones(4, 3, 3) * torch.tensor([1.0, -2, 0.5, 0])[:, None, None]
    assert torch.allclose(denoise(kernels, name, 1.0), kernels, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_noise_on_smooth_kernels_is_reduced(name):
    clean, dirty = smooth_bank(0.3)
    best = min(change(clean, denoise(dirty, name, strength)) for strength in (0.1, 0.2, 0.3))
    assert best < 0.9 * change(clean, dirty)


@pytest.mark.parametrize("name", EVERY)
def test_the_knob_is_open_at_zero(name):
    kernels = white(60, 3, 5).double().numpy()
    flat = kernels.reshape(len(kernels), -1)
    knob = denoisers.by_name(name).make(denoisers.Bank(kernels, flat.T @ flat / len(flat)))
    assert np.allclose(knob(0.0), kernels, atol=1e-12)
    assert np.isfinite(knob(1.0)).all()


@pytest.mark.parametrize("name", EVERY)
def test_zero_empty_and_broken_banks(name):
    assert not bool(denoise(torch.zeros(3, 3, 3), name, 0.5).any())
    assert denoise(torch.zeros(0, 3, 3), name, 0.5).shape == (0, 3, 3)
    kernels = white(60, 3, 3)
    kernels[3, 1, 1] = torch.nan
    found = denoise(kernels, name, 0.2)
    assert torch.equal(found[3].nan_to_num(9), kernels[3].nan_to_num(9))
    assert bool(torch.cat([found[:3], found[4:]]).isfinite().all())


def test_gaussian_and_median_are_what_they_say():
    kernels = white(60, 5, 5).double()
    blurred = denoise(kernels, "gaussian", 0.4)
    fits = [
        np.abs(ndimage.gaussian_filter(kernels[7].numpy(), sigma, mode="reflect") - blurred[7].numpy()).max()
        for sigma in np.linspace(0.1, 1.0, 2000)
    ]
    assert min(fits) < 1e-3
    full = denoise(kernels, "median", 1.0)
    assert torch.allclose(full[7], torch.from_numpy(ndimage.median_filter(kernels[7].numpy(), 3)))


def test_total_variation_meets_its_optimum():
    kernels = white(3, 4, 4).double().numpy()
    level = np.sqrt(np.mean(kernels**2))
    flat = denoisers.by_name("tv").make(denoisers.Bank(kernels, np.eye(16)))(0.3)
    weight = level * 0.3 / 0.7

    def objective(values):
        return (
            0.5 * ((values - kernels) ** 2).sum()
            + weight * np.sqrt((denoisers.gradient(values) ** 2).sum(axis=0)).sum()
        )

    generator = np.random.default_rng(0)
    best = objective(flat)
    assert best < 0.9 * objective(kernels)
    for size in (0.3, 0.1, 0.03):
        for _ in range(50):
            assert objective(flat + size * generator.standard_normal(flat.shape)) > best


def test_divergence_is_the_negative_adjoint_of_the_gradient():
    generator = np.random.default_rng(1)
    values, field = generator.standard_normal((3, 4, 5)), generator.standard_normal((2, 3, 4, 5))
    left = (denoisers.gradient(values) * field).sum()
    assert np.isclose(left, -(values * denoisers.divergence(field)).sum())


def test_haar_windows_are_orthonormal():
    for wide in ([True, True], [False, True], [True, False]):
        haar = denoisers.haar_matrix(wide)
        assert np.allclose(haar @ haar.T, np.eye(len(haar)))


def test_wiener_uses_the_covariance_it_is_given():
    kernels = white(50, 1, 3).double()
    covariance = torch.diag(torch.tensor([1.0, 1e-6, 1.0], dtype=torch.float64))
    found = denoise(kernels, "wiener", 0.6, covariance)
    assert found[:, 0, 1].abs().max() < 0.05 * kernels[:, 0, 1].abs().max()
    ratio = found[:, 0, 0] / kernels[:, 0, 0]
    assert float(ratio.std()) < 1e-9
    assert not torch.allclose(found, denoise(kernels, "wiener", 0.6))


def test_svd_truncates_rank():
    found = denoise(white(50, 5, 5).double(), "svd", 1.0)
    assert bool((torch.linalg.svdvals(found)[:, 1] < 1e-12).all())


def test_dct_leaves_the_mean():
    kernels = white(60, 5, 5).double()
    found = denoise(kernels, "dct", 1.0)
    assert torch.allclose(found, kernels.mean(dim=(1, 2), keepdim=True).expand_as(kernels))


def test_names_and_strengths_are_parsed():
    assert parse("gaussian:0.25") == ("gaussian", 0.25)
    assert parse("wiener") == ("wiener", None)
    for text in ("tv:2", "tv:-1", "tv:", "tv:nan", "tv:x"):
        number = text.partition(":")[2]
        expected = f"denoiser '{text}': strength '{number}'; expected a number from 0 to 1"
        with pytest.raises(KernelsimpError) as caught:
            parse(text)
        assert str(caught.value) == expected
    with pytest.raises(KernelsimpError, match=r"^unknown denoiser 'gausian'; did you mean 'gaussian'\?$"):
        parse("gausian:0.1")


def test_bad_strength_and_covariance_are_refused():
    with pytest.raises(KernelsimpError, match=r"^denoiser tv: strength 1.5; expected a number from 0 to 1$"):
        denoise(white(60, 3, 3), "tv", 1.5)
    with pytest.raises(KernelsimpError, match=r"^covariance of shape \(4, 4\); expected \(9, 9\)$"):
        denoise(white(60, 3, 3), "wiener", 0.1, torch.eye(4))
