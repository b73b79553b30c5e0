"""Several processes that survey, choose and re-solve together: what one process comes to."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import NET, npz
from networks import network, smooth_images
from processes import HERE, run_warm
from saying import fails, refusal
from torch import Tensor
from two_surveys import came_to

from kernelsimp.cli.main import run
from kernelsimp.commands.together import works_together
from kernelsimp.memory import Room
from kernelsimp.models.layers import bank_from_model
from kernelsimp.settings import DataSettings, FinetuneSettings, PlanSettings, Settings
from kernelsimp.shelf import ImageBatches, ImageStack, batch_size, first_images
from kernelsimp.solver.process_group import ALONE, ProcessGroup
from kernelsimp.solver.solve import calibrated_network


def near(mine: Tensor, other: Tensor, share: float) -> bool:
    return float((mine - other).norm()) <= share * float(other.norm())


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process comes to, and what each of two does."""
    folder = tmp_path_factory.mktemp("together")
    done = run_warm(HERE / "two_surveys.py", str(folder))
    assert done.returncode == 0, done.stderr
    both = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    return came_to(ALONE, folder / "alone"), both


def test_two_processes_see_of_every_layer_what_one_sees(ends) -> None:
    alone, both = ends
    for other in both:
        assert other["seen"].keys() == alone["seen"].keys()
        for name, parts in alone["seen"].items():
            for mine, theirs in zip(parts, other["seen"][name], strict=True):
                assert mine is theirs is None or near(theirs, mine, 1e-5), name
    assert all(other["images"] < alone["images"] for other in both)
    assert sum(other["images"] for other in both) == alone["images"]


def test_two_processes_choose_the_plans_of_one_and_fit_its_weights(ends) -> None:
    alone, both = ends
    for other in both:
        for mine, theirs in zip(alone["plans"], other["plans"], strict=True):
            assert all((a == b).all() for a, b in zip(mine, theirs, strict=True))
        for mine, theirs in zip(alone["weights"], other["weights"], strict=True):
            assert mine.keys() == theirs.keys()
            assert all(near(theirs[name], mine[name], 1e-4) for name in mine)


def test_two_processes_measure_the_distances_and_losses_of_one(ends) -> None:
    alone, both = ends
    for other in both:
        for mine, theirs in zip(alone["far"], other["far"], strict=True):
            assert theirs == pytest.approx(mine, rel=1e-3)
        assert [trial["share"] for trial in other["trials"]] == [trial["share"] for trial in alone["trials"]]
        for name, losses in alone["losses"].items():
            assert other["losses"][name] == pytest.approx(losses, rel=1e-3), name


def test_two_processes_have_the_same_to_the_last_bit(ends) -> None:
    first, second = ends[1]
    for mine, theirs in zip(first["weights"], second["weights"], strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert all(first[name] == second[name] for name in ("far", "trials", "losses"))


@pytest.mark.parametrize(
    ("processes", "size", "flip"), [(2, 7, False), (3, 8, True), (4, 2, False), (5, 4, True)]
)
def test_the_parts_of_all_processes_are_the_images_once(processes: int, size: int, flip: bool) -> None:
    stack = ImageStack.of([torch.arange(17.0).reshape(17, 1, 1, 1)])
    whole = torch.cat(tuple(ImageBatches(stack, 3, 17, 5, flip))).flatten()
    found, together = torch.full((len(whole),), -1.0), 0
    for rank in range(processes):
        part = ImageBatches(stack, 3, 17, size, flip, (rank, processes))
        assert part.images == len(whole)
        together += len(part[0])
        for (first, count), batch in zip(part.spans(), part, strict=True):
            assert len(batch) == count > 0
            assert (found[first : first + count] == -1).all()
            found[first : first + count] = batch.flatten()
    assert torch.equal(found, whole)
    assert together == batch_size(part) >= size // 2


def test_the_first_images_are_the_same_in_any_number_of_processes() -> None:
    stack = ImageStack.of([torch.arange(20.0).reshape(20, 1, 1, 1)])
    parts = [first_images(ImageBatches(stack, 4, 20, 3, part=(rank, 2)), 7) for rank in (0, 1)]
    found = torch.cat([batch for part in parts for batch in part]).flatten()
    assert sorted(found.tolist()) == list(range(4, 11))


def test_too_few_images_to_judge_by_in_each_process_are_refused() -> None:
    model = network()
    group = ProcessGroup(0, 3)
    words = refusal(
        lambda: calibrated_network(
            model, bank_from_model(model), smooth_images(16).split(8), 0, Room(), group=group
        )
    )
    assert words == (
        "16 calibration images leave 2 to judge by in 3 processes; expected one each, see --calibration"
    )


def test_a_process_that_is_alone_exchanges_nothing() -> None:
    tensor = torch.ones(2)
    assert ALONE.sums({"a": tensor})["a"] is tensor
    assert ALONE.gather(3) == [3]
    with pytest.raises(ZeroDivisionError):
        ALONE.from_first(lambda: 1 / 0)


def test_a_process_says_in_one_line_that_the_first_failed_or_another_ended(ends) -> None:
    first, second = (other["words"] for other in ends[1])
    assert second == "the first process could not go on; it says why"
    assert first.startswith("another process of this run has ended; see what it said (")
    assert "\n" not in first


def test_several_processes_have_something_to_do_with_images_or_training() -> None:
    two = FinetuneSettings(devices=2)
    seen = DataSettings(data="digits")
    assert works_together(Settings(data=seen, finetune=two))
    assert works_together(Settings(finetune=replace(two, finetune=True)))
    assert not works_together(Settings(finetune=two))
    assert not works_together(Settings(data=seen, plan=PlanSettings(tolerance=0.1), finetune=two))
    assert not works_together(Settings(data=seen))


def test_controls_are_refused_in_several_processes(model, tmp_path, capsys):
    images = npz(tmp_path / "images.npz", (8, 8, 3))
    words = ["--finetune", "--controls", "--devices", "2", "--arch", NET, "--data", images, "--quiet"]
    told = "--controls are fine-tuned in one process; leave out --devices, --num-nodes and torchrun"
    fails(["simplify", str(model), "--dof", "0.5", *words, "--out", str(tmp_path / "run")], capsys, told)


@pytest.mark.parametrize("rank", ["RANK", "SLURM_PROCID"])
def test_training_from_scratch_in_a_later_process_writes_and_says_nothing(
    rank, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv(rank, "1")
    images = npz(tmp_path / "images.npz", (8, 8, 3))
    words = ["--arch", NET, "--data", images, "--epochs", "1", "--batch-size", "20", "--curve", "0"]
    assert run(["train", *words, "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert not (tmp_path / "run" / "model.pt").exists()
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_dry_run_is_planned_and_told_by_the_first_process_alone(model, tmp_path, capsys, monkeypatch):
    images = npz(tmp_path / "images.npz", (8, 8, 3))
    words = ["simplify", str(model), "--arch", NET, "--data", images, "--dof", "0.5", "--dry-run"]
    monkeypatch.setenv("RANK", "1")
    assert run(words) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
