"""Every data source, its splits, and the words of every refusal."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import pixels
from PIL import Image
from saying import refusal
from sources import load

from kernelsimp.data.sources import SOURCES, Data, load_data
from kernelsimp.data.splits import Cut, read_cut, split_by_hash
from kernelsimp.settings import DataSettings


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    def write(**arrays: np.ndarray) -> Path:
        path = tmp_path / "images.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of seven images, 12 x 10 pixels, whose red value is the class."""
    root = tmp_path / "pictures"
    for label, name in enumerate(("ant", "bee", "cat")):
        for i in range(7):
            path = root / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (10, 12), (label, i, 200)).save(path)
    return root


def all_images(data: Data) -> list[bytes]:
    return [image.numpy().tobytes() for split in (data.train, data.val, data.test) for image, _ in split]


# --- digits


def test_digits_are_three_splits_that_share_no_place() -> None:
    data = load("digits")
    parts = [set(split.places.tolist()) for split in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [1079, 359, 359]
    assert len(set.union(*parts)) == 1797
    assert data.classes == 10
    image, label = data.test[0]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.float32
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert label in range(10)


def test_a_split_that_is_passed_over_is_told(folder: Path) -> None:
    assert load("digits").warnings == ()
    told = "--split 10:4:5 is passed over: digits has splits of its own"
    assert load("digits", split="10:4:5").warnings == (told,)
    assert not any("passed over" in text for text in load(f"imagefolder:{folder}", split="10:4:7").warnings)


def test_the_test_split_is_the_same_for_every_seed_and_train_is_not() -> None:
    one, two = load("digits", seed=1), load("digits", seed=2)
    assert one.test.places.tolist() == two.test.places.tolist()
    assert one.train.places.tolist() != two.train.places.tolist()
    assert load("digits", seed=1).train.places.tolist() == one.train.places.tolist()


def test_digits_without_scikit_learn_tell_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    words = "--data digits needs scikit-learn, which is not installed; install it: "
    assert refusal(lambda: load("digits")) == words + "pip install scikit-learn"


# --- npz


def test_npz_takes_the_three_splits_as_they_are(npz: Callable[..., Path]) -> None:
    arrays = {word: pixels(n, 6, 5, 3, seed=n) for word, n in (("train", 9), ("val", 4), ("test", 5))}
    labels = {word: np.arange(len(array))[:, None] % 3 for word, array in arrays.items()}
    path = npz(
        **{f"{w}_images": a for w, a in arrays.items()}, **{f"{w}_labels": a for w, a in labels.items()}
    )
    data = load(f"npz:{path}")
    for word, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        images, found = split.fetch(range(len(split)))
        assert torch.equal(images, torch.from_numpy(arrays[word].transpose(0, 3, 1, 2) / np.float32(255)))
        assert found.tolist() == labels[word][:, 0].tolist()
    assert data.classes == 3


def test_npz_without_val_has_a_tenth_carved_out_of_train_by_the_seed(npz: Callable[..., Path]) -> None:
    path = npz(
        train_x=pixels(50, 4, 4), train_y=np.zeros(50, int), test_x=pixels(5, 4, 4), test_y=np.zeros(5, int)
    )
    data, other = load(f"npz:{path}", seed=3), load(f"npz:{path}", seed=4)
    assert (len(data.train), len(data.val), len(data.test)) == (45, 5, 5)
    assert set(data.train.places) | set(data.val.places) == set(range(50))
    assert data.val.places.tolist() != other.val.places.tolist()
    assert data.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"train_x": np.zeros((2, 4, 4))}, "{path}: found train_x without train_y; expected both"),
        (
            {"a": np.zeros(1), "train_x": pixels(2, 4, 4), "train_y": np.zeros(2, int)},
            "{path}: found a, train_x, train_y; expected test_images and test_labels (or test_x, test_y)",
        ),
        (
            {"test_x": pixels(2, 4, 4), "test_y": np.zeros(3, int)},
            "{path}: test_x has 2 images, test_y 3 labels",
        ),
        (
            {"test_x": pixels(2, 4, 4), "test_y": np.array([0, -1])},
            "{path}: test_y: label -1 is outside the classes; expected 0 or more",
        ),
        (
            {"test_x": pixels(2, 4, 4), "test_y": np.zeros((2, 3), int)},
            "{path}: test_y: labels have shape (2, 3); expected one class an image",
        ),
        (
            {"test_x": np.full((2, 4, 4), 7.5), "test_y": np.zeros(2, int)},
            "{path}: test_x: float64 from 7.5 to 7.5; expected whole numbers in 0..255 or floats in 0..1",
        ),
        (
            {"test_x": pixels(2, 9, 9, 9), "test_y": np.zeros(2, int)},
            "{path}: test_x: shape (2, 9, 9, 9); expected (n, H, W) or (n, H, W, C), C at most 4",
        ),
        (
            {"test_x": pixels(0, 4, 4), "test_y": np.zeros(0, int)},
            "npz:{path}: the test split is empty; expected at least one image",
        ),
    ],
)
def test_npz_refuses(npz: Callable[..., Path], arrays: dict[str, np.ndarray], words: str) -> None:
    path = npz(**arrays)
    assert refusal(lambda: load(f"npz:{path}")) == words.format(path=path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 cut off", b"version https://git-lfs", b"\x93NUMPY\x01"]
)
def test_a_file_that_is_no_npz_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    words = f"{path}: no zip archive; expected an .npz file with test_images, test_labels"
    assert refusal(lambda: load(f"npz:{path}")) == words
    missing = tmp_path / "none.npz"
    words = f"{missing}: no such file; expected an .npz file of images"
    assert refusal(lambda: load(f"npz:{missing}")) == words


