"""Networks that return more than one tensor: which of them classifies, and --output where nothing tells."""

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from saying import refusal
from torch import Tensor, nn

from kernelsimp.cli.main import run
from kernelsimp.evaluation.accuracy import measure
from kernelsimp.evaluation.outputs import class_scores, scores_of
from kernelsimp.models.outputs import keep_output, pick_output

SCORES, OTHER, MAP = torch.rand(4, 3), torch.rand(4, 7), torch.rand(4, 3, 5, 5)
Outputs = namedtuple("Outputs", "logits aux_logits2 aux_logits1")


@dataclass
class ModelOutput:
    loss: Tensor | None
    logits: Tensor
    hidden_states: tuple[Tensor, ...]


@pytest.mark.parametrize(
    "output",
    [
        SCORES,
        {"logits": SCORES},
        OrderedDict(loss=None, hidden=OTHER, logits=SCORES),
        (SCORES, MAP),
        [SCORES, OTHER],
        (SCORES,),
        ((SCORES, OTHER), MAP),
        {"features": OTHER, "out": SCORES},
        {"Logits": SCORES, "out": OTHER},
        {"anything": SCORES},
        Outputs(SCORES, OTHER, OTHER),
        ModelOutput(None, SCORES, (OTHER,)),
        SimpleNamespace(features=OTHER, logits=SCORES),
        {"output": {"logits": SCORES, "z": OTHER}},
        (None, SCORES),
    ],
)
def test_the_scores_are_found(output: Any) -> None:
    assert class_scores(output) is SCORES


@pytest.mark.parametrize(
    "output",
    [
        MAP,
        torch.rand(4, 1),
        torch.ones(4, 3, dtype=torch.int64),
        {"a": SCORES, "b": OTHER},
        {"out": MAP, "aux": SCORES},
        (MAP, SCORES),
        (),
        {},
        None,
        "text",
    ],
)
def test_what_cannot_be_told_is_not_guessed(output: Any) -> None:
    assert class_scores(output) is None


def test_the_line_names_what_there_is() -> None:
    words = "the network returns dict of a (4, 3), b (4, 7); name the scores of the classes with --output KEY"
    assert refusal(lambda: scores_of({"a": SCORES, "b": OTHER})) == words


@pytest.mark.parametrize(
    ("output", "key"),
    [
        ({"a": OTHER, "b": SCORES}, "b"),
        ((OTHER, SCORES), "1"),
        ((OTHER, SCORES), "-1"),
        ({"a": OTHER, "b": SCORES}, "1"),
        ({"a": {"c": OTHER, "d": SCORES}}, "a.d"),
        ({"a.d": SCORES, "a": OTHER}, "a.d"),
        ((OTHER, [OTHER, SCORES]), "1.1"),
        (ModelOutput(None, SCORES, (OTHER,)), "logits"),
        (Outputs(OTHER, SCORES, OTHER), "aux_logits2"),
        (SCORES, "logits"),
    ],
)
def test_an_output_is_picked_by_key_attribute_or_place(output: Any, key: str) -> None:
    assert pick_output(output, key) is SCORES


def test_an_output_that_is_not_there_is_one_line() -> None:
    words = "--output c: the network returns dict of a (4, 3), b (4, 7); name one of these"
    assert refusal(lambda: pick_output({"a": SCORES, "b": OTHER}, "c")) == words
    assert "--output 2: the network returns tuple of 0 (4, 3), 1 (4, 7);" in refusal(
        lambda: pick_output((SCORES, OTHER), "2")
    )


class Several(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, images: Tensor) -> Any:
        return self.form(images[:, :, 0, 0], -images[:, :, 0, 0])


