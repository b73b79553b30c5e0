"""Preprocessing and batches: what they do to pixels, and that only seeds decide what is random."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernelsimp.data.images import Geometry
from kernelsimp.data.splits import Split
from kernelsimp.data.stores import ArrayStore
from kernelsimp.data.transforms import (
    AUGMENTATIONS,
    DRAWS,
    Batches,
    Preprocess,
    batches,
    epoch_seed,
    preprocess_of,
)
from kernelsimp.errors import KernelsimpError
from kernelsimp.settings import DataSettings


def a_split(count: int = 23, side: int = 8, channels: int = 3) -> Split:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
    return Split(ArrayStore(images, torch.arange(count)), range(count), Geometry())


def by_label(loader: Batches) -> dict[int, torch.Tensor]:
    return {
        int(label): image for images, labels in loader for image, label in zip(images, labels, strict=True)
    }


def order(loader: Batches) -> list[int]:
    return [int(label) for _, labels in loader for label in labels]


# --- normalising


def test_normalise_is_the_formula() -> None:
    images = torch.rand(2, 3, 4, 4)
    out = Preprocess((0.1, 0.2, 0.3), (0.5, 0.25, 2.0)).normalise(images)
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.25), (0.3, 2.0))):
        torch.testing.assert_close(out[:, channel], (images[:, channel] - mean) / std)
    assert Preprocess().normalise(images) is images


@pytest.mark.parametrize(
    ("mean", "std", "augment", "words"),
    [
        ((0.5,), None, "none", "--mean is given without --std; give both or none"),
        (None, (0.5,), "none", "--std is given without --mean; give both or none"),
        ((0.5,), (0.5, 0.5), "none", "--mean has 1 numbers and --std 2; give one a channel to each"),
        ((0.5,), (0.0,), "none", "--std has 0; expected numbers above 0"),
        (None, None, "cifr", "unknown augmentation 'cifr'; did you mean 'cifar'?"),
    ],
)
def test_preprocess_refuses(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, augment: str, words: str
) -> None:
    with pytest.raises(KernelsimpError) as caught:
        preprocess_of(DataSettings(mean=mean, std=std, augment=augment))
    assert str(caught.value) == words


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(KernelsimpError) as caught:
        Preprocess((0.5,) * 3, (0.5,) * 3).normalise(torch.zeros(1, 1, 2, 2))
    words = "--mean and --std have 3 numbers, the images 1 channels; give one a channel, or set --channels 3"
    assert str(caught.value) == words


# --- augmentation


def slow_crop_and_flip(image: torch.Tensor, top: int, left: int, flip: bool) -> torch.Tensor:
    out = torch.zeros_like(image)
    side = image.shape[1]
    for row in range(side):
        for column in range(side):
            y, x = row + top - 4, column + left - 4
            if 0 <= y < side and 0 <= x < side:
                out[:, row, side - 1 - column if flip else column] = image[:, y, x]
    return out


def test_cifar_augmentation_agrees_with_a_loop() -> None:
    images = torch.rand(40, 3, 6, 6)
    draws = torch.rand(40, DRAWS, generator=torch.Generator().manual_seed(2))
    fast = Preprocess(augmentation="cifar").augment_by(images, draws)
    for image, row, out in zip(images, draws.tolist(), fast, strict=True):
        slow = slow_crop_and_flip(image, int(row[0] * 9), int(row[1] * 9), row[2] < 0.5)
        assert torch.equal(out, slow)


def test_padding_is_black_before_normalising() -> None:
    split = Split(
        ArrayStore(torch.full((64, 1, 4, 4), 255, dtype=torch.uint8), torch.zeros(64).long()),
        range(64),
        Geometry(),
    )
    loader = batches(split, Preprocess((0.5,), (0.25,), "cifar"), 64, augment_seed=0)
    ((images, _),) = loader
    assert sorted(images.unique().tolist()) == [-2.0, 2.0]


def test_a_resized_crop_is_the_box_enlarged() -> None:
    ramp = (torch.arange(32.0) / 31).expand(32, 32)
    images = torch.stack([ramp, ramp.T])[None].expand(500, -1, -1, -1)
    draws = torch.rand(500, DRAWS, generator=torch.Generator().manual_seed(3))
    out = Preprocess(augmentation="imagenet").augment_by(images, draws)
    assert out.shape == images.shape
    across = out[:, 0, 16, 31] - out[:, 0, 16, 0]
    down = out[:, 1, 31, 16] - out[:, 1, 0, 16]
    assert bool((down > 0).all())  # never upside down
    assert 0.4 < float((across < 0).float().mean()) < 0.6  # left and right half the time
    area = across.abs() * down
    assert 0.05 < float(area.min()) < 0.2
    assert float(area.max()) > 0.8
    assert abs(float(area.mean()) - 0.5) < 0.05


def test_the_whole_box_leaves_the_image_as_it_is() -> None:
    images = torch.rand(2, 3, 9, 9)
    draws = torch.tensor([[1.0, 0.5, 0.3, 0.8, 0.9]] * 2)
    out = Preprocess(augmentation="imagenet").augment_by(images, draws)
    torch.testing.assert_close(out, images, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        Preprocess(augmentation="imagenet").augment_by(images, draws * torch.tensor([1, 1, 1, 1, 0.1])),
        images.flip(3),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_follows_its_generator(name: str) -> None:
    preprocess, images = Preprocess(augmentation=name), torch.rand(5, 3, 8, 8)
    first, again, other = (
        preprocess.augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name == "none")
    assert first.shape == images.shape
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1


# --- batches


def test_batches_without_seeds_come_in_order_and_whole() -> None:
    split = a_split()
    loader = batches(split, Preprocess(), 5)
    assert len(loader) == len(list(loader)) == 5
    assert order(loader) == list(range(23))
    for label, image in by_label(loader).items():
        assert torch.equal(image, split[label][0])


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 30), workers=st.sampled_from([0, 1, 3]), seed=st.integers(0, 9))
def test_the_epoch_depends_on_its_seeds_alone(size: int, workers: int, seed: int) -> None:
    split, preprocess = a_split(), Preprocess((0.5,), (0.5,), "cifar")
    reference = batches(split, preprocess, 7, shuffle_seed=seed, augment_seed=seed)
    loader = batches(split, preprocess, size, shuffle_seed=seed, augment_seed=seed, workers=workers)
    assert order(loader) == order(reference)
    expected = by_label(reference)
    assert all(torch.equal(image, expected[label]) for label, image in by_label(loader).items())
    assert len(list(loader)) == len(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_are_copies_in_pinned_memory(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        taken.append(tensor.ndim)
        return tensor.clone()

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    split = a_split()
    assert order(batches(split, Preprocess(), 8, workers=workers)) == list(range(23))
    assert taken == []
    assert order(batches(split, Preprocess(), 8, workers=workers, pinned=True)) == list(range(23))
    assert sorted(taken) == [1, 1, 1, 4, 4, 4]


def test_other_seeds_give_other_epochs() -> None:
    split, preprocess = a_split(), Preprocess(augmentation="cifar")
    orders = [order(batches(split, preprocess, 8, shuffle_seed=epoch_seed(0, epoch))) for epoch in range(5)]
    assert all(sorted(row) == list(range(23)) for row in orders)
    assert len({tuple(row) for row in orders}) == 5
    one, two = (by_label(batches(split, preprocess, 8, augment_seed=seed)) for seed in (1, 2))
    assert any(not torch.equal(one[label], two[label]) for label in one)


@settings(max_examples=25, deadline=None)
@given(world=st.integers(1, 4), size=st.integers(1, 6), count=st.integers(4, 40))
def test_shards_make_up_the_batches_of_one_process(world: int, size: int, count: int) -> None:
    split, preprocess = a_split(count, 4), Preprocess(augmentation="cifar")
    seeds = {"shuffle_seed": 3, "augment_seed": 4}
    whole = list(batches(split, preprocess, size * world, **seeds))
    shards = [list(batches(split, preprocess, size, shard=(rank, world), **seeds)) for rank in range(world)]
    assert len({len(shard) for shard in shards}) == 1  # no process waits for another for ever
    kept = 0
    for step, parts in enumerate(zip(*shards, strict=True)):
        images, labels = whole[step]
        together = {int(label): image for part in parts for image, label in zip(*part, strict=True)}
        kept += len(together)
        reference = {int(label): image for image, label in zip(images, labels, strict=True)}
        assert set(together) <= set(reference)
        assert all(torch.equal(image, reference[label]) for label, image in together.items())
    assert kept == count - count % world


def test_shards_without_shuffling_lose_no_image() -> None:
    split = a_split()
    parts = [order(batches(split, Preprocess(), 2, shard=(rank, 4))) for rank in range(4)]
    assert sorted(chain.from_iterable(parts)) == list(range(23))


def test_batches_refuse() -> None:
    split, preprocess = a_split(), Preprocess()
    with pytest.raises(KernelsimpError, match=r"^--batch-size is 0; expected at least 1$"):
        batches(split, preprocess, 0)
    with pytest.raises(KernelsimpError, match=r"^--workers is -1; expected 0 or more$"):
        batches(split, preprocess, 1, workers=-1)
    with pytest.raises(
        KernelsimpError, match=r"^shard \(2, 2\); expected \(rank, world\) with 0 <= rank < world$"
    ):
        batches(split, preprocess, 1, shard=(2, 2))


def test_an_error_in_a_worker_reaches_the_caller(tmp_path: Path) -> None:
    class Bad(ArrayStore):
        def batch(self, indices: object, geometry: Geometry) -> torch.Tensor:
            raise KernelsimpError("x.png: cannot decode the image")

    split = Split(Bad(torch.zeros(4, 1, 2, 2), torch.zeros(4).long()), range(4), Geometry())
    with pytest.raises(KernelsimpError, match="cannot decode"):
        list(batches(split, Preprocess(), 1, workers=2))


def test_torchs_own_loader_takes_a_split() -> None:
    split = a_split()
    images, labels = next(iter(torch.utils.data.DataLoader(split, batch_size=6)))
    assert torch.equal(images, split.fetch(range(6))[0])
    assert labels.tolist() == list(range(6))
