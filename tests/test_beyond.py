"""What a scan measures beyond single linear families: planted truth, known answers, and slow twins."""

import numpy as np
import pytest
import torch

from kernelsimp.analysis import beyond, nonlinear
from kernelsimp.analysis.chance import judge_layer, permuted_null
from kernelsimp.analysis.examine import examine
from kernelsimp.analysis.nonlinear import NonlinearStructures, SearchDepth, nonlinear_structures
from kernelsimp.analysis.quality import quality_of
from kernelsimp.analysis.scan import scan_bank
from kernelsimp.analysis.select import EASY, deep_layers
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import few_values, templates
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.families import find
from kernelsimp.report.pictures.scan import PIXELS, sheet
from kernelsimp.settings import ScanSettings


def white(*sides: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sides, generator=torch.Generator().manual_seed(seed))


def layer_of(kernels: torch.Tensor, kind: str = "dense") -> LayerKernels:
    return LayerKernels("layer", kind, kernels)  # type: ignore[arg-type]


def scanned(kernels: torch.Tensor, **settings: object):
    bank = KernelBank((layer_of(kernels),))
    return scan_bank(bank, ScanSettings(**settings), {}).layers[0]  # type: ignore[arg-type]


# ---------------------------------------------------------------- structures that are no subspace


def test_planted_structures_are_counted_and_outdo_their_chance():
    kernels = white(100, 5, 5, 5)
    kernels[:10] = kernels[:10, :, :, :1] * kernels[:10, :, :1, :]
    kernels[10:14, 0] = torch.sign(kernels[10:14, 0])
    families = scanned(kernels, depth="shallow").families
    assert families["rank-one"].observed >= 50
    assert families["rank-one"].null["permuted"].enrichment is None  # none of 2,000 shuffled kernels is
    assert families["rank-one"].null["permuted"].found >= 50
    assert families["few-values-2"].observed == 4


def test_planted_groups_of_equal_rows_are_counted_by_their_axis():
    kernels = white(100, 1, 5, 5)
    kernels[:10] = kernels[:10][:, :, [0, 1, 2, 1, 0]]
    families = scanned(kernels, depth="shallow").families
    assert 10 <= families["row-groups"].observed <= 12
    assert families["column-groups"].observed <= 5


@pytest.mark.parametrize("name", ["gaussian", "sobel-x", "gaussian-derivative", "second-derivative"])
def test_a_planted_template_is_counted_as_itself(name):
    kernels = white(40, 4, 5, 5)
    kernels[:8, 0] = 2 * templates.example(name, (5, 5)).float() + 0.5
    layer = scanned(kernels)
    assert layer.families[name].observed == 8
    assert layer.families[name].null["permuted"].expected < 1


def test_random_kernels_have_few_values_as_often_as_gaussian_ones():
    family = scanned(white(1000, 4, 3, 3), depth="shallow").families["few-values-3"]
    expected = family.null["matched"].expected
    assert expected > 5
    assert abs(family.observed - expected) < 6 * np.sqrt(expected)


