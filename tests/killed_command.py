"""Kills `kernelsimp simplify` again and again: `killed_command.py FOLDER fork|new [WORDS ...]`.

It is killed when it has said each of the words, or ten times at random, and then called until it ends; the
file must have the bits of a run that nobody killed. A command is a process of its own: forked from this one,
which has imported torch already, or a new one from the start.
"""

import hashlib
import os
import random
import signal
import sys
import time
from io import TextIOWrapper
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
import torchvision  # noqa: F401  before the forks, so that each is quick

import kernelsimp.cli.present
import kernelsimp.commands.simplify
import kernelsimp.training.engine  # noqa: F401
from kernelsimp.cli.main import main
from kernelsimp.models.architectures import build_model

ASKED = "--arch zoo:digits-cnn --config recipe:digits --max-drop 1 --cost absolute --freeze --finetune"
SMALL = "--distill 0.3 --ema 0.9 --save-every 0 --epochs 3 --batch-size 16 --calibration 32"
FEW = "--families mirror-h,constant,zero"


def write_images(path: Path) -> None:
    """Write a tenth of the digits: every step of a run is there, and takes a tenth of the time."""
    digits = sklearn.datasets.load_digits()
    images, labels = (digits.images * 15.9).astype(np.uint8), digits.target
    parts = {"train": slice(0, 100), "val": slice(200, 240), "test": slice(280, 320)}
    arrays = {f"{name}_images": images[part] for name, part in parts.items()}
    np.savez(path, **arrays, **{f"{name}_labels": labels[part] for name, part in parts.items()})


def start(run: Path, how: str) -> tuple[int, TextIOWrapper]:
    """Start a command that writes to the folder; return its process and what it says."""
    words = [*ASKED.split(), *SMALL.split(), *FEW.split(), "--data", f"npz:{run.parent / 'images.npz'}"]
    command = ["simplify", str(run.parent / "net.pt"), *words, "--resume", "--out", str(run)]
    into, out = os.pipe()
    pid = os.fork()
    if pid:
        os.close(out)
        return pid, os.fdopen(into)
    os.dup2(out, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if how == "new":
        os.execv(sys.executable, [sys.executable, "-W", "ignore", "-m", "kernelsimp", *command])
    code = 4
    try:
        main(command)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 4
    finally:
        os._exit(code)


def finish(run: Path, how: str) -> str:
    """Let a command end, and return the digest of what it wrote."""
    pid, said = start(run, how)
    words = said.read()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, words
    return hashlib.sha256((run / "net.pt").read_bytes()).hexdigest()


def kill(run: Path, how: str, moments: list[str]) -> None:
    dice, pause = random.Random(os.getpid()), 0.03 if how == "fork" else 0.3
    kills = 0
    while kills < (len(moments) or 10):
        pid, said = start(run, how)
        if moments:
            assert any(moments[kills] in line for line in said), moments[kills]
        else:
            for _ in range(dice.randint(1, 12)):
                said.readline()
        time.sleep(dice.uniform(0, pause))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        kills += os.WIFSIGNALED(status)
        assert not moments or os.WIFSIGNALED(status), moments[kills]


if __name__ == "__main__":
    folder, how, moments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    write_images(folder / "images.npz")
    torch.save(build_model("zoo:digits-cnn").state_dict(), folder / "net.pt")
    kill(folder / "killed", how, moments)
    assert finish(folder / "killed", how) == finish(folder / "whole", how)
    left = [path.name for path in (folder / "killed").rglob("*.partial")]
    assert not left, left
