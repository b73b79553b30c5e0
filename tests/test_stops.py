"""SIGTERM and SIGHUP end a command as Ctrl-C does; one run directory takes one process; strays are swept."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from builders import tiny_state, white, write_zip
from processes import environment, run_warm

from kernelsimp import stops
from kernelsimp.cli.main import run
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import partial_name, write_text
from kernelsimp.report.run_folder import RunFolder
from kernelsimp.run_lock import NAME

WAIT = """
import signal, sys, time
from kernelsimp import stops
from kernelsimp.cli import main as cli
import kernelsimp.commands.scan as scan

def wait(*_):
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("saving", flush=True)
        if SECOND:
            time.sleep(60)
        raise

scan.scan = wait
for kind in stops.KINDS:  # whoever runs the tests (nohup, &) may have told them to ignore some
    signal.signal(kind, signal.SIG_DFL)
cli.main(["scan", "m.pt", "-q"])
"""


def stopped(kind: signal.Signals, folder: Path, *, twice: bool = False) -> "subprocess.CompletedProcess[str]":
    """Stop a command that waits with a signal, once or twice."""
    write_zip(tiny_state(), folder / "m.pt")
    command = [sys.executable, "-W", "ignore", "-c", WAIT.replace("SECOND", str(twice))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment(), cwd=folder, **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "ready\n"
    process.send_signal(kind)
    assert process.stdout.readline() == "saving\n"
    if twice:
        process.send_signal(kind)
    out, err = process.communicate(timeout=50)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.parametrize(("kind", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_every_signal_ends_as_ctrl_c_does_with_its_own_code(kind: str, code: int, tmp_path: Path) -> None:
    done = stopped(signal.Signals[kind], tmp_path)
    assert (done.returncode, done.stderr) == (code, "kernelsimp: interrupted\n")


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    done = stopped(signal.SIGTERM, tmp_path, twice=True)
    assert (done.returncode, done.stderr) == (143, "")


def test_the_code_is_that_of_the_first_signal_and_is_forgotten() -> None:
    stops.exit_code()  # another test of this process may have been stopped
    stops.note(signal.SIGTERM)
    stops.note(signal.SIGHUP)
    assert (stops.exit_code(), stops.exit_code()) == (143, 130)


def test_two_processes_in_one_run_refuse(tmp_path: Path, capsys) -> None:
    model = write_zip({"c.weight": white(8, 4, 3, 3)}, tmp_path / "m.pt")
    words = ["simplify", str(model), "--tolerance", "0.6", "--out", str(tmp_path / "run"), "-q"]
    held = RunFolder.new(tmp_path / "run", model)
    done = run_warm("kernelsimp", *words)
    assert done.returncode == 2
    assert done.stderr == (
        f"kernelsimp: {tmp_path}/run: process {os.getpid()} on {socket.gethostname()} is at work there; "
        f"wait for it, choose another --out, or remove {tmp_path}/run/{NAME} if it is gone\n"
    )
    assert run(words) == 0  # this process may
    del held
    assert not (tmp_path / "run" / NAME).exists()
    assert run_warm("kernelsimp", *words, "--overwrite").returncode == 0
    assert not (tmp_path / "run" / NAME).exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": -1}', '{"pid": 99999999, "host": "HOST", "began": "1"}']
)
def test_a_stale_lock_is_cleared(text: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(text.replace("HOST", socket.gethostname()))
    run_folder = RunFolder(tmp_path)
    run_folder.prepare()
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_a_process_of_the_same_number_is_not_the_holder_and_another_host_may_be(tmp_path: Path) -> None:
    lock = {"pid": os.getppid(), "host": socket.gethostname(), "began": "1"}
    (tmp_path / NAME).write_text(json.dumps(lock))
    RunFolder(tmp_path).prepare()
    (tmp_path / NAME).write_text(json.dumps({**lock, "host": "elsewhere"}))
    with pytest.raises(KernelsimpError, match="on elsewhere is at work there"):
        RunFolder(tmp_path).prepare()


def test_strays_of_killed_processes_are_swept_by_the_next_that_writes(tmp_path: Path) -> None:
    own = partial_name("b.json")
    gone = tmp_path / own.replace(f"-{os.getpid()}.", "-99999999.")
    alive = tmp_path / own.replace(f"-{os.getpid()}.", f"-{os.getppid()}.")
    other = tmp_path / gone.name.replace("b.json", "c.json")
    for path in (gone, alive, other):
        path.write_text("half")
    write_text(tmp_path / "b.json", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"b.json", alive.name, other.name}


def test_names_as_long_as_they_may_be(tmp_path: Path) -> None:
    name = "a" * 252 + ".pt"
    model = write_zip({"c.weight": white(8, 4, 3, 3)}, tmp_path / name)
    assert run(["simplify", str(model), "--tolerance", "0.6", "--out", str(tmp_path / "run"), "-q"]) == 0
    assert (tmp_path / "run" / name).is_file()
    assert len(partial_name("ä" * 127)) <= 255


def test_a_name_that_is_no_utf_8_and_an_ascii_terminal(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"net\xff.pt")
    write_zip({"c.weight": white(8, 4, 3, 3)}, tmp_path / "m.pt").rename(path)
    done = run_warm("kernelsimp", "scan", str(path), LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0
    done = run_warm("kernelsimp", "simplify", str(path), "--tolerance", "0.6", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr


def test_pipes_and_devices_are_no_files(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "m.pt")
    assert run(["scan", str(tmp_path / "m.pt")]) == 2
    assert "is a pipe or a device, no file" in capsys.readouterr().err
    model = write_zip(tiny_state(), tmp_path / "n.pt")
    assert run(["check", str(model), "--baseline", "/dev/zero"]) == 2
    assert "/dev/zero: is a device, no file" in capsys.readouterr().err
