"""The command line killed by SIGKILL anywhere, then called again with --resume: the file has the same bits.

A command is a process of its own. In the suite it is forked from one that has imported torch already; in
the slow test it is a new one from the start. It is killed when it has said a certain line, or shortly after.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kernelsimp.report.run_folder import RunFolder

RUN = """
    import hashlib, os, random, signal, sys, time
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    import sklearn.datasets, torchvision  # before the forks, so that each is quick
    import kernelsimp.cli.present, kernelsimp.commands.simplify, kernelsimp.training.engine
    from kernelsimp.cli.main import main
    from kernelsimp.models.architectures import build_model

    folder, how, moments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    dice, pause = random.Random(os.getpid()), 0.03 if how == "fork" else 0.3
    torch.manual_seed(0)
    torch.save(build_model("zoo:digits-cnn").state_dict(), folder / "net.pt")
    words = "--arch zoo:digits-cnn --config recipe:digits --max-drop 1 --cost absolute --freeze --finetune"
    more = "--distill 0.3 --ema 0.9 --save-every 0 --epochs 3 --calibration 128".split()

    def start(run):
        command = ["simplify", str(folder / "net.pt"), *words.split(), *more, "--resume", "--out", str(run)]
        into, out = os.pipe()
        pid = os.fork()
        if pid:
            os.close(out)
            return pid, os.fdopen(into)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if how == "new":
            os.execv(sys.executable, [sys.executable, "-W", "ignore", "-m", "kernelsimp", *command])
        code = 4
        try:
            main(command)
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code)

    def finish(run):
        pid, said = start(run)
        words = said.read()
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, words
        return hashlib.sha256((run / "net.pt").read_bytes()).hexdigest()

    kills = 0
    while kills < (len(moments) or 10):
        pid, said = start(folder / "killed")
        if moments:
            assert any(moments[kills] in line for line in said), moments[kills]
        else:
            heard = [said.readline() for _ in range(dice.randint(1, 12))]
        time.sleep(dice.uniform(0, pause))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        kills += os.WIFSIGNALED(status)
        assert not moments or os.WIFSIGNALED(status), moments[kills]
    assert finish(folder / "killed") == finish(folder / "whole")
    left = [path.name for path in (folder / "killed").rglob("*.partial")]
    assert not left, left
"""


def killed(folder: Path, how: str, *moments: str) -> None:
    """Kill a command when it has said each of these words, or ten times at random, and compare its end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KERNELSIMP")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(RUN), str(folder), how, *moments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kills_in_planning_training_and_writing_change_no_bit(tmp_path):
    killed(tmp_path, "fork", "scanning", "re-solving", "epoch 2 of 3", "chosen by")


@pytest.mark.parametrize("how", ["fork", pytest.param("new", marks=pytest.mark.slow)])
def test_ten_kills_at_random_moments_change_no_bit(how, tmp_path):
    killed(tmp_path, how)


def test_what_a_killed_writer_left_is_swept_by_the_next_run(tmp_path):
    (tmp_path / "run" / "resume").mkdir(parents=True)
    left = [tmp_path / "run" / ".a.pt.77.partial", tmp_path / "run" / "resume" / ".finetune.pt.77.partial"]
    kept = [tmp_path / "run" / name for name in (".hidden", "notes.partial")]
    for path in (*left, *kept):
        path.write_text("half")
    RunFolder.new(tmp_path / "run", tmp_path / "a.pt")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
