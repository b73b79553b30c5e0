"""Which of several processes this is, from the environment alone: before, and without, importing Fabric.

With `--devices N` the command is started N times, by itself, by torchrun or by SLURM. Only the first process
may write and talk.
"""

import os
from collections.abc import Mapping

from kernelsimp.settings import FinetuneSettings

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether this process is the one that writes: its rank is 0 by every launcher's variable."""
    return all(environment.get(name, "0") == "0" for name in RANKS)


def processes(settings: FinetuneSettings, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return (processes a node, nodes): what torchrun started, or what the settings ask for."""
    if "TORCHELASTIC_RUN_ID" in environment:
        local = int(environment["LOCAL_WORLD_SIZE"])
        return local, int(environment["WORLD_SIZE"]) // local
    return settings.devices, settings.num_nodes
