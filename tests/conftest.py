"""What every test stands on: one thread, a tiny network and its images, real checkpoints where there are."""

import os
import signal
import sys
from pathlib import Path

import pytest

if sys.dont_write_bytecode:  # else every process compiles torch's 3,000 files anew
    kept = sys.pycache_prefix or str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "bytecode")
    sys.dont_write_bytecode, sys.pycache_prefix = False, kept
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = kept

# a shell makes what it runs in the background deaf to Ctrl-C, nohup to a closed terminal: not what is tested
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Torch comes with the tests: a process that only hands them out to others needs none."""
    import torch

    torch.set_num_threads(1)  # tiny networks: more threads only wait for each other


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real checkpoints and images beside the project, which is not part of it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real checkpoints here: {folder.name} beside the project is missing")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of `builders.TinyNet`."""
    from builders import tiny_state, write_zip

    return write_zip({"state_dict": tiny_state()}, tmp_path / "tiny.pt")


@pytest.fixture
def images(tmp_path: Path) -> str:
    """Forty 8 x 8 colour images of five classes, as an npz file."""
    from builders import npz

    return npz(tmp_path / "images.npz", (8, 8, 3))
