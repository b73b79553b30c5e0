"""Nothing but the command line runs code: bombs behind every file that is read, and a marker looked for."""

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import NET, Bomb, npz, tiny_state, write_bombs, write_zip
from saying import fails

from kernelsimp import hold
from kernelsimp.cli.main import run
from kernelsimp.data.sources import load_data
from kernelsimp.errors import KernelsimpError
from kernelsimp.settings import DataSettings, Settings
from kernelsimp.settings_file import CAN_NAME_CODE, as_toml, names_code, settle

LONG = ("--finetune", "--epochs", "1", "--batch-size", "16", "-q")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of a tiny network, and its images."""
    folder = tmp_path_factory.mktemp("made")
    model = write_zip({"state_dict": tiny_state()}, folder / "tiny.pt")
    images = npz(folder / "images.npz", (8, 8, 3))
    words = ["simplify", str(model), "--arch", NET, "--data", images, "--tolerance", "0.9", *LONG]
    assert run([*words, "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it with a Python file that leaves a marker; at the end nothing has left one."""
    shutil.copytree(made, tmp_path / "made")
    place = tmp_path / "made"
    touch = f"from pathlib import Path\nPath({str(tmp_path / 'marker')!r}).touch()\n"
    (place / "evil.py").write_text(f"{touch}from builders import TinyNet\n")
    yield place
    assert not (tmp_path / "marker").exists()


def marker(place: Path) -> Path:
    return place.parent / "marker"


def altered(place: Path, **model: object) -> Path:
    """Have the run's report say other things of its network."""
    path = place / "run" / "report.json"
    report = json.loads(path.read_text())
    report["settings"]["model"] |= model
    path.write_text(json.dumps(report))
    return path


def images(place: Path) -> tuple[str, str]:
    return ("--data", f"npz:{place / 'images.npz'}")


@pytest.mark.parametrize("number", [0, 1])
def test_a_report_that_trusts_pickles_does_not_make_the_gate_trust_them(place, number, capsys) -> None:
    baseline = altered(place, trust_pickle=True)
    report = json.loads(baseline.read_text())
    bomb = write_bombs(place, marker(place))[number]
    check = ["check", str(bomb), "--baseline", str(baseline), "--arch", NET, "-q"]
    fails(check, capsys, "would run code")
    fails([*check, *images(place)], capsys, "would run code")
    baseline.unlink()  # a new one is made of the bomb itself
    fails([*check, "--update-baseline"], capsys, "would run code")
    baseline.write_text(json.dumps(report))
    shutil.copy(bomb, place / "run" / "tiny.pt")
    for form in ("packed", "safetensors", "torch", "onnx"):
        fails(["export", str(place / "run"), "--arch", NET, "--to", form], capsys, "would run code")
    assert not marker(place).exists()


@pytest.mark.parametrize("word", ["evil.py:TinyNet", "evil:TinyNet", "zoo:evil.py:TinyNet"])
def test_code_that_a_report_names_is_not_run(place, word, capsys, monkeypatch) -> None:
    monkeypatch.chdir(place)
    altered(place, arch=word)
    check = ["check", "run/tiny.pt", "--baseline", "run"]
    assert run([*check, "-q"]) == 0  # weights alone need no network
    fails([*check, *images(place), "-q"], capsys, f"code {word}, which no report may have run; pass --arch")
    fails(["export", "run", "--to", "onnx"], capsys, "which no report may have run; pass --arch")
    assert run(["report", "run"]) == 0
    assert run([*check, *images(place), "--arch", NET, "-q"]) == 0  # the user's own word


def test_a_registry_name_of_a_report_is_taken(place, capsys, monkeypatch) -> None:
    altered(place, arch="zoo:resnet20")
    fails(
        ["check", str(place / "run/tiny.pt"), "--baseline", str(place / "run"), *images(place), "-q"],
        capsys,
        "does not fit --arch",
    )


def test_no_settings_file_trusts_pickles(place, capsys) -> None:
    bomb = write_bombs(place, marker(place))[0]
    (place / "c.toml").write_text("[model]\ntrust_pickle = true\n")
    more = ["--config", str(place / "c.toml"), *images(place)]
    run_out = ["--out", str(place / "x")]
    for words in (
        ["scan", str(bomb), *more[:2]],
        ["simplify", str(bomb), *more, *run_out],
        ["prune", str(bomb), *more, *run_out],
        ["train", *more, *run_out],
        ["evaluate", str(bomb), *more],
        ["compare", str(bomb), str(bomb), *more],
        ["audit", str(bomb), *more],
        ["check", str(bomb), "--baseline", str(place / "run"), *more],
    ):
        fails([*words, "-q"], capsys, "[model]: 'trust_pickle' is set; no file may allow it")


