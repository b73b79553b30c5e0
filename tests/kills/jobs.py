"""The commands that are killed: what each is asked for, what it may not touch, what must come out alike.

A command runs in a case, a folder beside `ground`, which holds what commands read: a network, a tenth of the
digits, two more networks and a run that is finished. What it writes goes into `out`.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch

from kernelsimp.models.architectures import build_model

ASKED = "--arch zoo:digits-cnn --data npz:../ground/images.npz --config recipe:digits --cost absolute"
SMALL = "--distill 0.3 --ema 0.9 --save-every 0 --epochs 3 --batch-size 16 --calibration 32"
FEW = "--families mirror-h,constant,zero"
TRAINED = f"--max-drop 1 --freeze --finetune {SMALL} {FEW}"


@dataclass(frozen=True)
class Job:
    """One command. `same` are globs, within `out`, of what must have the bytes of an uninterrupted run.

    `share` is how many kills of a hundred it gets; `before` puts into `out` what is there beforehand.
    """

    words: str
    share: int
    same: tuple[str, ...]
    before: Callable[[Path, Path], None] | None = None


def _with_run(ground: Path, out: Path) -> None:
    shutil.copytree(ground / "run", out / "run")


def _with_baseline(ground: Path, out: Path) -> None:
    out.mkdir()
    shutil.copy(ground / "baseline.json", out / "baseline.json")


JOBS = {
    "scan": Job(
        "scan ../ground/net.pt --depth shallow --json out/s.json --csv out/s.csv --html out/s.html",
        10,
        ("s.json", "s.csv", "s.html"),
    ),
    "scan --dataset": Job(
        "scan ../ground/nets --depth shallow --dataset out/set --kernels --json out/json",
        10,
        ("set", "json/*.json"),
    ),
    "simplify": Job(
        f"simplify ../ground/net.pt {ASKED} --dof 0.3 --calibration 64 --resume --out out/run",
        20,
        ("run/net.pt", "run/plan.safetensors"),
    ),
    "simplify --finetune": Job(
        f"simplify ../ground/net.pt {ASKED} {TRAINED} --resume --out out/run",
        30,
        ("run/net.pt", "run/plan.safetensors"),
    ),
    "export": Job("export ../ground/run --to packed --out out/net.kspack", 10, ("net.kspack",)),
    "check --update-baseline": Job(
        "check ../ground/net.pt --baseline out/baseline.json --update-baseline",
        10,
        ("baseline.json",),
        _with_baseline,
    ),
    "report": Job("report out/run", 10, ("run/*",), _with_run),
}


def make_ground(ground: Path, run: Callable[[str], None]) -> None:
    """Write what commands read; `run` runs a command in a folder beside `ground`."""
    torch.manual_seed(0)
    (ground / "nets").mkdir(parents=True)
    write_images(ground / "images.npz")
    for path in (ground / "net.pt", *(ground / "nets" / f"{name}.pt" for name in "ab")):
        torch.save(build_model("zoo:digits-cnn").state_dict(), path)
    run(f"simplify ../ground/net.pt {ASKED} {TRAINED} --out ../ground/run")
    run("check ../ground/run/net.pt --baseline ../ground/baseline.json --update-baseline")


def write_images(path: Path) -> None:
    """Write a tenth of the digits: every step of a run is there, and takes a tenth of the time."""
    digits = sklearn.datasets.load_digits()
    images, labels = (digits.images * 15.9).astype(np.uint8), digits.target
    parts = {"train": slice(0, 100), "val": slice(200, 240), "test": slice(280, 320)}
    arrays = {f"{name}_images": images[part] for name, part in parts.items()}
    np.savez(path, **arrays, **{f"{name}_labels": labels[part] for name, part in parts.items()})
