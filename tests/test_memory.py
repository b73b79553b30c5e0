"""What is held at once: shelves, stacks of images, batch sizes, and what a replay leaves for later."""

import gc
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import network
from saying import refusal
from torch import Tensor, nn

from kernelsimp import memory, shelf
from kernelsimp.batch_limit import ONE_IS_TOO_MANY
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.memory import GB, Room, free_bytes
from kernelsimp.models.hooks import trace
from kernelsimp.models.layers import bank_from_model
from kernelsimp.models.replay import Replay
from kernelsimp.settings import PlanSettings
from kernelsimp.shelf import ImageBatches, ImageStack, LabelledBatches, Shelf, check_disk, sweep_shelves
from kernelsimp.solver.batch_size import batch_that_fits, bytes_of_a_pass
from kernelsimp.solver.estimate import estimate
from kernelsimp.solver.fisher import survey
from kernelsimp.solver.layerwise import bytes_of_files, reconstruct
from kernelsimp.solver.plan_builder import data_free_plan
from kernelsimp.solver.solve import calibrated_network
from kernelsimp.solver.targets import targets_of


def pictures(count: int, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- shelves


@pytest.mark.parametrize("limit", [0, 300, 1 << 20])
def test_a_shelf_gives_back_what_it_was_given_wherever_it_lies(limit: int, tmp_path: Path) -> None:
    kept = Shelf(limit, tmp_path)
    last = pictures(2).to(memory_format=torch.channels_last)
    values = {
        "nested": {"a": pictures(1), "b": (torch.arange(5), "word", None)},
        "half": pictures(1).half(),
        "channels last": last,
        "none": torch.zeros(0, 3),
        "number": torch.tensor(2.5, dtype=torch.float64),
    }
    for name, value in values.items():
        kept.put(name, value)
    assert torch.equal(kept.get("nested")["a"], pictures(1))
    assert kept.get("nested")["b"][0].tolist() == [0, 1, 2, 3, 4]
    assert kept.get("nested")["b"][1:] == ("word", None)
    for name in ("half", "channels last", "none", "number"):
        found = kept.get(name)
        assert torch.equal(found, values[name])  # type: ignore[arg-type]
        assert found.dtype == values[name].dtype  # type: ignore[attr-defined]
    assert kept.get("channels last").is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_what_comes_from_a_shelf_can_be_worked_on_in_place(limit: int, tmp_path: Path) -> None:
    kept, value = Shelf(limit, tmp_path), torch.ones(4)
    kept.put("x", value)
    value.zero_()
    kept.get("x").mul_(7)
    assert kept.get("x").tolist() == [1, 1, 1, 1]


def test_a_shelf_takes_its_files_with_it_and_what_is_dropped_is_gone(tmp_path: Path) -> None:
    kept = Shelf(0, tmp_path)
    kept.put("x", torch.ones(4))
    kept.put("x", torch.zeros(4))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    kept.drop("x")
    assert "x" not in kept
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    del kept
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_shelves_of_killed_processes_are_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "shelf-dead").mkdir()
    (tmp_path / "shelf-dead" / "1").write_bytes(b"half a tensor")
    (tmp_path / "state.pt").write_bytes(b"kept")
    sweep_shelves(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    sweep_shelves(tmp_path / "missing")


def test_a_disk_without_room_is_one_line(tmp_path: Path) -> None:
    check_disk(tmp_path / "not" / "yet", 0)
    words = refusal(lambda: check_disk(tmp_path, 10**18))
    assert "1000000000.0 GB of files are needed beside the memory, and the disk has" in words
    assert "--calibration" in words


# ---------------------------------------------------------------- stacks of images


@pytest.mark.parametrize("limit", [0, 2_000, 1 << 30])
@pytest.mark.parametrize("flip", [False, True])
def test_batches_of_a_stack_are_the_images_in_order(limit: int, flip: bool) -> None:
    images = pictures(11)
    stack = ImageStack.of(images.split(4), limit)
    batches = ImageBatches(stack, 2, 11, 4, flip)
    whole = images[2:]
    expected = torch.stack([whole, whole.flip(-1)], 1).flatten(0, 1) if flip else whole
    assert torch.equal(torch.cat(tuple(batches)), expected)
    assert batches.images == len(expected)
    assert len(batches) == len(list(batches))
    assert torch.equal(batches[-1], list(batches)[-1])
    assert torch.equal(batches.first(3), expected[:3])
    assert [len(item) for item in batches[:1]] == [4]
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_labels_go_with_their_images() -> None:
    images = pictures(7)
    batches = LabelledBatches(ImageBatches(ImageStack.of([images]), 0, 7, 3), torch.arange(7))
    assert [labels.tolist() for _, labels in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert torch.equal(batches[2][0], images[6:])
    assert [labels.tolist() for _, labels in batches[1:]] == [[3, 4, 5], [6]]


def test_images_of_different_sizes_are_one_line() -> None:
    words = refusal(lambda: ImageStack.of([pictures(2), pictures(2, 9)]))
    assert words == "images of several shapes (3 x 8 x 8 and 3 x 9 x 9); pass --input-size N"


# ---------------------------------------------------------------- how much at once


def test_a_control_group_that_limits_more_than_the_machine_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    limit.write_text("3000000\n")
    used.write_text("1000000\n")
    monkeypatch.setattr(memory, "CGROUPS", ((str(limit), str(used)),))
    assert free_bytes(torch.device("cpu")) == 2_000_000
    limit.write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 2_000_000


def test_the_batch_is_what_the_room_is_over_what_one_image_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network(), pictures(2)
    traced = trace(model, images)
    each = bytes_of_a_pass(model, traced, images[:1])
    assert each > 3 * 8 * 8 * 4
    for wanted in (1, 5, 64):
        monkeypatch.setattr(Room, "working", lambda *_, wanted=wanted: int((wanted + 0.5) * each))
        assert batch_that_fits(model, traced, images[:1], Room(batch=16)) == min(16, wanted)
    monkeypatch.setattr(Room, "working", lambda *_: each - 1)
    words = refusal(lambda: batch_that_fits(model, traced, images[:1], Room(bytes=0.5 * GB)))
    assert words.startswith("--memory 0.5: a backward pass of one image takes ")
    assert "pass --memory " in words


def test_a_deeper_network_takes_more_memory_and_a_batch_as_much_more() -> None:
    def stack_of(depth: int) -> nn.Module:
        parts = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(depth)]
        return nn.Sequential(*parts).eval()

    sizes = []
    for depth in (2, 20):
        model = stack_of(depth)
        sizes.append(bytes_of_a_pass(model, trace(model, pictures(2)), pictures(1)))
    output = 3 * 8 * 8 * 4
    assert sizes[1] - sizes[0] >= 18 * output


# ---------------------------------------------------------------- the survey


def test_the_survey_does_not_hang_on_the_size_of_a_batch() -> None:
    model, images = network(), pictures(20, 16)
    whole, parts = (survey(model, trace(model, images), images.split(size), seed=3) for size in (20, 3))
    assert whole.keys() == parts.keys()
    for name, item in whole.items():
        assert torch.allclose(item.blocks, parts[name].blocks, rtol=1e-5, atol=1e-7)
        assert torch.allclose(item.fisher, parts[name].fisher, rtol=1e-4, atol=1e-9)


def test_a_survey_that_runs_out_of_memory_halves_its_batch_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images = network(), pictures(20, 16)
    expected = survey(model, trace(model, images), images.split(20), seed=3)
    forward, sizes = model.forward, list[int]()

    def cramped(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        output: Tensor = forward(batch)
        if len(batch) > 6:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
            )
        return output

    traced = trace(model, images)
    monkeypatch.setattr(model, "forward", cramped)
    found = survey(model, traced, images.split(20), seed=3)
    assert sizes[:3] == [20, 10, 5]
    for name, item in expected.items():
        assert torch.allclose(item.blocks, found[name].blocks, rtol=1e-5, atol=1e-7)
        assert torch.allclose(item.fisher, found[name].fisher, rtol=1e-4, atol=1e-9)


def test_a_survey_without_memory_for_one_image_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network(), pictures(4, 16)
    traced = trace(model, images)

    def cramped(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "forward", cramped)
    words = refusal(lambda: survey(model, traced, [images], seed=3))
    assert words == ONE_IS_TOO_MANY


# ---------------------------------------------------------------- the walk


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    parts = (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)) for _ in range(5))
    return nn.Sequential(*parts).eval()


