"""Images of torchvision's datasets and of a function in the user's file."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import pixels
from saying import refusal
from sources import load
from torchvision.datasets import CIFAR10, MNIST


def write_cifar(root: Path) -> None:
    import pickle

    base = root / CIFAR10.base_folder
    base.mkdir(parents=True)
    for i, (name, _) in enumerate((*CIFAR10.train_list, *CIFAR10.test_list)):
        rows = {"data": pixels(4, 3072, seed=i), "labels": [i, 1, 2, 9]}
        (base / name).write_bytes(pickle.dumps(rows))
    (base / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def test_torchvision_cifar_opens_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a, **k: True)
    data = load(f"torchvision:CIFAR10?root={tmp_path}")
    assert (len(data.train), len(data.val), len(data.test), data.classes) == (18, 2, 4, 10)
    images, labels = data.test.fetch(range(4))
    original = CIFAR10(str(tmp_path), train=False)
    assert labels.tolist() == original.targets
    for i in range(4):
        assert torch.equal(
            images[i] * 255, torch.from_numpy(np.array(original[i][0])).permute(2, 0, 1).float()
        )


def test_torchvision_refuses(tmp_path: Path) -> None:
    words = "torchvision has no data set 'CIFAR01' with splits; did you mean 'CIFAR10'?"
    assert refusal(lambda: load(f"torchvision:CIFAR01?root={tmp_path}")) == words
    words = "--data torchvision:CIFAR10: no root given; expected torchvision:CIFAR10?root=DIR"
    assert refusal(lambda: load("torchvision:CIFAR10")) == words
    words = f"torchvision:{MNIST.__name__}: cannot open it under {tmp_path}: Dataset not found."
    found = refusal(lambda: load(f"torchvision:MNIST?root={tmp_path}"))
    assert found.startswith(words)
    assert found.endswith("; download it there with torchvision first, or name another root")
    assert refusal(lambda: load(f"torchvision:SVHN?root={tmp_path}")).startswith(
        "torchvision:SVHN: cannot open it"
    )


# --- a function in the user's file

OWN = """
import numpy as np, torch
from PIL import Image

class Items(list):
    pass

def several():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    return {"test": [(Image.fromarray(pixels), 0), (pixels, 1),
                     (torch.from_numpy(pixels).permute(2, 0, 1), 2),
                     (torch.from_numpy(pixels).permute(2, 0, 1) / 255, 3)]}

def three():
    grey = [(np.full((4, 4), i, np.uint8), i % 2) for i in range(30)]
    return {"train": grey[:20], "val": grey[20:25], "test": grey[25:]}

def no_test(): return {"train": []}
def text(): return "hello"
def fails(): raise RuntimeError("disk on fire")
def unlabelled(): return {"test": [np.zeros((4, 4), np.uint8)]}
def odd(): return {"test": [("cat.png", 0)]}
def broken(): return {"test": [(torch.full((1, 2, 2), float("nan")), 0)]}
def stream(): return {"test": iter([])}
nothing = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def test_every_kind_of_image_a_function_may_give_is_the_same_image(own: Path) -> None:
    data = load(f"{own}:several")
    images, labels = data.test.fetch(range(4))
    assert labels.tolist() == [0, 1, 2, 3]
    for image in images[1:]:
        torch.testing.assert_close(image, images[0], rtol=0, atol=1e-7)
    assert len(data.train) == len(data.val) == 0


def test_a_functions_splits_stay_apart_and_grey_repeats(own: Path) -> None:
    data = load(f"{own}:three", channels=3)
    assert (len(data.train), len(data.val), len(data.test), data.classes) == (20, 5, 5, 2)
    image, label = data.test[2]
    assert image.shape == (3, 4, 4)
    assert float(image[2, 0, 0]) == pytest.approx(27 / 255)
    assert label == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "no_test",
            "{0}:no_test: returned a dict of train; expected a dict with 'test' and, where there are, "
            "'train' and 'val'",
        ),
        (
            "text",
            "{0}:text: returned a str; expected a dict with 'test' and, where there are, 'train' and 'val'",
        ),
        ("fails", "{0}:fails: RuntimeError: disk on fire; mend the function"),
        ("nothing", "{0}: no function 'nothing'; expected file.py:callable"),
        ("unlabelled", "{0}:unlabelled: item 0 is a ndarray; expected a pair (image, label)"),
        ("stream", "{0}:stream: 'test' is a list_iterator; expected a data set with len() and [i]"),
    ],
)
def test_a_function_is_refused(own: Path, name: str, words: str) -> None:
    assert refusal(lambda: load(f"{own}:{name}")) == words.format(own)


def test_images_that_are_none_are_refused_when_asked_for(own: Path) -> None:
    words = f"{own}:odd: item 0: the image is str; expected a Pillow image, numpy uint8 (H, W) or (H, W, C), "
    assert refusal(lambda: load(f"{own}:odd").test[0]) == words + "or a tensor (C, H, W)"
    words = f"{own}:broken: item 0: the image holds NaN or Inf; repair or remove it"
    assert refusal(lambda: load(f"{own}:broken").test[0]) == words


def test_a_file_that_does_not_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import nowhere_to_be_found")
    words = f"{path}: ModuleNotFoundError: No module named 'nowhere_to_be_found'; mend the file"
    assert refusal(lambda: load(f"{path}:data")) == words
    assert str(tmp_path) not in sys.path
    missing = f"{tmp_path}/none.py"
    assert refusal(lambda: load(f"{missing}:f")) == f"{missing}: no such file; expected file.py:callable"
    assert refusal(lambda: load(missing)) == f"--data {missing}: no function named; expected file.py:callable"


def test_labels_outside_known_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a, **k: True)
    monkeypatch.setattr(CIFAR10, "classes", list("abc"), raising=False)
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)
    where = f"torchvision:CIFAR10?root={tmp_path}"
    words = f"{where}: train has label 9, outside the 3 classes 0..2; correct the labels"
    assert refusal(lambda: load(where)) == words
