"""Networks by name: what is known is built, what is not gets one line, and weights fit strictly."""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import WRITERS, prefixed, tiny_net, tiny_state, write_zip
from networks import Tied
from safetensors.torch import save_file
from saying import refusal
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.models import architectures
from kernelsimp.models.architectures import build_model, fit, load_pretrained, load_weights, recipe_of
from kernelsimp.models.checkpoint import Checkpoint, load_checkpoint
from kernelsimp.models.layers import bank_from_model
from kernelsimp.models.zoo import ZOO

FORMS = "zoo:NAME, torchvision:NAME, timm:NAME, hf-hub:NAME, file.py:callable or package.module:callable"


def unbuilt(spec: str) -> str:
    """Return the line with which an architecture is refused."""
    return refusal(lambda: build_model(spec))


# ---------------------------------------------------------------- the zoo


@pytest.mark.parametrize(
    ("name", "convolutions", "parameters"),
    [
        ("resnet20", 19, 269_722),
        ("resnet32", 31, 464_154),
        ("resnet44", 43, 658_586),
        ("resnet56", 55, 853_018),
        ("resnet110", 109, 1_727_962),
    ],
)
def test_the_residual_networks_have_their_published_size(
    name: str, convolutions: int, parameters: int
) -> None:
    """Layers and parameters as in the table of the paper (0.27 M, 0.46 M, 0.66 M, 0.85 M, 1.7 M)."""
    model = build_model(f"zoo:{name}")
    assert not model.training
    assert len(bank_from_model(model).layers) == convolutions
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_zoo_networks_classify() -> None:
    with torch.no_grad():
        assert build_model("zoo:resnet20")(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        assert build_model("zoo:digits-cnn")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_toy_shows_every_kind_and_two_grids() -> None:
    bank = bank_from_model(build_model("zoo:digits-cnn"))
    assert {(layer.kind, layer.grid) for layer in bank.spatial} == {
        ("single-input", (5, 5)),
        ("depthwise", (3, 3)),
        ("dense", (3, 3)),
    }


@pytest.mark.parametrize(("name", "right"), [("resnet20-12fca82f.th", 932), ("resnet56-4bfd9763.th", 943)])
def test_published_weights_load_strictly_and_classify(name: str, right: int, shared_data: Path) -> None:
    model = build_model(f"zoo:{name.split('-')[0]}")
    load_weights(model, load_checkpoint(shared_data / "checkpoints" / name))
    if name.startswith("resnet56"):
        return  # its 1,017 images cost many seconds; the shape of the network is the same
    with np.load(shared_data / "cifar10-exact.npz") as data:
        images = torch.from_numpy(data["test_images"]).permute(0, 3, 1, 2).float() / 255
        labels = torch.from_numpy(data["test_labels"]).reshape(-1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (images - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in images.split(128)])
    assert int((answers == labels).sum()) == right


def test_recipes() -> None:
    assert recipe_of("zoo:resnet56") == "cifar10-resnet"
    assert recipe_of("zoo:digits-cnn") == "digits"
    assert recipe_of("torchvision:resnet18") == "imagenet"
    assert recipe_of("zoo:nothing") is None
    assert recipe_of("net.py:build") is None


# ---------------------------------------------------------------- words that cannot be followed


def test_words_that_name_nothing() -> None:
    assert unbuilt("resnet20") == (
        f"--arch 'resnet20' is no architecture; expected {FORMS}; did you mean 'zoo:resnet20'?"
    )
    assert unbuilt("whatever") == f"--arch 'whatever' is no architecture; expected {FORMS}"
    listed = f"known: {', '.join(sorted(ZOO))}"
    nearest = dict.fromkeys(("resnet200", "resnet21", "resnet18", "resnet2o"), "resnet20")
    for name, near in {**nearest, "digits": "digits-cnn"}.items():
        assert unbuilt(f"zoo:{name}") == f"zoo:{name}: no such network; did you mean '{near}'? {listed}"
    assert unbuilt("zoo:vgg") == f"zoo:vgg: no such network; {listed}"
    assert unbuilt("torchvision:resnet81") == (
        "torchvision:resnet81: no such network; did you mean 'resnet18'?"
    )


def write_code(folder: Path, text: str) -> str:
    path = folder / "net.py"
    path.write_text(text)
    return str(path)


def test_code_that_does_not_give_a_network(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.py"
    assert unbuilt(f"{missing}:build") == f"--arch {missing}:build: no file {missing}; check the path"
    path = write_code(
        tmp_path,
        "def build(): raise ValueError('no\\nluck')\n"
        "def leave(): raise SystemExit(0)\n"
        "def number(): return 3\n"
        "def needy(width): return None\n"
        "constant = 3\n",
    )
    without = "expected a callable without arguments that returns the network"
    assert unbuilt(f"{path}:biuld") == f"--arch {path}:biuld: {path} has no 'biuld'; did you mean 'build'?"
    assert unbuilt(f"{path}:build") == f"--arch {path}:build: raised ValueError: no luck; {without}"
    assert unbuilt(f"{path}:leave") == f"--arch {path}:leave: raised SystemExit: 0; {without}"
    assert (
        unbuilt(f"{path}:number")
        == f"--arch {path}:number: returned int, expected a torch.nn.Module; return the network"
    )
    assert unbuilt(f"{path}:constant") == f"--arch {path}:constant: 'constant' is int, expected a callable"
    what = "TypeError: needy() missing 1 required positional argument: 'width'"
    assert unbuilt(f"{path}:needy") == f"--arch {path}:needy: raised {what}; {without}"
    path = write_code(tmp_path, "import not_a_module_of_anyone\n")
    assert unbuilt(f"{path}:build") == (
        f"--arch {path}:build: importing {path} raised ModuleNotFoundError: "
        "No module named 'not_a_module_of_anyone'; mend that file"
    )
    assert unbuilt("not_a_module_of_anyone:build") == (
        "--arch not_a_module_of_anyone:build: importing not_a_module_of_anyone raised ModuleNotFoundError: "
        f"No module named 'not_a_module_of_anyone'; expected {FORMS}"
    )


def test_code_that_does(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    path = write_code(
        tmp_path,
        "from dataclasses import dataclass\n"
        "from neighbour import WIDTH\n"
        "from torch import nn\n"
        "@dataclass\n"
        "class Options:\n"
        "    width: int = WIDTH\n"
        "def build(): return nn.DataParallel(nn.Conv2d(3, Options().width, 3))\n"
        "ready = nn.Conv2d(3, 7, 3)\n",
    )
    before = list(sys.path)
    assert build_model(f"{path}:build").out_channels == 5  # and DataParallel is taken off
    assert build_model(f"{path}:ready").out_channels == 7
    assert build_model("builders:tiny_net").head.out_features == 5
    assert sys.path == before
    sys.modules.pop("neighbour")


# ---------------------------------------------------------------- libraries


def test_torchvision_networks_are_built_without_weights() -> None:
    assert len(bank_from_model(build_model("torchvision:squeezenet1_1")).layers) == 26


def test_a_detector_is_built_without_fetching_its_backbone(monkeypatch) -> None:
    def fetch(*args: object, **kwargs: object) -> None:
        raise AssertionError("tried to fetch weights")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    kinds = {
        layer.kind for layer in bank_from_model(build_model("torchvision:lraspp_mobilenet_v3_large")).layers
    }
    assert kinds == {"dense", "depthwise"}


def stand_in(monkeypatch, name: str, module: object) -> None:
    """Let `import_module(name)` return a module, or raise an exception."""
    real = importlib.import_module

    def fake(wanted: str, *rest: object) -> object:
        if wanted != name:
            return real(wanted, *rest)
        if isinstance(module, Exception):
            raise module
        return module

    monkeypatch.setattr(architectures.importlib, "import_module", fake)


def test_a_torchvision_that_does_not_match_torch_is_one_line_of_advice(monkeypatch) -> None:
    stand_in(monkeypatch, "torchvision", RuntimeError("operator torchvision::nms does not exist"))
    assert unbuilt("torchvision:resnet18") == (
        f"torchvision fails with torch {torch.__version__} (operator torchvision::nms does not exist); "
        "they do not match: pip install --upgrade --force-reinstall torch torchvision"
    )


def test_timm_missing_and_present(monkeypatch) -> None:
    stand_in(monkeypatch, "timm", ModuleNotFoundError("No module named 'timm'"))
    assert unbuilt("timm:convnext_tiny") == "timm is not installed; pip install timm"
    names = ["convnext_tiny", "convnext_small"]
    timm = types.SimpleNamespace(
        is_model=lambda name: name in names,
        list_models=lambda: names,
        create_model=lambda name, pretrained: tiny_net(),
    )
    stand_in(monkeypatch, "timm", timm)
    assert unbuilt("timm:convnext_tinny") == (
        "timm:convnext_tinny: no such network; did you mean 'convnext_tiny'?"
    )
    assert isinstance(build_model("timm:convnext_tiny"), nn.Module)


def test_published_networks_by_name(monkeypatch, tmp_path: Path) -> None:
    import torchvision

    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights, progress: tiny_net())
    model, checkpoint = load_pretrained("torchvision:resnet18")
    assert torch.equal(model.stem.weight, checkpoint.tensors["stem.weight"])
    assert len(checkpoint.sha256) == 64
    checkpoint.save(tmp_path / "net.pth")
    assert load_checkpoint(tmp_path / "net.pth").format == "zip"
    with pytest.raises(KernelsimpError) as caught:
        load_pretrained("torchvision:resnet81")
    assert str(caught.value) == "torchvision:resnet81: no such network; did you mean 'resnet18'?"


def test_timm_for_real() -> None:
    pytest.importorskip("timm", reason="the extra 'timm' is not installed")
    bank = bank_from_model(build_model("timm:mobilenetv3_small_050"))
    assert {layer.kind for layer in bank.spatial} == {"dense", "depthwise"}


def test_pretrained_weights_that_cannot_be_fetched(monkeypatch) -> None:
    import torchvision

    def offline(name: str, weights: str | None = None, **options: object) -> nn.Module:
        if weights is None:
            return tiny_net()
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(KernelsimpError) as caught:
        load_pretrained("torchvision:resnet18")
    assert str(caught.value) == (
        "torchvision:resnet18: cannot fetch pretrained weights (<urlopen error [Errno -3] Temporary failure "
        "in name resolution>); download the checkpoint yourself and pass its file with --arch "
        "torchvision:resnet18"
    )


# ---------------------------------------------------------------- weights into a network


def checkpoint_of(state: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(Path("net.pt"), "zip", state)


def mismatch(state: dict[str, Tensor]) -> str:
    with pytest.raises(KernelsimpError) as caught:
        load_weights(tiny_net(), checkpoint_of(state))
    return str(caught.value)


def test_weights_load_strictly() -> None:
    model = tiny_net(1)
    load_weights(model, checkpoint_of(tiny_state(0)))
    assert all(torch.equal(value, tiny_state(0)[name]) for name, value in model.state_dict().items())


def test_old_files_lack_a_counter_of_batch_norm() -> None:
    state = {name: value for name, value in tiny_state().items() if "num_batches" not in name}
    load_weights(tiny_net(1), checkpoint_of(state))


def test_what_does_not_fit_is_named() -> None:
    advice = "pass the architecture this checkpoint was trained with"
    state = tiny_state()
    del state["stem.weight"]
    assert mismatch(state) == f"net.pt does not fit --arch: 1 missing (stem.weight); {advice}"
    state = {**tiny_state(), "extra.weight": torch.zeros(1), "head.weight": torch.zeros(10, 6)}
    assert mismatch(state) == (
        "net.pt does not fit --arch: 1 unexpected (extra.weight), "
        f"1 of another shape (head.weight (10, 6) for (5, 6)); {advice}"
    )
    assert mismatch({}).startswith(
        "net.pt does not fit --arch: 11 missing (stem.weight, norm.weight, norm.bias, ...); "
    )


@pytest.mark.parametrize("container", WRITERS)
def test_a_network_beside_losses_and_teachers_is_found_by_its_names(container: str, tmp_path: Path) -> None:
    state = {"loss.weight": torch.ones(2, 2), **prefixed(tiny_state(), "net."), "metric.steps": torch.ones(1)}
    path = WRITERS[container](state, tmp_path / "net.ckpt")
    checkpoint = fit(tiny_net(1), load_checkpoint(path))
    told = f"{path}: took the network under 'net.'; 2 other tensors stay as they are"
    assert checkpoint.warnings == (told,)
    model = tiny_net(1)
    load_weights(model, checkpoint)
    assert torch.equal(model.stem.weight, tiny_state()["stem.weight"])
    checkpoint.with_tensors({"stem.weight": torch.zeros(4, 3, 3, 3)}).save(path)
    again = load_checkpoint(path).tensors
    assert sorted(again) == sorted(state)
    assert not again["net.stem.weight"].any()
    assert torch.equal(again["net.head.weight"], state["net.head.weight"])
    assert torch.equal(again["loss.weight"], torch.ones(2, 2))


def test_two_networks_side_by_side_are_not_guessed_at() -> None:
    checkpoint = checkpoint_of({**prefixed(tiny_state(), "student."), **prefixed(tiny_state(), "teacher.")})
    assert fit(tiny_net(), checkpoint).tensors is checkpoint.tensors
    direct = checkpoint_of(tiny_state())
    assert fit(tiny_net(), direct).tensors is direct.tensors


def test_a_file_that_stores_a_tied_weight_twice_changes_in_both_places(tmp_path: Path) -> None:
    model = Tied()
    copies = {name: value.clone() for name, value in model.state_dict().items()}
    path = WRITERS["safetensors"](copies, tmp_path / "net.safetensors")
    checkpoint = fit(model, load_checkpoint(path))
    assert checkpoint.ties == (("first.weight", "second.weight"),)
    checkpoint.with_tensors({"first.weight": torch.ones(3, 3, 3, 3)}).save(path)
    load_weights(model, load_checkpoint(path))
    assert torch.equal(model.first.weight, torch.ones(3, 3, 3, 3))
    ones, zeros = torch.ones(3, 3, 3, 3), torch.zeros(3, 3, 3, 3)
    with pytest.raises(KernelsimpError) as caught:
        checkpoint.with_tensors({"first.weight": ones, "second.weight": zeros})
    words = "'first.weight' is tied to second.weight but was given other values; change them alike"
    assert str(caught.value) == words


def test_a_checkpoint_of_another_network(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_zip(build_model("zoo:resnet32").state_dict(), tmp_path / "net.pt"))
    with pytest.raises(
        KernelsimpError, match=r"net\.pt does not fit --arch: 72 unexpected \(layer1\.3\.conv1"
    ):
        load_weights(build_model("zoo:resnet20"), checkpoint)


class Versioned(nn.Module):
    """A network that, like some published ones, refuses a state dict without versions."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version") != 2:
            raise ValueError("version should be 2")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_a_network_that_reads_versions_loads_from_any_file_with_counters_or_without(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    source = Versioned().state_dict()
    del source["norm.num_batches_tracked"]
    save_file(dict(source), tmp_path / "m.safetensors")
    model = Versioned()
    load_weights(model, load_checkpoint(tmp_path / "m.safetensors"))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in source.items())
