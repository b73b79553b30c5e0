"""What every test stands on: one thread, and the folder of real checkpoints where there is one."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tiny networks: more threads only wait for each other


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real checkpoints and images beside the project, which is not part of it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real checkpoints here: {folder.name} beside the project is missing")
    return folder
