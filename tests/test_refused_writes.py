"""Folders that may not be written, quotas and full disks: one line, exit code 2, nothing half written."""

import shutil
import sys
from pathlib import Path

import pytest
from builders import NET, npz, tiny_state, write_zip
from processes import HERE, run_warm

from kernelsimp.cli.main import run
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import LARGE, spill, write_atomically

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and devices of Linux")

DATA = f"--arch {NET} --data npz:images.npz"
TRAINED = f"{DATA} --batch-size 16 --epochs 1 --calibration 16"

COMMANDS = {
    "scan": "scan m.pt --json out/s.json --csv out/s.csv --html out/s.html",
    "scan of many": "scan nets --json out/json",
    "scan --dataset": "scan nets --dataset out/set",
    "simplify": "simplify m.pt --tolerance 0.6 --out out/run",
    "simplify --finetune": f"simplify m.pt {TRAINED} --dof 0.5 --freeze --finetune --out out/run",
    "train": f"train {TRAINED} --out out/run",
    "prune": f"prune m.pt {TRAINED} --dof 0.5 --out out/run",
    "check": "check m.pt --baseline run/report.json --json out/c.json --junit out/c.xml --gitlab out/g.json",
    "check --update-baseline": "check m.pt --baseline out/b.json --update-baseline",
    "report": "report run run2 --out out/both",
    "export packed": "export run --out out/m.kspack",
    "export safetensors": "export run --to safetensors --out out/m.safetensors",
    "export torch": "export m.pt --to torch --out out/n.pt",
    "compare": f"compare m.pt n.pt {DATA} --html out/c.html --json out/c.json",
    "audit": f"audit m.pt --arch {NET} --json out/a.json",
    "evaluate": f"evaluate m.pt {DATA} --json out/e.json",
    "atlas": "atlas set --out out/atlas.html",
}
"""Commands by name; each writes into `out` and nowhere else."""

LATER = [("3000", name) for name in ("scan", "simplify", "simplify --finetune")]
"""Where files that are small come out, and larger ones do not."""

NEED = {"scan --dataset": "pyarrow", "atlas": "pyarrow"}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the commands read."""
    folder = tmp_path_factory.mktemp("ground")
    npz(folder / "images.npz", (8, 8, 3))
    for seed, name in enumerate(("m.pt", "n.pt", "nets/a.pt", "nets/b.pt")):
        (folder / name).parent.mkdir(exist_ok=True)
        write_zip(tiny_state(seed), folder / name)
    for name in ("run", "run2"):
        assert (
            run(["simplify", str(folder / "m.pt"), "--tolerance", "0.6", "--out", str(folder / name), "-q"])
            == 0
        )
    if shutil.which("true"):
        run(["scan", str(folder / "nets"), "--dataset", str(folder / "set"), "-q"])
    return folder


def attempt(name: str, how: str, ground: Path, folder: Path) -> "tuple[int, str, list[str]]":
    """Run a command where writing fails; return its exit code, its last line and the files that it left."""
    if name in NEED:
        pytest.importorskip(NEED[name])
    place = folder / "case"
    shutil.copytree(ground, place)
    (place / "out").mkdir(mode=0o555 if how == "read-only" else 0o755)
    done = run_warm(HERE / "refused_writes.py", how, *COMMANDS[name].split(), folder=place)
    (place / "out").chmod(0o755)
    assert "Traceback" not in done.stderr, done.stderr
    left = [str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()]
    before = {str(path.relative_to(ground)) for path in ground.rglob("*") if path.is_file()}
    assert before <= set(left)
    return (
        done.returncode,
        (done.stderr.splitlines() or [""])[-1],
        [item for item in left if item not in before],
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_may_not_be_written(name: str, ground: Path, tmp_path: Path) -> None:
    code, said, left = attempt(name, "read-only", ground, tmp_path)
    assert (code, left) == (2, []), said
    assert said.startswith("kernelsimp: out")
    assert "cannot write: Permission denied; choose another place" in said


@pytest.mark.parametrize(("limit", "name"), [*(("0", name) for name in COMMANDS), *LATER])
def test_a_quota_or_a_full_disk(limit: str, name: str, ground: Path, tmp_path: Path) -> None:
    code, said, left = attempt(name, limit, ground, tmp_path)
    assert code == 2, said
    assert said.startswith("kernelsimp: out"), said
    assert "cannot write" in said
    assert not [item for item in left if item.endswith(".partial")]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_standard_output_on_a_full_disk(name: str, ground: Path, tmp_path: Path) -> None:
    code, said, left = attempt(name, "full", ground, tmp_path)
    assert code == 2, said
    assert said == "kernelsimp: standard output: cannot write: No space left on device; choose another place"
    assert not [item for item in left if item.endswith(".partial")]


def test_what_another_library_says_of_a_full_disk_is_a_line(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    def full(_: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(KernelsimpError, match="cannot write: Error while serializing"):
        write_atomically(tmp_path / "a", full)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_spilled_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    def full(*_: object) -> None:
        raise OSError("4194304 requested and 0 written")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    array = np.arange(LARGE + 1)
    assert spill(array) is array