def test_accuracy_is_that_of_the_scores() -> None:
    images = torch.eye(3)[:, :, None, None]
    batches = [(images, torch.tensor([0, 1, 0]))]
    expected = measure(Several(lambda a, _: a), batches).correct.tolist()
    assert expected == [True, True, False]
    for form in (lambda a, b: {"logits": a, "z": b}, lambda a, b: (a, b)):
        assert measure(Several(form), batches).correct.tolist() == expected
    unclear = Several(lambda a, b: {"x": b, "y": a})
    assert refusal(lambda: measure(unclear, batches)) == (
        "the network's output for 3 images 3 x 1 x 1 is dict of x (3, 3), y (3, 3); expected (3, classes), "
        "one score a class and image, or its name with --output KEY"
    )
    assert measure(keep_output(unclear, "y"), batches).correct.tolist() == expected


NETS = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.d = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.f, self.g = nn.Linear(8, 3), nn.Linear(8, 3)
    def both(self, x):
        x = self.c(x).relu()
        return self.f(self.d(x).mean((2, 3))), self.g(x.mean((2, 3)))
    def forward(self, x):
        return self.both(x)[0]
class Unclear(Net):
    def forward(self, x):
        first, second = self.both(x)
        return {"a": second, "b": first}
class Auxiliary(Net):
    def forward(self, x):
        return self.both(x) if self.training else self.both(x)[0]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    space: dict[str, Any] = {}
    exec(NETS, space)
    torch.manual_seed(0)
    torch.save(space["Net"]().state_dict(), tmp_path / "m.pt")
    random = np.random.default_rng(0)
    arrays = {
        f"{word}_x": random.integers(0, 256, (24, 8, 8), dtype=np.uint8) for word in ("train", "val", "test")
    }
    np.savez(
        tmp_path / "d.npz", **arrays, **{f"{word}_y": np.arange(24) % 3 for word in ("train", "val", "test")}
    )
    return tmp_path


def command(place: Path, name: str, net: str, *options: str) -> list[str]:
    return [
        name,
        str(place / "m.pt"),
        "--arch",
        f"{place}/nets.py:{net}",
        "--data",
        f"npz:{place}/d.npz",
        *options,
    ]


def test_output_says_which_one_classifies(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command(place, "evaluate", "Unclear")) == 2
    assert "or its name with --output KEY" in capsys.readouterr().err
    run(command(place, "evaluate", "Net"))
    expected = capsys.readouterr().out
    assert run(command(place, "evaluate", "Unclear", "--output", "b")) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "%" in line] == [
        line for line in expected.splitlines() if "%" in line
    ]
    assert run(command(place, "evaluate", "Unclear", "--output", "c")) == 2
    assert "--output c: the network returns dict of a (24, 3), b (24, 3); name one" in capsys.readouterr().err


def test_simplifying_what_classifies_nobody_knows_hints_at_output(place: Path, capsys) -> None:
    words = ("--calibration", "8", "--dof", "0.8", "--quiet", "--out", str(place / "run"))
    assert run(command(place, "simplify", "Unclear", *words)) == 0
    told = capsys.readouterr().err
    assert told.count("nothing tells which are the scores of classes") == 1
    assert "warning: the network returns dict of a (2, 3), b (2, 3)" in told
    assert "name the one that classifies with --output KEY" in " ".join(told.split())
    assert run(command(place, "simplify", "Unclear", "--output", "b", *words, "--overwrite")) == 0
    assert "--output KEY" not in capsys.readouterr().err


@pytest.mark.parametrize(("net", "options"), [("Auxiliary", ()), ("Unclear", ("--output", "b"))])
def test_fine_tuning_trains_on_the_scores(place: Path, net: str, options: tuple[str, ...]) -> None:
    words = ("--calibration", "8", "--dof", "0.8", "--finetune", "--epochs", "1", "--quiet", *options)
    assert run(command(place, "simplify", net, *words, "--out", str(place / "run"))) == 0
    before, after = torch.load(place / "m.pt"), torch.load(place / "run" / "m.pt")
    assert not torch.equal(before["f.weight"], after["f.weight"])
