"""`kernelsimp.hold` and `release`: a run's holds in a training loop of one's own."""

import copy
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from held import OPTIMIZERS, assert_kept, first_held, kernels_of, made, train
from networks import Mixed

import kernelsimp
from kernelsimp import nn as public
from kernelsimp.errors import HoldError, KernelsimpError
from kernelsimp.records.plan_file import save_plan
from kernelsimp.training.hold import (
    hold,
    release,
    verify,
    witnesses,
)


def run_folder(tmp_path, model, plan, hold_setting):
    save_plan(plan, tmp_path / "plan.safetensors")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    if hold_setting:
        (tmp_path / "settings.toml").write_text(f"[finetune]\n{hold_setting}\n")


@pytest.mark.parametrize(
    ("setting", "mode", "expected"),
    [
        ("", None, "freeze"),
        ('hold = "none"', None, "freeze"),
        ('hold = "auto"', "tie", "tie"),
        ('hold = "tie"', None, "tie"),
        ('hold = "tie"\nfree_scale = true', None, "scale"),
    ],
)
def test_a_run_is_held_in_a_loop_of_ones_own(tmp_path, setting, mode, expected):
    model, plan = made(20)
    run_folder(tmp_path, model, plan, setting)
    public.hold(model, str(tmp_path), mode)
    assert {witness.mode for witness in witnesses(model).values()} == {expected}
    train(model, OPTIMIZERS["adamw"](model.parameters()))
    promised = witnesses(model)
    public.release(model)
    assert_kept(promised, model.state_dict())
    assert not witnesses(model)


def documented(place):
    """The loop as the documentation has it: in the module's docstring, and in the how-to."""
    if place == "docstring":
        return textwrap.dedent(public.__doc__.split("\n\n")[1])
    howto = (Path(__file__).parents[1] / "docs" / "howto.md").read_text()
    return next(text for text in re.findall(r"```python\n(.*?)```", howto, re.DOTALL) if "hold(" in text)


def test_hold_and_release_are_there_without_importing_torch_first():
    code = """
        import sys
        import kernelsimp
        assert "torch" not in sys.modules
        from kernelsimp import nn
        assert kernelsimp.hold is nn.hold and kernelsimp.release is nn.release
        assert not hasattr(kernelsimp, "holt")
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True)


@pytest.mark.parametrize("place", ["docstring", "how-to"])
def test_the_loop_in_the_documentation_runs(place, tmp_path, monkeypatch):
    loop = documented(place)
    lines = [line for line in loop.splitlines() if line and not line.startswith("import")]
    assert 9 <= len(lines) <= 12
    assert "kernelsimp.hold(" in loop
    model, plan = made(21)
    (tmp_path / "run").mkdir()
    run_folder(tmp_path / "run", model, plan, "")
    monkeypatch.chdir(tmp_path)
    loader = [(torch.randn(4, 3, 7, 9), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    names = {"torch": torch, "kernelsimp": kernelsimp, "model": Mixed(), "loader": loader}
    exec(compile(loop, "loop", "exec"), names)
    written, trained = torch.load("mine.pt"), 0
    for layer in plan.layers:
        held = torch.from_numpy(layer.changed)
        module = Mixed()
        module.load_state_dict(written)
        now, then = kernels_of(module, plan, layer), kernels_of(model, plan, layer)
        assert torch.equal(now[held], then[held])
        trained += int((now[~held] != then[~held]).any())
    assert trained > 4


def test_a_model_with_other_weights_is_not_held(tmp_path):
    model, plan = made(22)
    run_folder(tmp_path, model, plan, "")
    with pytest.raises(KernelsimpError) as caught:
        public.hold(Mixed(), tmp_path)
    words = str(caught.value)
    total = plan.simplified
    assert re.fullmatch(
        rf"\d+ of {total} kernels are not in the structure that {re.escape(str(tmp_path))} gave them;"
        " load the checkpoint of that run into the model first",
        words,
    )
    (tmp_path / "settings.toml").write_text('[finetune]\nhold = "none"\n')
    with pytest.raises(KernelsimpError, match=r"gave them; that run held nothing while it trained$"):
        public.hold(Mixed(), tmp_path)
    with pytest.raises(KernelsimpError) as caught:
        public.hold(model, tmp_path, "fix")
    assert str(caught.value) == "unknown hold mode 'fix'; known: freeze, scale, tie"


def test_release_refuses_what_has_moved(tmp_path):
    model, plan = made(23)
    run_folder(tmp_path, model, plan, "")
    public.hold(model, tmp_path)
    _, (out, into) = first_held(plan)
    model.dense.parametrizations.weight[0].frozen[out, into] += 1
    with pytest.raises(HoldError, match=rf"dense: kernel \({out}, {into}\)"):
        public.release(model)


@pytest.mark.parametrize("mode", ["freeze", "tie", "scale"])
@pytest.mark.parametrize("first", ["original", "copy"])
def test_releasing_one_of_two_copies_leaves_the_other_held(mode, first):
    """Torch makes one class for a parametrised module, and its copies share it."""
    model, plan = made(24)
    hold(model, plan, mode)
    other = copy.deepcopy(model)
    one, left = (model, other) if first == "original" else (other, model)
    release(one)
    assert not witnesses(one)
    train(left, OPTIMIZERS["sgd"](left.parameters()))
    verify(left)
    promised = witnesses(left)
    assert promised.keys() == {layer.name for layer in plan.layers}
    release(left)
    assert_kept(promised, left.state_dict())
    assert one.state_dict().keys() == left.state_dict().keys() == Mixed().state_dict().keys()
