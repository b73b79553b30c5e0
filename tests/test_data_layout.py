"""What a picture folder's folders are: splits in any spelling, classes, or what a system left behind."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from saying import refusal
from sources import load

from kernelsimp.data.images import read_image
from kernelsimp.data.layout import split_word


def plant(root: Path, files: Iterable[str]) -> Path:
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 100, 200)).save(path)
    return root


def two_classes(*splits: str) -> list[str]:
    return [f"{split}/{name}/{i}.png" for split in splits for name in ("ant", "bee") for i in range(6)]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", None, "Testing"),
        ("Train", None, "Test"),
        ("TRAIN", "VALID", "TEST"),
        ("training_set", "dev", "test_set"),
        ("train2017", "val2017", "test2017"),
        ("train-data", "Validation", "test data"),
    ],
)
def test_splits_are_known_by_any_of_their_names(
    tmp_path: Path, train: str, val: str | None, test: str
) -> None:
    root = plant(tmp_path, two_classes(*filter(None, (train, val, test))))
    data = load(f"imagefolder:{root}")
    assert (len(data.train), len(data.val)) == ((12, 12) if val else (11, 1))
    assert (len(data.test), data.classes, data.warnings) == (12, 2, ())
    assert data.test.labels.tolist() == [0] * 6 + [1] * 6
    assert f"train ({train})" in data.notes[0] or train == "train"
    assert f"test ({test})" in data.notes[0]
    assert data.notes[0].endswith("2 classes: ant, bee")


def test_training_without_test_is_one_line(tmp_path: Path) -> None:
    root = plant(tmp_path, two_classes("training", "validation"))
    words = f"{root}: found training, validation; expected a folder test: rename validation to test"
    assert refusal(lambda: load(f"imagefolder:{root}")) == words
    (root / "Test").mkdir()
    words = f"{root}: no images in the folder Test; expected Test/CLASS/IMAGE"
    assert refusal(lambda: load(f"imagefolder:{root}")) == words


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    root = plant(tmp_path, two_classes("train", "test", "testing"))
    words = f"{root}: test and testing both name the split test; move one of them away"
    assert refusal(lambda: load(f"imagefolder:{root}")) == words


@pytest.mark.parametrize(
    "left", ["__MACOSX", ".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN", "System Volume Information"]
)
@pytest.mark.parametrize("splits", [True, False])
def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path: Path, left: str, splits: bool) -> None:
    root = plant(tmp_path, two_classes("train", "test") if splits else two_classes("."))
    inner = ("train/", "test/", "train/ant/") if splits else ("", "ant/")
    for place in ("", *inner):
        plant(root, [f"{place}{left}/x/thumb.png", f"{place}{left}/thumb.jpg"])
    plant(root, ["Thumbs.db/1.png"])
    data = load(f"imagefolder:{root}", **({} if splits else {"split": "4:0:8"}))
    assert data.classes == 2
    assert data.warnings == ()
    assert sum(map(len, (data.train, data.val, data.test))) == (24 if splits else 12)
    assert set(data.test.labels.tolist()) == {0, 1}


def test_empty_folders_are_no_class_and_shift_no_label(tmp_path: Path) -> None:
    root = plant(tmp_path, two_classes("."))
    for name in ("aardvark", "aa_docs"):
        (root / name).mkdir()
    (root / "aa_docs" / "readme.txt").write_text("no image")
    data = load(f"imagefolder:{root}", split="0:0:12")
    assert (data.classes, data.test.labels.tolist()) == (2, [0] * 6 + [1] * 6)
    assert data.warnings == (f"{root}: aa_docs, aardvark: no class, without images",)
    ready = plant(tmp_path / "ready", two_classes("train", "test"))
    for split in ("train", "test"):
        (ready / split / "aa").mkdir()
    assert load(f"imagefolder:{ready}").test.labels.tolist() == [0] * 6 + [1] * 6


def test_splits_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    root = plant(tmp_path / "flat", [f"{split}/{i}.png" for split in ("Train", "Test") for i in range(3)])
    words = f"{root}: Test, Train: images without class folders, so they have no labels; "
    assert refusal(lambda: load(f"imagefolder:{root}")) == words + "expected Test/CLASS/IMAGE"
    root = plant(tmp_path / "half", [*two_classes("train"), "test/1.png"])
    words = f"{root}: test: images without class folders, so they have no labels; "
    assert refusal(lambda: load(f"imagefolder:{root}")) == words + "expected test/CLASS/IMAGE"


def test_a_class_called_train_or_valid_stays_a_class(tmp_path: Path) -> None:
    root = plant(tmp_path / "a", [f"{name}/{i}.png" for name in ("bus", "car", "train") for i in range(5)])
    data = load(f"imagefolder:{root}", split="0:0:15")
    assert data.test.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert data.warnings == (f"{root}: train: taken as a class, though named as a split",)
    root = plant(tmp_path / "b", [f"{name}/{i}.png" for name in ("invalid", "valid") for i in range(5)])
    assert load(f"imagefolder:{root}", split="0:0:10").classes == 2


def test_what_stands_beside_splits_and_classes_is_told(tmp_path: Path) -> None:
    extra = ["extra/ant/0.png", "train/loose.png"]
    root = plant(tmp_path / "ready", [*two_classes("train", "test"), *extra])
    assert load(f"imagefolder:{root}").warnings == (
        f"{root}: 1 images beside the class folders of the splits are left out",
        f"{root}: extra beside the splits: left out",
    )
    root = plant(tmp_path / "one", [f"images/{i}.png" for i in range(9)])
    assert load(f"imagefolder:{root}").warnings == (
        f"{root}: only one class folder, images: every label is 0",
    )
    root = plant(
        tmp_path / "inside", [f"{c}/{s}/{i}.png" for c in "ab" for s in ("train", "test") for i in "123"]
    )
    assert load(f"imagefolder:{root}").warnings == (
        f"{root}: splits inside the classes a, b are not kept apart",
    )
    root = plant(tmp_path / "case", [f"{name}/{i}.png" for name in ("Ant", "ant") for i in range(5)])
    assert load(f"imagefolder:{root}").warnings == (
        f"{root}: Ant and ant differ in case alone and are two classes",
    )


def test_splits_one_folder_deeper_are_named(tmp_path: Path) -> None:
    root = plant(tmp_path, two_classes("set/Train", "set/Test"))
    words = (
        f"{root}: its only folder set holds the splits Test, Train; pass --data imagefolder:{root / 'set'}"
    )
    assert refusal(lambda: load(f"imagefolder:{root}")) == words
    assert load(f"imagefolder:{root / 'set'}").classes == 2


def test_links_to_class_folders_are_followed_once(tmp_path: Path) -> None:
    real = plant(tmp_path / "real", [f"{i}.png" for i in range(6)])
    root = plant(tmp_path / "root", [f"ant/{i}.png" for i in range(6)])
    (root / "bee").symlink_to(real)
    (root / "ant" / "again").symlink_to(root)
    data = load(f"imagefolder:{root}", split="0:0:12")
    assert data.test.labels.tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize("name", ["contest", "latest", "trainer", "devil", "value", "testament", "strain"])
def test_words_that_only_contain_a_split_are_none(name: str) -> None:
    assert split_word(name) is None


# --- deep pictures


def deep(path: Path, pixels: np.ndarray) -> torch.Tensor:
    Image.fromarray(pixels).save(path)
    return read_image(path)[0]


@pytest.mark.parametrize("end", [1, 255, 65535])
def test_floats_are_read_in_the_range_that_holds_them(tmp_path: Path, end: int) -> None:
    ramp = np.linspace(0, end, 20, dtype=np.float32).reshape(4, 5)
    expected = torch.linspace(0, 255, 20).reshape(4, 5)
    torch.testing.assert_close(deep(tmp_path / "x.tif", ramp).float(), expected, atol=0.51, rtol=0)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_read_by_their_range(tmp_path: Path, suffix: str) -> None:
    ramp = np.array([[0, 257, 257 * 100, 65535]], dtype=np.uint16)
    assert deep(tmp_path / f"x.{suffix}", ramp).tolist() == [[0, 1, 100, 255]]
    assert deep(tmp_path / f"dark.{suffix}", np.full((2, 2), 200, np.uint16)).unique().tolist() == [1]


@pytest.mark.parametrize(("highest", "warned"), [(255, True), (256, False), (0, False)])
def test_sixteen_bits_that_hold_eight_are_warned_of(tmp_path: Path, highest: int, *, warned: bool) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for at in range(3):
                pixels = np.full((4, 4), highest, np.uint16)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{at}.png")
    told = load(f"imagefolder:{tmp_path}").warnings
    assert any("16 bits hold nothing above 255" in words for words in told) is warned


def test_floats_of_no_range_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    for pixels in (np.array([[-1, 1]], np.float32), np.array([[0, np.nan]], np.float32)):
        words = refusal(lambda pixels=pixels: deep(path, pixels))
        assert words.startswith(f"{path}: cannot decode the image: grey values from ")
        assert words.endswith("; expected 0..1, 0..255, 0..65535; repair or remove it")
