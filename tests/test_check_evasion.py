"""Ways past the gate: each is red or refused, and an edited baseline says that it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import prefixed, tiny_state, write_zip
from torch import Tensor

from kernelsimp.cli.main import run

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny network whose kernels are all frozen, one of them with zeros, and its baseline."""
    folder = tmp_path_factory.mktemp("evasion")
    state = tiny_state()
    state["stem.weight"][0, 0] = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])  # left as it is
    model = write_zip({"state_dict": state}, folder / "tiny.pt")
    assert run(["simplify", str(model), "--tolerance", "0.9", "--out", str(folder / "run"), "-q"]) == 0
    made = ["--baseline", str(folder / "b.json"), "--update-baseline"]
    assert run(["check", str(folder / "run" / "tiny.pt"), *made]) == 0
    return folder


def sound(place: Path) -> State:
    state = torch.load(place / "run" / "tiny.pt", weights_only=True)["state_dict"]
    return {name: value.clone() for name, value in state.items()}


def changed(state: State) -> State:
    state["stem.weight"][0, 0, 1, 1] += 1
    return state


def negative_zero(state: State) -> Any:
    cell = state["stem.weight"][0, 0, 1]
    assert (cell[1], bool(cell[1].signbit())) == (0, False)
    cell[1] = -0.0
    return state


def nan_payload(state: State) -> Any:
    state["stem.weight"][0, 0].view(torch.int32)[0, 0] = 0x7FC00001
    return state


def of_dtype(dtype: torch.dtype) -> Callable[[State], Any]:
    return lambda state: {**state, "stem.weight": state["stem.weight"].to(dtype)}


def stride_zero(state: State) -> Any:
    weight = state["stem.weight"]
    return {**state, "stem.weight": weight[:1, :1].expand_as(weight)}


def doubled(state: State) -> Any:
    return {**state, "module.stem.weight": changed(dict(state))["stem.weight"] + 1}


def renamed(state: State) -> Any:
    return {("root.weight" if name == "stem.weight" else name): value for name, value in state.items()}


def averaged(state: State) -> Any:
    """What AveragedModel keeps, `module.*` and a count, with another network in it beside the sound one."""
    other = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    return {"state_dict": {**prefixed(other, "module."), **state, "n_averaged": torch.tensor(3)}}


EVASIONS: dict[str, Callable[[State], Any]] = {
    "-0.0 for 0.0": negative_zero,
    "a NaN with a payload": nan_payload,
    "float64": of_dtype(torch.float64),
    "bfloat16": of_dtype(torch.bfloat16),
    "float8": of_dtype(torch.float8_e4m3fn),
    "complex": of_dtype(torch.complex64),
    "integers": of_dtype(torch.int32),
    "sparse": lambda state: {**state, "stem.weight": state["stem.weight"].to_sparse()},
    "stride 0": stride_zero,
    "renamed": renamed,
    "a twin under module.": doubled,
    "behind an average": averaged,
    "an average alone": lambda state: {"ema": changed(state)},
    "transposed": lambda state: {**state, "stem.weight": state["stem.weight"].transpose(2, 3)},
}


@pytest.mark.parametrize("name", EVASIONS)
@pytest.mark.parametrize("baseline", ["run", "b.json"])
def test_no_evasion_passes(name: str, baseline: str, place: Path, capsys) -> None:
    path = write_zip(EVASIONS[name](sound(place)), place / "new.pt")
    code = run(["check", str(path), "--baseline", str(place / baseline), "-q"])
    assert code in (1, 2), capsys.readouterr()
    assert code == 1 or len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("baseline", ["run", "b.json"])
def test_the_sound_network_passes(baseline: str, place: Path) -> None:
    path = write_zip(sound(place), place / "new.pt")
    assert run(["check", str(path), "--baseline", str(place / baseline), "-q"]) == 0
    same = write_zip({"state_dict": prefixed(sound(place), "module.")}, place / "wrapped.pt")
    assert run(["check", str(same), "--baseline", str(place / baseline), "-q"]) == 0


def edited(data: dict[str, Any], path: Path, value: str) -> Path:
    """Write a baseline in which a figure has another value, which need be no JSON."""
    text = json.dumps({**data, "measured": {"kernels.dead_share": "HERE"}})
    path.write_text(text.replace('"HERE"', value))
    return path


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '"0.5"', "true", "[1]", "null"])
@pytest.mark.parametrize("more", [(), ("--accept-edited",)])
def test_a_baseline_of_odd_figures_is_refused(value: str, more: tuple[str, ...], place: Path, capsys) -> None:
    data = json.loads((place / "b.json").read_text())
    path = edited(data, place / "odd.json", value)
    assert run(["check", str(place / "run" / "tiny.pt"), "--baseline", str(path), "-q", *more]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_edited_baseline_says_so(place: Path, capsys) -> None:
    model, path = str(place / "run" / "tiny.pt"), place / "edited.json"
    check = ["check", model, "--baseline", str(path), "-q"]
    data = json.loads((place / "b.json").read_text())
    path.write_text(json.dumps(data))  # other spaces, the same content
    assert run(check) == 0
    for change in ({"held": False}, {"layers": []}, {"measured": {}}, {"coefficient_bits": 1.0}):
        path.write_text(json.dumps({**data, **change}))
        assert run(check) == 2
        assert "edited, or of an older version: its content is not" in capsys.readouterr().err
        assert run([*check, "--accept-edited"]) in (0, 1)
    del data["sha256"]
    path.write_text(json.dumps(data))
    assert run(check) == 2
    assert "has no digest of its content; make it again" in capsys.readouterr().err
    assert run([*check, "--accept-edited"]) == 0
    assert run([*check, "--update-baseline"]) == 2
    assert run([*check, "--update-baseline", "--accept-edited"]) == 0
    assert run(check) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight_shape": [4]}, "layer 'depthwise' of shape (4,) in 4 groups is no convolution"),
        ({"groups": 3}, "layer 'depthwise' of shape (4, 1, 3, 3) in 3 groups is no convolution"),
        ({"groups": 0}, "in 0 groups is no convolution"),
        ({"weight_shape": [0, 1, 3, 3]}, "layer 'depthwise' of shape (0, 1, 3, 3)"),
    ],
)
def test_a_layer_that_is_no_convolution_is_refused(change, said: str, place: Path, capsys) -> None:
    data = json.loads((place / "b.json").read_text())
    data["layers"][0].update({"groups": 4, **change})
    path = place / "odd.json"
    path.write_text(json.dumps(data))
    model = str(place / "run" / "tiny.pt")
    assert run(["check", model, "--baseline", str(path), "-q", "--accept-edited"]) == 2
    assert said in capsys.readouterr().err
