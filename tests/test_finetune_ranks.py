"""Fine-tuning by several processes."""

import pytest
import torch
from processes import HERE, run_warm
from tuning import equal
from two_ranks import trained_by_two

from kernelsimp.settings import FinetuneSettings
from kernelsimp.training.ranks import first_process, processes


def test_two_processes_train_the_network_that_one_trains_on_double_batches(tmp_path):
    done = run_warm(HERE / "two_ranks.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    runs = {name: torch.load(tmp_path / f"{name}.pt") for name in ("eval0", "eval1", "train0", "train1")}
    for norm in ("eval", "train"):
        first, second = runs[f"{norm}0"], runs[f"{norm}1"]
        assert equal(first["state"].values(), second["state"].values()), norm
        assert [e["val_loss"] for e in first["epochs"]] == [e["val_loss"] for e in second["epochs"]]
        assert (tmp_path / f"{norm}-state" / "finetune.pt").exists()
        model, trained = trained_by_two(norm, tmp_path / "alone", devices=1)
        for key in ("val_loss", "train_loss"):
            alone = [getattr(epoch, key) for epoch in trained.history]
            together = [epoch[key] for epoch in first["epochs"]]
            assert together == pytest.approx(alone, rel=1e-5 if norm == "eval" else 0.2), (norm, key)
        if norm == "eval":
            for name, value in model.state_dict().items():
                torch.testing.assert_close(first["state"][name], value, rtol=1e-4, atol=1e-6)
        else:
            assert first["epochs"][-1]["val_top1"] == pytest.approx(trained.history[-1].val_top1, abs=10)


def test_what_torchrun_started_is_what_runs(monkeypatch):
    assert processes(FinetuneSettings(devices=3, num_nodes=2)) == (3, 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert processes(FinetuneSettings(devices=1)) == (4, 2)


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "4", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_only_the_first_process_of_any_launcher_writes(environment, first):
    assert first_process(environment) == first