@pytest.mark.parametrize("grid", [(3, 3), (2, 2), (5, 5), (1, 7)])
def test_rough_few_values_agree_with_the_exact_ones(grid):
    kernels = torch.cat([white(200, *grid), torch.round(white(100, *grid, seed=1)), torch.ones(1, *grid)])
    counts = [u for u in nonlinear.SHALLOW_COUNTS if few_values.is_offered(grid, u)]
    fast = nonlinear.few_values_where_near(kernels, counts, 0.1)
    for exact in few_values.fit_all(kernels, counts):
        near = exact.residual <= 0.1
        torch.testing.assert_close(fast[exact.values][near], exact.residual[near], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(fast[exact.values], exact.residual, rtol=0, atol=2e-3)


def test_a_kernels_best_structure_leaves_the_fewest_numbers():
    kernels = white(64, 1, 5, 5)
    kernels[0, 0] = kernels[0, 0, :, :1] * kernels[0, 0, :1, :]  # rank one: 9 numbers of 25
    kernels[1, 0] = find("mirror-h", (5, 5)).snap(kernels[1, 0])  # 15 numbers
    kernels[2, 0] = find("both-mirrors", (5, 5)).snap(kernels[2, 0])  # 9 numbers, a linear family first
    bank = KernelBank((layer_of(kernels),))
    scan = scan_bank(bank, ScanSettings(depth="shallow"), {})
    names = [scan.families[place] for place in scan.layers[0].best[:3]]
    assert names == ["rank-one", "mirror-h", "both-mirrors"]


def test_named_families_are_all_that_is_scanned():
    assert list(scanned(white(50, 2, 3, 3), families=("mirror-h",)).families) == ["mirror-h"]


@pytest.mark.parametrize("shape", [(1, 5), (2, 2), (3, 5), (3, 3, 3), (31, 31)])
@pytest.mark.parametrize("count", [1, 6])
def test_any_shape_and_a_layer_of_one_kernel_are_scanned(shape, count):
    layer = scanned(white(count, 1, *shape))
    assert layer.kernels == count
    assert layer.sentence.startswith("1 kernel: " if count == 1 else f"{count} kernels: ")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_any_dtype_is_scanned(dtype, scale):
    layer = scanned((scale * white(20, 4, 3, 3)).to(dtype))
    assert layer.dead < 10
    assert np.isfinite(layer.residual).all()


def test_zero_and_constant_layers_are_scanned():
    zero = scanned(torch.zeros(4, 2, 3, 3))
    assert (zero.dead, zero.sentence) == (8, "8 kernels, dead")
    layer = scanned(torch.ones(4, 2, 3, 3))
    assert layer.sentence == "8 kernels: 8 constant"


def test_the_permuted_null_is_uniform_under_itself():
    kernels = white(3000, 1, 3, 3).abs()
    examined = examine(layer_of(kernels))
    subspaces = [family.subspace for family in examined.families]
    null = permuted_null(kernels[:, 0], subspaces)
    order = torch.rand(3000, 9, generator=torch.Generator().manual_seed(5)).argsort(dim=1)
    shuffled = examine(layer_of(kernels.flatten(2)[:, 0].gather(1, order).reshape(-1, 1, 3, 3)))
    p = null.p_values(torch.from_numpy(shuffled.residual))[:, [0, 4]].numpy()
    for level in (0.05, 0.25, 0.5):
        assert abs((p <= level).mean() - level) < 0.04
    assert judge_layer(examined, "permuted", 0.05).found.mean() < 0.01


# ---------------------------------------------------------------- filters, means, colours


def test_a_filter_counts_when_all_its_slices_share_a_structure():
    kernels = white(20, 6, 3, 3)
    kernels[:3] = find("half-turn", (3, 3)).snap(kernels[:3])
    kernels[3, :5] = find("half-turn", (3, 3)).snap(kernels[3, :5])  # but for one slice
    found = beyond.filters(examine(layer_of(kernels)), 0.1)
    assert (found["count"], found["slices"], found["matching"]) == (20, 6, 3)
    assert found["families"] == {"half-turn": 3}


def test_the_mean_kernel_and_its_d4_score():
    bump = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    noise = white(200, 4, 3, 3)
    kernels = bump + noise - noise.mean(dim=(0, 1))
    found = beyond.mean_kernel(examine(layer_of(kernels)), stride=2)
    assert found["d4_score"] == pytest.approx(1, abs=1e-2)
    assert found["d4_chance"] == pytest.approx(3 / 9)
    assert found["residuals"]["full-square"] < 0.1
    assert found["note"].startswith("stride 2: ")
    one_sided = torch.zeros(9, 1, 3, 3)
    one_sided[:, 0, 0, 0] = 1
    assert beyond.mean_kernel(examine(layer_of(one_sided)))["d4_score"] == pytest.approx(0.25)
    assert beyond.mean_kernel(examine(layer_of(one_sided)), stride=1)["note"] is None
    assert beyond.mean_kernel(examine(layer_of(one_sided)))["note"].startswith("stride unknown: ")


def test_relatives_are_turned_mirrored_and_scaled_kernels():
    kernels = white(30, 1, 3, 3)
    kernels[1, 0] = -2 * kernels[0, 0].rot90()
    kernels[2, 0] = 0.5 * kernels[0, 0].fliplr()
    examined = examine(layer_of(kernels))
    found = beyond.relatives(examined, nonlinear_structures(examined, SearchDepth()), 0.01)
    assert (found["paired"], found["orbits"], found["largest"]) == (3, 1, 3)
    assert (found["by_chance"], found["null"]) == (0, "matched")


def test_relatives_of_random_kernels_are_as_many_as_chance_gives():
    examined = examine(layer_of(white(400, 1, 3, 3)))
    found = beyond.relatives(examined, NonlinearStructures(), 0.4)
    assert found["by_chance"] > 30
    assert found["paired"] == pytest.approx(found["by_chance"], rel=0.4)
    few = beyond.relatives(examine(layer_of(white(10, 1, 3, 3))), NonlinearStructures(), 0.1)
    assert few["null"] == "permuted"


def test_prototypes_cover_a_layer_made_of_two():
    parents = white(2, 3, 3)
    scale = white(60, seed=3).sign() * 2
    kernels = torch.stack([scale[i] * parents[i % 2].rot90(i % 4) + 0.1 * i for i in range(60)])[:, None]
    found = beyond.prototype_coverage(examine(layer_of(kernels)), seed=0)
    assert found["count"] <= 2
    assert found["reached"]


def test_colours_separate_where_a_filter_is_colour_times_kernel():
    kernels = white(8, 3, 5, 5)
    kernels[:5] = white(5, 3, 1, 1, seed=1) * white(5, 1, 5, 5, seed=2)
    found = beyond.colours(examine(layer_of(kernels)), 0.1)
    assert (found["filters"], found["separable"]) == (8, 5)
    product = np.multiply.outer(found["colour"][0], found["kernel"][0])
    share = product / np.linalg.norm(product) * kernels[0].norm().item()
    np.testing.assert_allclose(share, kernels[0].numpy(), atol=1e-5)
    assert beyond.colours(examine(layer_of(white(8, 4, 5, 5))), 0.1) is None


def test_quality_has_its_known_answers():
    orthogonal = torch.eye(9).reshape(9, 1, 3, 3)
    figures = quality_of(layer_of(orthogonal))
    assert figures.orthogonality == pytest.approx(1)
    assert figures.near_zero_share == 0
    alike = torch.linspace(1, 2, 9)[:, None, None, None] * white(1, 1, 3, 3)
    figures = quality_of(layer_of(alike))
    assert figures.orthogonality == pytest.approx(0, abs=1e-6)
    assert figures.variance_entropy == pytest.approx(0, abs=1e-6)
    assert quality_of(layer_of(white(4000, 1, 3, 3))).variance_entropy == pytest.approx(1, abs=0.01)
    some = white(10, 1, 3, 3)
    some[:3] = 0
    assert quality_of(layer_of(some)).near_zero_share == pytest.approx(0.3)
    alone = quality_of(layer_of(white(1, 1, 3, 3)))
    assert alone.variance_entropy is alone.orthogonality is None


# ---------------------------------------------------------------- how hard to look


def test_a_large_network_is_looked_at_hard_only_in_its_smallest_layers():
    small, large = (
        layer_of(torch.zeros(10, 1, 3, 3)),
        LayerKernels("large", "dense", torch.zeros(EASY, 1, 3, 3)),
    )
    assert deep_layers((small, large), ScanSettings()) == {"layer"}
    assert deep_layers((small, large), ScanSettings(depth="deep")) == {"layer", "large"}
    assert deep_layers((small, large), ScanSettings(depth="shallow")) == set()
    assert deep_layers((small,), ScanSettings()) == {"layer"}
    with pytest.raises(KernelsimpError, match="--depth is 'x'; known: auto, deep, shallow"):
        deep_layers((small,), ScanSettings(depth="x"))


def test_the_commonest_groups_of_equal_lines_are_put_in_words():
    kernels = white(40, 1, 5, 5)
    kernels[:9] = kernels[:9][:, :, [0, 1, 2, 1, 0]]
    examined = examine(layer_of(kernels))
    found = beyond.groupings(nonlinear_structures(examined, SearchDepth(deep=False)))
    assert found["rows 0 = 4, 1 = 3"] == 9
    assert (
        beyond.groupings(nonlinear_structures(examine(layer_of(white(9, 1, 3, 3))), SearchDepth(deep=False)))
        is None
    )


def test_a_scan_is_the_same_twice():
    kernels = white(60, 2, 3, 3)
    first, second = scanned(kernels), scanned(kernels)
    assert first.families == second.families
    assert first.extra == second.extra
    assert first.sentence == second.sentence


# ---------------------------------------------------------------- drawn for a page


def test_a_sheet_of_kernels_fits_half_a_page_and_keeps_every_tile():
    tiles = [np.full((3, 3, 3), shade, dtype=np.uint8) for shade in range(100, 130)]
    page = sheet(tiles)
    assert page.shape[1] <= PIXELS
    drawn = page[page[..., 3] == 255]
    assert {int(value) for value in np.unique(drawn[:, :3])} == {*range(100, 130)}
    assert not page[page[..., 3] == 0].any()
    large = sheet([np.zeros((31, 31, 3), dtype=np.uint8)] * 12)
    assert large.shape[1] <= PIXELS
