"""The command line killed by SIGKILL anywhere, then called again: the files have the same bits.

`scripts/kill_test` does the same at length, for every command that writes.
"""

import os
import time
from pathlib import Path

import pytest
from kills.jobs import JOBS, Job
from kills.run import Case
from kills.whole import fault_of, faults_in
from processes import run_warm

from kernelsimp.files import remove_partials, temporary_file, temporary_folder
from kernelsimp.report.run_folder import RunFolder

FAST = ("scan", "export", "check --update-baseline", "report")


def killed(folder: Path, count: int, *jobs: str) -> None:
    """Kill jobs at `count` moments, each at one at least, and at half as many renames."""
    seed = str(time.time_ns())
    done = run_warm("kills.command", "--folder", str(folder), "--count", str(count), "--seed", seed, *jobs)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kills_of_a_training_run_change_no_bit(tmp_path):
    killed(tmp_path, 3, "simplify --finetune")


def test_kills_of_commands_that_write_leave_whole_files(tmp_path):
    killed(tmp_path, 4, *FAST)


@pytest.mark.slow
def test_thirty_kills_of_everything(tmp_path):
    killed(tmp_path, 30)


def test_every_kind_of_file_is_told_from_its_half(tmp_path):
    """The kill test would see it: each file of a run, cut short, is faulty."""
    killed(tmp_path, 1, "report")
    out = tmp_path / "report" / "out"
    assert faults_in(out) == []
    kinds = set()
    for path in [path for path in out.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        path.write_bytes(whole[:-7])
        assert fault_of(path), path
        kinds.add(path.suffix)
    assert {".json", ".jsonl", ".html", ".pt", ".safetensors", ".npz"} <= kinds
    (out / "other.xyz").write_text("")
    assert fault_of(out / "other.xyz") == "a file of no known kind"


def test_a_command_that_is_killed_before_it_does_anything_has_said_nothing(tmp_path):
    case = Case(Job("scan nothing.pt", 0, ()), tmp_path / "case")
    case.begin()
    assert case.stage() == "before the first stage"


def test_the_shares_of_all_jobs_are_a_hundred():
    assert sum(job.share for job in JOBS.values()) == 100


def test_what_a_killed_writer_left_is_swept_by_the_next_run(tmp_path):
    (tmp_path / "run" / "resume").mkdir(parents=True)
    left = [tmp_path / "run" / ".a.pt.77.partial", tmp_path / "run" / "resume" / ".finetune.pt.77.partial"]
    kept = [tmp_path / "run" / name for name in (".hidden", "notes.partial")]
    for path in (*left, *kept):
        path.write_text("half")
    (tmp_path / "run" / ".tensorboard.77.partial" / "deeper").mkdir(parents=True)
    RunFolder.new(tmp_path / "run", tmp_path / "a.pt")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
    assert not (tmp_path / "run" / ".tensorboard.77.partial").exists()
    remove_partials(tmp_path / "nowhere")


def test_temporary_copies_of_killed_processes_are_swept_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_file() as name:
        gone = [tmp_path / name.name.replace(f"-{os.getpid()}.", f"-{pid}.") for pid in (99999998, 99999999)]
        gone[0].write_text("half a network")
        gone[1].mkdir()
        (gone[1] / "part").write_text("")
        alive = tmp_path / name.name.replace(f"-{os.getpid()}.", f"-{os.getppid()}.")
        alive.write_text("another's")
        with temporary_folder() as folder:
            assert {path.name for path in tmp_path.iterdir()} == {name.name, folder.name, alive.name}
    assert [path.name for path in tmp_path.iterdir()] == [alive.name]