def test_a_flipped_bit_and_a_pickle_in_npz_are_refused(npz: Callable[..., Path]) -> None:
    path = npz(test_x=pixels(20, 8, 8), test_y=np.zeros(20, int))
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    assert refusal(lambda: load(f"npz:{path}")).startswith(f"{path}: cannot read as .npz: Bad CRC-32")
    path = npz(test_x=np.array([{"a": 1}], dtype=object), test_y=np.zeros(1, int))
    assert refusal(lambda: load(f"npz:{path}")).startswith(f"{path}: cannot read as .npz: Object arrays")


# --- folders of images


def test_a_folder_is_split_by_path_and_counts(folder: Path) -> None:
    data = load(f"imagefolder:{folder}", split="10:4:5")
    parts = [set(split.places.tolist()) for split in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [10, 4, 5]
    assert len(set.union(*parts)) == 19
    assert data.warnings == ("--split 10:4:5 leaves 2 of 21 images out",)
    assert data.classes == 3
    for image, label in data.test:
        assert image.shape == (3, 12, 10)
        assert int((image[0] * 255).round().max()) == label
    assert len(set(all_images(data))) == 19


def test_the_split_of_a_folder_does_not_depend_on_where_it_lies(folder: Path) -> None:
    before = load(f"imagefolder:{folder}", seed=5)
    other = folder.rename(folder.with_name("elsewhere"))
    after = load(f"imagefolder:{other}", seed=5)
    assert before.train.places.tolist() == after.train.places.tolist()
    assert before.test.places.tolist() == load(f"imagefolder:{other}", seed=6).test.places.tolist()
    assert len(after.train) == 17


def test_folders_train_and_test_are_the_splits(folder: Path) -> None:
    root = folder.parent / "ready"
    for word in ("train", "test"):
        (root / word).mkdir(parents=True)
    (folder / "ant").rename(root / "train" / "ant")
    (folder / "cat").rename(root / "train" / "cat")
    (folder / "bee").rename(root / "test" / "bee")
    data = load(f"imagefolder:{root}")
    assert (len(data.train), len(data.val), len(data.test)) == (13, 1, 7)
    assert set(data.test.labels.tolist()) == {1}
    assert set(data.train.labels.tolist()) | set(data.val.labels.tolist()) == {0, 2}
    (root / "test").rename(root / "val")
    words = f"{root}: found train, val; expected a folder test: rename val to test"
    assert refusal(lambda: load(f"imagefolder:{root}")) == words


def test_folders_refuse(folder: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    words = f"--data imagefolder: {missing} is no folder; expected imagefolder:DIR"
    assert refusal(lambda: load(f"imagefolder:{missing}")) == words
    missing.mkdir()
    words = f"{missing}: no images found; expected folders of classes with images, CLASS/0.jpg"
    assert refusal(lambda: load(f"imagefolder:{missing}")) == words


def test_a_corrupt_image_is_named(folder: Path) -> None:
    path = folder / "bee" / "3.png"
    path.write_bytes(path.read_bytes()[:40])
    data = load(f"imagefolder:{folder}", split="0:0:21")
    words = refusal(lambda: data.test.fetch(range(21)))
    assert words.startswith(f"{path}: cannot decode the image: ")
    assert words.endswith("; repair or remove it")


def test_images_of_several_shapes_need_an_input_size(folder: Path) -> None:
    Image.new("RGB", (30, 20)).save(folder / "ant" / "0.png")
    data = load(f"imagefolder:{folder}", split="0:0:21")
    words = f"{folder}: images of 2 shapes (3 x 12 x 10 and 3 x 20 x 30); pass --input-size N"
    assert refusal(lambda: data.test.fetch(range(21))) == words
    images, _ = load(f"imagefolder:{folder}", split="0:0:21", input_size=8).test.fetch(range(21))
    assert images.shape == (21, 3, 8, 8)


# --- all sources


def test_an_unknown_source_is_answered_with_the_nearest() -> None:
    words = "--data imagefoldr:x: unknown source 'imagefoldr'; did you mean 'imagefolder'?"
    assert refusal(lambda: load("imagefoldr:x")) == words
    words = refusal(lambda: load_data(DataSettings(), 0))
    assert all(row.usage in words for row in SOURCES.values())


def test_calibration_is_seeded_and_never_from_test(npz: Callable[..., Path]) -> None:
    def data(train: int, val: int) -> Data:
        parts = {"train": train, "val": val, "test": 50}
        arrays = {f"{word}_x": np.full((n, 2, 2), i, np.uint8) for i, (word, n) in enumerate(parts.items())}
        path = npz(**arrays, **{f"{word}_y": np.zeros(n, int) for word, n in parts.items()})
        return load(f"npz:{path}")

    large = data(40, 10)
    chosen = large.calibration(16, seed=1)
    assert chosen.places.tolist() == large.calibration(16, seed=1).places.tolist()
    assert chosen.places.tolist() != large.calibration(16, seed=2).places.tolist()
    assert len(set(chosen.places.tolist())) == 16
    assert chosen.store is large.train.store
    assert len(large.calibration(1000, 0)) == 40
    small = data(4, 10)
    assert small.calibration(8, 0).store is small.val.store
    words = (
        "no train or val images to calibrate on; give it training images, for instance with --split 30:0:70"
    )
    assert refusal(lambda: data(0, 0).calibration(8, 0)).endswith(words)
    assert refusal(lambda: large.calibration(0, 0)) == "--calibration is 0; expected at least 1"


def test_the_fingerprint_sees_test_pixels_and_labels_only(npz: Callable[..., Path]) -> None:
    def fingerprint(images: np.ndarray, labels: np.ndarray, **settings: object) -> str:
        path = npz(test_x=images, test_y=labels, train_x=images[:2], train_y=labels[:2])
        return load(f"npz:{path}", **settings).fingerprint  # type: ignore[arg-type]

    images, labels = pixels(6, 8, 8), np.arange(6)
    plain = fingerprint(images, labels)
    assert len(plain) == 64
    assert fingerprint(images, labels, input_size=4, channels=3) == plain
    assert fingerprint(images, labels[::-1]) != plain
    images[3, 2, 1] ^= 1
    assert fingerprint(images, labels) != plain


def test_the_fingerprint_of_a_folder_sees_one_changed_byte(folder: Path) -> None:
    before = load(f"imagefolder:{folder}", split="0:0:21").fingerprint
    assert load(f"imagefolder:{folder}", split="0:0:21", input_size=5).fingerprint == before
    path = folder / "cat" / "6.png"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert load(f"imagefolder:{folder}", split="0:0:21").fingerprint != before


@pytest.mark.parametrize(
    ("text", "count", "cut"),
    [
        ("80:10:10", 1000, Cut(800, 100, 100)),
        ("0.5:0:0.5", 7, Cut(3, 0, 4)),
        ("300:0:700", 1000, Cut(300, 0, 700)),
        ("300:0:700", 5000, Cut(300, 0, 700)),
        ("0:0:100", 3, Cut(0, 0, 3)),
    ],
)
def test_split_text(text: str, count: int, cut: Cut) -> None:
    assert read_cut(text, count) == cut


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("half", "--split is 'half'; expected train:val:test, such as 80:10:10 or 300:0:700"),
        ("1:2", "--split is '1:2'; expected train:val:test, such as 80:10:10 or 300:0:700"),
        ("-1:2:3", "--split is '-1:2:3'; expected train:val:test, such as 80:10:10 or 300:0:700"),
        ("0.5:0.2:0.2", "--split is '0.5:0.2:0.2', which sums to 0.9; expected shares of 1 or 100"),
        ("300:0:700", "--split 300:0:700 needs 1000 images; there are 50: ask for fewer"),
        ("90:10:0", "--split 90:10:0 leaves no test image of 50; give test a larger part"),
    ],
)
def test_bad_split_text(text: str, words: str) -> None:
    assert refusal(lambda: read_cut(text, 50)) == words


def test_a_hash_split_uses_every_name_once() -> None:
    names = [f"{i}.png" for i in range(200)]
    train, val, test = split_by_hash(names, "50:25:25", 7)
    assert sorted([*train, *val, *test]) == list(range(200))
    assert (len(train), len(val), len(test)) == (100, 50, 50)


# --- the real images


def test_real_images(shared_data: Path) -> None:
    data = load(f"npz:{shared_data / 'cifar10-exact.npz'}")
    assert (len(data.train), len(data.val), len(data.test), data.classes) == (4500, 585, 1017, 10)
    pictures = load(f"imagefolder:{shared_data / 'imagenet-sample'}", split="300:0:700", crop=224)
    assert (len(pictures.train), len(pictures.val), len(pictures.test), pictures.classes) == (
        300,
        0,
        700,
        1000,
    )
    assert pictures.test[0][0].shape == (3, 224, 224)
