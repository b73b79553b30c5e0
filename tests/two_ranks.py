"""Fine-tuning by two processes: `two_ranks.py FOLDER` leaves what each of them ended with."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from held import plan_for, simplified
from tuning import PLAIN, bar_net, bars, job

from kernelsimp.training.finetune import finetune
from kernelsimp.training.hold import hold, release


def halves(epoch, shard):
    """Each process takes every world-th image of each batch, as the data room's shards do."""
    rank, world = shard
    return [(x[rank::world], y[rank::world]) for x, y in bars(epoch, size=16)]


def trained_by_two(norm, folder, devices=2):
    """Train a held network on `devices` processes; they see the same images together."""
    model, teacher = bar_net(), bar_net(1)
    plan = plan_for(model)
    simplified(model, plan)
    hold(model, plan, "freeze")
    settings = replace(PLAIN, batch_norm=norm, devices=devices, distill=0.5, clip=0.5, lr=0.02)
    usual = job(train=halves, teacher=teacher, folder=folder / f"{norm}-state")
    trained = finetune(model, usual, settings)
    release(model)
    return model, trained


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    for norm in ("eval", "train"):
        model, trained = trained_by_two(norm, Path(sys.argv[1]))
        whole = {"state": model.state_dict(), "epochs": [vars(epoch) for epoch in trained.history]}
        torch.save(whole, Path(sys.argv[1]) / f"{norm}{rank}.pt")
