"""The command line killed by SIGKILL anywhere, then called again with --resume: the file has the same bits.

A command is a process of its own. In the suite it is forked from one that has imported torch already; in
the slow test it is a new one from the start. It is killed when it has said a certain line, or shortly after.
"""

from pathlib import Path

import pytest
from processes import HERE, run_warm

from kernelsimp.report.run_folder import RunFolder


def kill_command(folder: Path, how: str, *moments: str) -> None:
    """Kill a command when it has said each of these words, or ten times at random, and compare its end."""
    done = run_warm(HERE / "killed_command.py", str(folder), how, *moments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kills_in_planning_training_and_writing_change_no_bit(tmp_path):
    kill_command(tmp_path, "fork", "scanning", "re-solving", "epoch 2 of 3", "chosen by")


@pytest.mark.parametrize("how", ["fork", pytest.param("new", marks=pytest.mark.slow)])
def test_ten_kills_at_random_moments_change_no_bit(how, tmp_path):
    kill_command(tmp_path, how)


def test_what_a_killed_writer_left_is_swept_by_the_next_run(tmp_path):
    (tmp_path / "run" / "resume").mkdir(parents=True)
    left = [tmp_path / "run" / ".a.pt.77.partial", tmp_path / "run" / "resume" / ".finetune.pt.77.partial"]
    kept = [tmp_path / "run" / name for name in (".hidden", "notes.partial")]
    for path in (*left, *kept):
        path.write_text("half")
    RunFolder.new(tmp_path / "run", tmp_path / "a.pt")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