def counting(runs: list[str], name: str) -> Callable[..., None]:
    return lambda *_: runs.append(name)


def test_batches_that_early_layers_do_not_read_are_brought_up_in_one_go(tmp_path: Path) -> None:
    model, images = chain(), pictures(8)
    traced = trace(model, images)
    replay = Replay(model, traced, images.split(2), Shelf(0, tmp_path))
    runs: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(counting(runs, name))
    wanted = [1, 1, 3, 2, 4]
    for use, batches in zip(traced.uses, wanted, strict=True):
        got = [call[1] for calls in replay.inputs_of(use, batches) for call in calls]
        expected = [images.split(2)[place] for place in range(batches)]
        with torch.no_grad():
            for part in model[: int(use.name[0])]:
                expected = [part(item) for item in expected]
            del runs[len(runs) - int(use.name[0]) * batches :]
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
            model[int(use.name[0])][0].weight.mul_(0.9)  # what is changed once visited
    each = {f"{place}.0": 4 for place in range(4)}
    assert {name: runs.count(name) for name in each} == each  # one pass a batch in all
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 2 * 768]


class Shortcut(nn.Module):
    """A block whose input is added behind it, by no module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(images)))
        return torch.as_tensor(self.last(x + self.second(x)))


def test_an_output_that_only_kept_modules_use_is_not_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Shortcut().eval(), pictures(4)
    traced = trace(model, images)
    sizes = {use.name: traced.finished_before(use.name) for use in traced.uses}
    whole = 4 * 8 * 8 * 4
    assert sizes["second"] == {"first": 0, "norm": whole}
    assert sizes["last"] == {"first": 0, "norm": whole, "second": whole}
    replay = Replay(model, traced, [images], Shelf(0, tmp_path))
    for use in traced.uses:
        list(replay.inputs_of(use))
    held = sorted(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert held == [4 * whole, 4 * whole]


def test_a_reconstruction_does_not_hang_on_batches_or_on_where_it_keeps_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = network(), pictures(24, 16)
    bank: KernelBank = bank_from_model(model)
    targets = targets_of(data_free_plan(bank, PlanSettings(dof=0.5)))
    wide = calibrated_network(model, bank, [images], 0, Room(batch=24))
    monkeypatch.setattr(Room, "kept", 0)
    narrow = calibrated_network(model, bank, [images], 0, Room(batch=5, folder=tmp_path))
    one, other = (reconstruct(stood, targets) for stood in (wide, narrow))
    assert len(narrow.images) > len(wide.images)
    for name, tensor in one.tensors.items():
        assert torch.allclose(tensor, other.tensors[name], rtol=1e-3, atol=1e-5), name
    del narrow, other
    gc.collect()
    assert not list(tmp_path.rglob("*"))


def test_an_estimate_is_made_of_positive_times_and_grows_with_the_solves() -> None:
    model = network()
    stood = calibrated_network(model, bank_from_model(model), [pictures(16, 16)], 0)
    found = estimate(stood)
    assert found.survey > 0 < found.solve
    assert found.total(3) > found.total(1) > found.survey
    assert bytes_of_files(stood) == 0


def test_a_process_without_proc_holds_nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert memory.resident_bytes() == 0
    assert free_bytes(torch.device("cpu")) > 0


def test_no_memory_is_told_from_other_failures() -> None:
    assert memory.is_out_of_memory(torch.OutOfMemoryError("x"))
    assert memory.is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not memory.is_out_of_memory(RuntimeError("shapes differ"))
    assert not memory.is_out_of_memory(KernelsimpError("out of memory"))
    assert shelf.PREFIX == "shelf-"


FAULTS = """
import resource, sys, torch
from kernelsimp.memory import reuse_freed_memory

if sys.argv[1] == "reused":
    reuse_freed_memory()
for turn in range(40):
    pieces = [torch.ones(2_000_000) for _ in range(3)]
    if turn == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del pieces
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's heap is set")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    def faults(how: str) -> int:
        never = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "131072"}
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, check=True, env=never).stdout)

    assert faults("reused") < 1000 < faults("not")
