"""The rounds of a schedule that was stopped, in the run's resume folder: plans, networks and a list of both.

One folder a schedule: its name tells network, images and settings apart, so no other is taken for it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file

from kernelsimp.commands.task import Task
from kernelsimp.errors import DamagedError, KernelsimpError
from kernelsimp.files import key_of, read_sealed, write_sealed, write_sealed_text
from kernelsimp.models.network import Network
from kernelsimp.records.plan_file import read_plan, save_plan
from kernelsimp.records.report import Round
from kernelsimp.solver.rounds import RoundResult


@dataclass(frozen=True)
class RoundFiles:
    """Writes and reads `rounds.json`, and for each round that was kept its plan and its network."""

    folder: Path

    def write(self, results: Sequence[RoundResult], records: Sequence[Round]) -> None:
        """Write the last round down; the list comes last, so that a stop leaves the rounds before it."""
        numbers = [record.round for record in records if record.kept]
        if numbers and records[-1].kept:
            result = results[-1]
            save_plan(result.plan, self._plan(numbers[-1]))
            tensors = {
                name: t.detach().clone().contiguous() for name, t in result.tuned.checkpoint.tensors.items()
            }
            write_sealed(self._network(numbers[-1]), lambda partial: save_file(tensors, partial))
        told = [{"buffers_changed": result.buffers_changed, "notes": result.notes} for result in results]
        whole = {"records": [asdict(record) for record in records], "results": told}
        write_sealed_text(self._list, json.dumps(whole, indent=1))

    def read(self, start: Network) -> tuple[list[RoundResult], list[Round]]:
        """Return the rounds that were kept and all records; none where no round was kept.

        Raises `KernelsimpError` where the files are there and cannot be read.
        """
        if not self._list.exists():
            return [], []
        try:
            whole = json.loads(read_sealed(self._list))
            records = [Round(**item) for item in whole["records"]]
            numbers = [record.round for record in records if record.kept]
            results = [self._leg(start, *item) for item in zip(numbers, whole["results"], strict=True)]
        except (OSError, ValueError, TypeError, KeyError, SafetensorError, DamagedError) as error:
            advice = "delete that folder, or leave --resume out"
            raise KernelsimpError(f"{self.folder}: no record of rounds ({error}); {advice}") from error
        return (results, records) if results else ([], [])

    def _leg(self, start: Network, number: int, told: dict[str, Any]) -> RoundResult:
        tuned = start.with_weights(load(read_sealed(self._network(number))))
        return RoundResult(
            read_plan(self._plan(number)), tuned, tuple(told["buffers_changed"]), tuple(told["notes"])
        )

    @property
    def _list(self) -> Path:
        return self.folder / "rounds.json"

    def _plan(self, number: int) -> Path:
        return self.folder / f"plan-{number}.safetensors"

    def _network(self, number: int) -> Path:
        return self.folder / f"round-{number}.safetensors"


def round_files(task: Task) -> RoundFiles | None:
    """Return where this task's rounds are written down; None where nothing is written."""
    if task.resume is None or task.data is None:
        return None
    settings = task.settings
    training = replace(settings.finetune, resume=False, finetune=False)
    known = (task.network.checkpoint.sha256, task.data.fingerprint, settings.plan, settings.data, training)
    return RoundFiles(task.resume / f"rounds-{key_of(*known, settings.run)}")
