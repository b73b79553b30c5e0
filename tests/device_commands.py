"""Run commands on the pretend device, each to its end, and print as JSON with which code each one ended.

A process of its own, as `device_work` is.
"""

import json
import tempfile
from pathlib import Path

import torch
from builders import TinyNet, npz
from device_work import PretendEngine
from pretend_device import DEVICE, calls

from kernelsimp.cli.main import run
from kernelsimp.training import engine

TUNED = ("--finetune", "--epochs", "1", "--dof", "0.6", "--cost", "absolute")

COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "--epochs", "1", "--constrain", "stem=mirror-h", "--penalty", "rate:0.01", "--out"),
    "simplify": ("simplify", "MODEL", *TUNED, "--hold", "tie", "--controls", "--out"),
    "evaluate": ("evaluate", "MODEL", "--robustness", "--images", "9", "--corruptions", "fog", "--json"),
    "compare": ("compare", "MODEL", "MODEL", "--json"),
    "prune": ("prune", "MODEL", *TUNED[:3], "--dof", "0.5", "--out"),
}


def main() -> None:
    engine.Engine = PretendEngine  # type: ignore[misc]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        torch.save(TinyNet().state_dict(), place / "tiny.pt")
        npz(place / "i.npz", (8, 8, 3), count=48)
        common = [
            "--arch",
            "builders:TinyNet",
            "--data",
            f"npz:{place / 'i.npz'}",
            "--device",
            str(DEVICE),
            "-q",
        ]
        for name, words in COMMANDS.items():
            calls.clear()
            said = [str(place / "tiny.pt") if word == "MODEL" else word for word in words]
            code = run([*said, str(place / name), *common])
            found[name] = {"code": code, "ran there": calls["aten.convolution.default"] > 0}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
