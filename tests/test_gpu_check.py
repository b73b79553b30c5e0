"""`scripts/gpu_check` as far as it goes without a GPU."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from tuning import bar_net

from kernelsimp.data.images import Geometry
from kernelsimp.data.splits import Data, Split
from kernelsimp.data.stores import ArrayStore
from kernelsimp.settings import DataSettings, RunSettings, Settings
from scripts import script

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_check"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    return script("gpu_check")


def test_one_card_is_said_to_be_one_and_two_plan_together(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu_parts import answers

    asked: list[tuple[str, tuple[str, ...], str | None]] = []

    def simplify(_: object, name: str, *words: str, device: str | None = None) -> Path:
        asked.append((name, words[len(answers.PLANNED) :], device))
        return tmp_path / name

    monkeypatch.setattr(check.Place, "simplify", simplify)
    monkeypatch.setattr(answers, "alike", lambda place, runs: " beside ".join(run.name for run in runs))
    for count, said in ((1, check.Answer(ok=True, figure="one card: not run")), (2, "two beside one")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert answers.together(check.Place(tmp_path, "cuda:0")) == said
    assert asked == [("two", ("--devices", "2"), "cuda"), ("one", (), None)]


@pytest.mark.usefixtures("check")
def test_a_step_is_what_lies_within_its_mark() -> None:
    from gpu_parts.step_profile import MARK, Event, figures_of

    def host(name: str, start: float) -> Event:
        return Event(name, on_card=False, start=start, end=start + 5)

    def card(name: str, start: float, end: float) -> Event:
        return Event(name, on_card=True, start=start, end=end)

    events = [
        card("gemm", 0, 150),  # 50 of it within
        Event(MARK, on_card=False, start=100, end=1100),
        card("gemm", 200, 400),
        card("conv", 300, 500),  # at once with the one before: 300 together
        card("Memcpy HtoD (Pinned -> Device)", 520, 900),  # a copy is no work
        card("Memcpy HtoD (Pageable -> Device)", 530, 540),
        card("Memset (Device)", 541, 550),
        card("Memcpy DtoH (Device -> Pageable)", 560, 570),
        host("cudaStreamSynchronize", 571),
        host("aten::_local_scalar_dense", 555),
        host("cudaLaunchKernel", 600),
        host("cudaStreamSynchronize", 50),
        host("cudaDeviceSynchronize", 1100),  # the profiler's own, after the steps
        card("gemm", 1000, 1300),
    ]
    found = figures_of(events[::-1], 2)
    assert found.milliseconds == pytest.approx(0.5)
    assert (found.waits, found.reads, found.to_host, found.to_card, found.unpinned) == (0.5, 0.5, 0.5, 1, 1)
    assert found.busy == pytest.approx(0.45)
    assert "card busy 45%, 0.5 waits (goal 0), 0.5 numbers read" in str(found)


@pytest.mark.usefixtures("check")
def test_the_real_training_loop_is_listened_to() -> None:
    """On a CPU a step reads its loss once, for the watcher to show; one more read is seen as one more."""
    from gpu_parts.step_profile import profile_training

    store = ArrayStore(torch.randint(0, 256, (60, 1, 6, 6), dtype=torch.uint8), torch.arange(60) % 2)
    split = Split(store, range(60), Geometry())
    data = Data("noise", split, split.subset(range(8)), split.subset(range(8)), 2)
    settings = Settings(data=DataSettings(batch_size=4), run=RunSettings(device="cpu"))

    def read(module: nn.Module, _: object, made: Tensor) -> None:
        if module.training:
            made.sum().item()

    def reads(*, planted: bool) -> float:
        model = bar_net()
        if planted:
            model[0].register_forward_hook(read)
        return profile_training(model, bar_net(seed=1).eval(), data, settings, before=3, steps=8).reads

    assert [reads(planted=planted) for planted in (False, True)] == [1, 2]


@pytest.mark.slow
def test_two_processes_on_a_cpu_stand_in_for_two_cards(tmp_path: Path) -> None:
    out = tmp_path / "gpu_check.json"
    words = ["--device", "cpu", "--no-speed", "--only", "plan,two cards", "--out", str(out)]
    ran = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    checks = {item["name"]: item for item in json.loads(out.read_text())["checks"]}
    assert list(checks) == ["train", "plan", "two cards"]
    assert checks["plan"]["figure"] == "100.00% of choices equal, +0.00 pp, KL 0.0e+00"
    assert checks["two cards"]["figure"].startswith("100.00% of choices equal, +0.00 pp, KL ")
