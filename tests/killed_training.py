"""Kills a fine-tuning ten times at random moments: `killed_training.py FOLDER` leaves the digests of its
end and of the end of one that nobody killed."""

import hashlib
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tuning import VARIANTS, bar_net, bars, job, prepared, values_of

import kernelsimp.training.engine  # noqa: F401  before the forks, so that each is quick
from kernelsimp.training.finetune import finetune

SETTINGS = replace(VARIANTS["sgd"], epochs=30, resume=True)


class Slow(list):
    def __iter__(self):
        for batch in list.__iter__(self):
            time.sleep(0.01)  # ten kills come before the end, however fast the machine
            yield batch


def digest(model):
    parts = [value.contiguous().view(torch.uint8).numpy() for value in values_of(model) if value.ndim]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def train(folder):
    model, plan = prepared("sgd")
    slow = job(teacher=bar_net(9), plan=plan, folder=folder, train=lambda epoch, shard: Slow(bars(epoch)))
    finetune(model, slow, SETTINGS)
    (folder / "end").write_text(digest(model))


def start(folder):
    pid = os.fork()
    if pid == 0:
        try:
            train(folder)
        finally:
            os._exit(0)
    return pid


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    os.waitpid(start(folder / "whole"), 0)
    killed, dice = 0, random.Random(os.getpid())
    while killed < 10:
        pid = start(folder / "killed")
        time.sleep(dice.uniform(0.02, 0.1))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
    os.waitpid(start(folder / "killed"), 0)
