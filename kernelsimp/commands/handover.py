"""One plan for all processes of a run: the first one makes it, the others wait for it and read it.

It goes through two files in the run's `resume` folder, on a disk that all of them see. Their name tells this
launch, network, data and settings from any other; the weights come last, whole, and say that all is there.
"""

import io
import time
from collections.abc import Callable
from pathlib import Path

import torch

from kernelsimp.commands.task import Task
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import key_of, read_sealed, write_sealed, write_text
from kernelsimp.models.network import Network
from kernelsimp.records.plan import Plan
from kernelsimp.records.plan_file import read_plan, save_plan
from kernelsimp.settings import Settings
from kernelsimp.solver.chosen import Chosen
from kernelsimp.training.ranks import launch_name, processes

PAUSE = 0.2
"""Seconds between two looks for the plan."""


def plans_for_others(settings: Settings) -> bool:
    """Say whether one process plans for several; rounds train together, so there all go every step."""
    local, nodes = processes(settings.finetune)
    return local * nodes > 1 and settings.finetune.finetune and settings.plan.rounds == 1


class Handover:
    """The way of one plan, and of the network it made, through files in `folder`."""

    def __init__(self, task: Task, folder: Path) -> None:
        fingerprint = task.data.fingerprint if task.data else ""
        key = key_of(task.network.checkpoint.sha256, fingerprint, task.settings, launch_name())
        self.task, self.folder = task, folder
        self.plan, self.weights, self.failed = (
            folder / f"shared-{key}.{kind}" for kind in ("plan", "weights", "failed")
        )

    def choose_and_share(self, choose: Callable[[], Chosen]) -> Chosen:
        """Choose, in the first process, and hand it over where others wait; tell them where it fails."""
        if not plans_for_others(self.task.settings):
            return choose()
        self.clear()
        try:
            chosen = choose()
            tensors = chosen.network.checkpoint.tensors
            save_plan(chosen.plan, self.plan)
            write_sealed(self.weights, lambda partial: torch.save(dict(tensors), partial))
        except BaseException:
            write_text(self.failed, "")
            raise
        return chosen

    def wait_for_plan(self) -> tuple[Network, Plan]:
        """Wait for the first process; return the network it made, with the plan.

        Raises `KernelsimpError` where the first process could not plan; that one says why.
        """
        while not self.weights.exists():
            if self.failed.exists():
                raise KernelsimpError("the first process could not plan; it says why")
            time.sleep(PAUSE)
        content = io.BytesIO(read_sealed(self.weights))
        tensors = torch.load(content, map_location="cpu", weights_only=True)
        return self.task.network.with_weights(tensors), read_plan(self.plan)

    def clear(self) -> None:
        """Remove what this and earlier runs handed over: all processes that train together have read it."""
        for path in self.folder.glob("shared-*"):
            path.unlink(missing_ok=True)