@pytest.mark.parametrize(("stage", "key"), CAN_NAME_CODE)
def test_no_settings_file_names_code(stage: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'[{stage}]\n{key} = "evil.py:made"\n')
    with pytest.raises(KernelsimpError) as caught:
        settle({}, str(path))
    flag = f"--{key.replace('_', '-')} evil.py:made"
    assert str(caught.value) == (
        f"{path} [{stage}]: '{key}' is the Python code evil.py:made, which no file may have run; "
        f"pass {flag} too if you trust it"
    )
    own = settle({stage: {key: "mine.py:made"}}, str(path))  # the command line names its own
    assert getattr(getattr(own, stage), key) == "mine.py:made"


def test_what_counts_as_code() -> None:
    archs = ("a.py:f", "package.module:f", "zoo:a.py:f", "torchvision:x:y")
    assert all(names_code("arch", word) for word in archs)
    assert not any(
        names_code("arch", word) for word in ("zoo:resnet20", "torchvision:alexnet", "timm:a", "x")
    )
    assert names_code("data", "a.py:f")
    assert all(names_code("metric", word) for word in ("a.py:f", "a.pyc:f", "a.so:f", "a"))
    assert not names_code("metric", None)
    assert not any(names_code("data", word) for word in ("digits", "npz:a.npz", "imagefolder:d", None, 3))


def test_a_run_s_own_settings_never_keep_the_trust(tmp_path: Path) -> None:
    settings = settle({"model": {"trust_pickle": True, "weights": "ema"}})
    assert settings.model.trust_pickle
    (tmp_path / "s.toml").write_text(as_toml(settings))
    assert settle({}, str(tmp_path / "s.toml")) == settle({"model": {"weights": "ema"}})
    assert "trust" not in as_toml(Settings())


def test_hold_and_compare_read_no_code_from_a_run(place, capsys) -> None:
    settings = place / "run" / "settings.toml"
    settings.write_text(settings.read_text().replace(NET, f"{place / 'evil.py'}:TinyNet"))
    from builders import TinyNet

    net = TinyNet()
    net.load_state_dict(torch.load(place / "run" / "tiny.pt", weights_only=True)["state_dict"])
    hold(net, place / "run")
    again = [
        "simplify",
        str(place / "tiny.pt"),
        "--config",
        str(settings),
        "--out",
        str(place / "again"),
        "-q",
    ]
    fails(again, capsys, "which no file may have run; pass --arch")


@pytest.mark.parametrize("where", ["resume/finetune.pt", "plan.safetensors", "pictures.npz", "report.json"])
def test_a_bomb_in_a_run_s_own_files_stays_dead(place, where, capsys) -> None:
    bomb = write_bombs(place, marker(place))[0]
    shutil.copy(bomb, place / "run" / where)
    resumed = ["simplify", str(place / "tiny.pt"), "--arch", NET, *images(place), "--tolerance", "0.9", *LONG]
    run([*resumed, "--resume", "--out", str(place / "run")])
    for words in (
        ["report", str(place / "run")],
        ["export", str(place / "run"), "--out", str(place / "x.kspack")],
        ["check", str(place / "tiny.pt"), "--baseline", str(place / "run"), "-q"],
        ["simplify", str(place / "tiny.pt"), "--plan", str(place / "run" / where), "--dry-run", "-q"],
    ):
        run(words)
        assert not marker(place).exists()


def test_bombs_as_data_stay_dead(place, capsys) -> None:
    bomb = pickle.dumps(Bomb(marker(place)))
    array = np.array([Bomb(marker(place))], dtype=object)
    np.savez(place / "bomb.npz", train_images=array, train_labels=array, test_images=array, test_labels=array)
    (place / "raw.npz").write_bytes(bomb)
    for name in ("bomb.npz", "raw.npz"):
        words = ["evaluate", str(place / "tiny.pt"), "--arch", NET, "--data", f"npz:{place / name}", "-q"]
        capsys.readouterr()
        assert run(words) == 2
    processed = place / "MNIST" / "processed"
    processed.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        torch.save(Bomb(marker(place)), processed / name)
    with pytest.raises(KernelsimpError):
        load_data(DataSettings(data=f"torchvision:MNIST?root={place}"), 0)


def test_published_weights_in_the_cache_are_read_as_tensors_alone(place, monkeypatch, capsys) -> None:
    from torchvision.models import AlexNet_Weights

    cache = place / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(place))
    torch.save(Bomb(marker(place)), cache / AlexNet_Weights.DEFAULT.url.rpartition("/")[2])
    fails(["scan", "torchvision:alexnet", "-q"], capsys, "cannot fetch pretrained weights")


def test_the_bombs_are_alive(place) -> None:
    """What all of the above rests on: loaded with trust, or without tensors_only, the marker is there."""
    bomb = write_bombs(place, marker(place))[0]
    run(["scan", str(bomb), "--trust-pickle", "-q"])
    assert marker(place).exists()
    marker(place).unlink()
