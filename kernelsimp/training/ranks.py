"""Which of several processes this is, from the environment alone: before, and without, importing Fabric.

With `--devices N` the command is started N times, by itself, by torchrun or by SLURM. Every process does
the same work up to training; only the first one may write and talk.
"""

import os
from collections.abc import Mapping

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether this process is the one that writes: its rank is 0 by every launcher's variable."""
    return all(environment.get(name, "0") == "0" for name in RANKS)
