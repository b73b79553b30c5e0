"""One plan for several processes: handed over whole, waited for, and never an earlier launch's."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import NET, npz
from saying import fails

from kernelsimp.cli.main import run
from kernelsimp.commands import handover as sharing
from kernelsimp.commands.handover import Handover, plans_for_others
from kernelsimp.commands.inputs import open_data
from kernelsimp.commands.planner import plan_and_solve
from kernelsimp.commands.task import Task
from kernelsimp.errors import KernelsimpError
from kernelsimp.models.network import open_network
from kernelsimp.settings import Settings
from kernelsimp.settings_file import settle
from kernelsimp.training.ranks import launch_name
from kernelsimp.watch import SILENT

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6", "MASTER_PORT": "29500"}


@pytest.fixture
def task(model: Path, tmp_path: Path) -> Task:
    """A tied fine-tuning of a tiny network in two processes."""
    given = {
        "model": {"arch": NET},
        "data": {"data": npz(tmp_path / "images.npz", (8, 8, 3))},
        "plan": {"dof": 0.5, "cost": "absolute"},
        "finetune": {"finetune": True, "devices": 2},
        "run": {"device": "cpu"},
    }
    settings = settle(given)
    return Task(open_network(model, settings), open_data(settings), settings)


def test_what_is_taken_is_what_was_made(task, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "PAUSE", 0.01)
    taken = []
    waiting = threading.Thread(
        target=lambda: taken.append(Handover(task, tmp_path / "resume").wait_for_plan())
    )
    waiting.start()
    first = Handover(task, tmp_path / "resume")
    made = first.choose_and_share(lambda: plan_and_solve(task, SILENT))
    waiting.join(timeout=10)
    network, plan = taken[0]
    assert made.network.checkpoint.tensors.keys() == network.checkpoint.tensors.keys()
    for name, value in made.network.checkpoint.tensors.items():
        assert torch.equal(value, network.checkpoint.tensors[name]), name
    assert plan.structures == made.plan.structures
    for mine, theirs in zip(plan.layers, made.plan.layers, strict=True):
        assert (mine.choice == theirs.choice).all()
    first.clear()
    assert not list((tmp_path / "resume").glob("shared-*"))


def test_where_planning_fails_the_others_stop(task, tmp_path):
    def broken():
        raise KernelsimpError("no plan")

    with pytest.raises(KernelsimpError, match=r"^no plan$"):
        Handover(task, tmp_path).choose_and_share(broken)
    with pytest.raises(KernelsimpError, match=r"^the first process could not plan; it says why$"):
        Handover(task, tmp_path).wait_for_plan()


def test_files_of_other_settings_and_launches_are_not_taken(task, tmp_path, monkeypatch):
    usual = Handover(task, tmp_path)
    other = replace(task, settings=replace(task.settings, plan=replace(task.settings.plan, dof=0.4)))
    assert Handover(task, tmp_path).weights == usual.weights
    assert Handover(other, tmp_path).weights != usual.weights
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert Handover(task, tmp_path).weights != usual.weights


def test_one_process_hands_nothing_over(task, tmp_path):
    alone = replace(task.settings, finetune=replace(task.settings.finetune, devices=1))
    made = Handover(replace(task, settings=alone), tmp_path).choose_and_share(
        lambda: plan_and_solve(task, SILENT)
    )
    assert made.plan.simplified
    assert not list(tmp_path.glob("shared-*"))


def test_rounds_are_gone_by_all_processes_together(task):
    assert plans_for_others(task.settings)
    assert not plans_for_others(replace(task.settings, plan=replace(task.settings.plan, rounds=3)))
    assert not plans_for_others(Settings())


def test_a_launch_has_one_name_and_the_next_one_another():
    assert launch_name({}) == ""
    assert launch_name({"MASTER_PORT": "1", "LOCAL_RANK": "1"}) == ""  # started by the command itself
    assert launch_name({**TORCHRUN, "RANK": "0"}) == launch_name({**TORCHRUN, "RANK": "1"})
    assert launch_name(TORCHRUN) != launch_name({**TORCHRUN, "MASTER_PORT": "29501"})
    assert launch_name({**TORCHRUN, "GROUP_WORLD_SIZE": "1"}) != launch_name(TORCHRUN)
    assert launch_name({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3"}) == "7 0"


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
