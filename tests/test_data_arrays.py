"""Keys of other libraries, float images of 0..255, and .npy files."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import pixels
from saying import refusal
from sources import load

from kernelsimp.data.numpy_files import place_of
from kernelsimp.data.sources import load_data
from kernelsimp.data.stores import as_images
from kernelsimp.errors import KernelsimpError
from kernelsimp.settings import DataSettings
from kernelsimp.settings_file import names_code

X, Y = pixels(20, 6, 6, 3), np.arange(20) % 4


def splits(**names: str) -> dict[str, np.ndarray]:
    parts = {"train": slice(0, 10), "val": slice(10, 14), "test": slice(14, 20)}
    return {
        name: (X if side == "x" else Y)[parts[word]]
        for key, name in names.items()
        for word, side in [key.split("_")]
    }


KERAS = splits(train_x="x_train", train_y="y_train", test_x="x_test", test_y="y_test")


def check_splits(data: object, *, val: bool) -> None:
    assert [len(getattr(data, word)) for word in ("train", "val", "test")] == [
        10 if val else 9,
        4 if val else 1,
        6,
    ]
    images, labels = data.test.fetch(range(6))  # type: ignore[attr-defined]
    assert labels.tolist() == Y[14:].tolist()
    assert torch.equal((images * 255).round(), torch.from_numpy(X[14:]).permute(0, 3, 1, 2).float())


def test_the_keys_of_keras_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **KERAS)
    check_splits(load(f"npz:{tmp_path}/a.npz"), val=False)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        ("x_{}", "y_{}", ("train", "valid", "test")),
        ("X_{}", "Y_{}", ("train", "val", "test")),
        ("X_{}", "y_{}", ("train", "dev", "test")),
        ("{}_data", "{}_labels", ("training", "validation", "testing")),
        ("{}_imgs", "{}_target", ("train", "val", "test")),
        ("images-{}", "labels-{}", ("Train", "Valid", "Test")),
    ],
)
def test_a_key_says_split_and_side_in_either_order(
    tmp_path: Path, images: str, labels: str, words: tuple[str, ...]
) -> None:
    names = {
        f"{split}_{side}": form.format(word)
        for split, word in zip(("train", "val", "test"), words, strict=True)
        for side, form in (("x", images), ("y", labels))
    }
    np.savez(tmp_path / "a.npz", **splits(**names), extra=np.zeros(3))
    check_splits(load(f"npz:{tmp_path}/a.npz"), val=True)


def test_keys_that_are_none_of_a_pair_belong_to_nothing() -> None:
    assert [place_of(key) for key in ("x_min", "y_pred", "xtrain2", "extra", "arr_0", "x_contest")] == [
        None
    ] * 6


def test_pairs_are_wanted_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x_train=X, x_test=X, y_test=Y)
    assert refusal(lambda: load(f"npz:{path}")) == f"{path}: found x_train without y_train; expected both"
    np.savez(path, x_test=X, y_test=Y, test_images=X)
    assert (
        refusal(lambda: load(f"npz:{path}"))
        == f"{path}: x_test and test_images are the same; keep one of them"
    )


def test_one_pair_without_splits_is_parted_by_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=X, y=Y)
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "Y.npy", Y)
    one = load(f"npz:{tmp_path}/a.npz", split="10:4:5")
    two = load(f"npy:{tmp_path}/X.npy,{tmp_path}/Y.npy", split="10:4:5")
    for data in (one, two):
        assert [len(part) for part in (data.train, data.val, data.test)] == [10, 4, 5]
        assert data.warnings == ("--split 10:4:5 leaves 1 of 20 images out",)
        images, labels = data.test.fetch(range(5))
        assert labels.tolist() == Y[data.test.places].tolist()
        assert torch.equal(
            (images * 255).round(), torch.from_numpy(X[data.test.places]).permute(0, 3, 1, 2).float()
        )
    assert one.fingerprint == two.fingerprint


def test_a_folder_of_npy_files_has_the_keys_as_names(tmp_path: Path) -> None:
    for name, array in KERAS.items():
        np.save(tmp_path / f"{name}.npy", array)
    check_splits(load(f"npy:{tmp_path}"), val=False)


def test_npy_refuses(tmp_path: Path) -> None:
    x, y = tmp_path / "X.npy", tmp_path / "Y.npy"
    np.save(x, X)
    words = "expected npy:IMAGES.npy,LABELS.npy or npy:DIR with x_train.npy, y_train.npy..."
    assert refusal(lambda: load(f"npy:{x}")) == f"--data npy:{x}: {words}"
    words = f"{y}: no such file; expected an .npy file of images or labels"
    assert refusal(lambda: load(f"npy:{x},{y}")) == words
    np.save(y, Y[:3])
    assert refusal(lambda: load(f"npy:{x},{y}")) == f"{x}: images has 20 images, labels 3 labels"
    np.save(y, np.array([{"a": 1}], dtype=object))
    assert refusal(lambda: load(f"npy:{x},{y}")).startswith(f"{y}: cannot read as .npy: Object arrays")
    y.write_bytes(b"\x93NUMPY\x01")
    assert refusal(lambda: load(f"npy:{x},{y}")).startswith(f"{y}: cannot read as .npy: ")


def test_a_file_without_its_source_is_answered_with_it(tmp_path: Path) -> None:
    assert refusal(lambda: load("some/file.npz")).endswith("did you mean npz:some/file.npz?")
    assert refusal(lambda: load("X.npy,Y.npy")).endswith("did you mean npy:X.npy,Y.npy?")
    assert refusal(lambda: load(str(tmp_path))).endswith(f"did you mean imagefolder:{tmp_path}?")
    np.save(tmp_path / "x_test.npy", X)
    assert refusal(lambda: load(str(tmp_path))).endswith(f"did you mean npy:{tmp_path}?")
    assert not names_code("data", "npy:X.npy,Y.npy")


def test_float_images_of_0_to_255_are_the_same_images() -> None:
    whole = as_images(X, "x")
    for kind in (np.float16, np.float32, np.float64):
        assert torch.equal(as_images(X.astype(kind), "x"), whole)
    fractions = X.astype(np.float64) * 0.999
    torch.testing.assert_close(as_images(fractions, "x"), (whole.double() * 0.999 / 255).float())
    words = "x: float64 from 0.5 to 16.5; expected whole numbers in 0..255 or floats in 0..1"
    assert refusal(lambda: as_images(np.array([[[0.5, 16.5]]]), "x")) == words
    assert "from -1 to 1;" in refusal(lambda: as_images(np.array([[[-1.0, 1.0]]]), "x"))
    assert "from nan to nan;" in refusal(lambda: as_images(np.array([[[np.nan, 200.5]]]), "x"))


def test_an_npz_that_inflates_and_one_with_a_record_that_is_no_array(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, test_images=np.zeros((1 << 22, 8, 8), np.uint8), test_labels=np.zeros(1 << 22))
    with pytest.raises(KernelsimpError, match=r"bytes would inflate to 301,\d\d\d,\d\d\d"):
        load_data(DataSettings(data=f"npz:{path}"), 0)
    odd = tmp_path / "odd.npz"
    with zipfile.ZipFile(odd, "w") as archive:
        archive.writestr("test_images", b"no array")
        archive.writestr("test_labels", b"no array")
    with pytest.raises(KernelsimpError, match=r"'test_images' is no \.npy record"):
        load_data(DataSettings(data=f"npz:{odd}"), 0)
