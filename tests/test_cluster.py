"""Many networks at once: the same result whoever works, a killed worker, and clusters that cannot be had."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from builders import tiny_state, write_zip
from processes import environment
from saying import command_refusal, refusal

from kernelsimp.analysis.scan import scan_part
from kernelsimp.analysis.scan_parts import Part, ScannedPart
from kernelsimp.cli.main import run
from kernelsimp.commands import scan_many
from kernelsimp.commands.cluster import Cluster, Lost, checked, each_result
from kernelsimp.commands.scan_many import ManyJob, Piece
from kernelsimp.commands.scan_sources import Source
from kernelsimp.models.layers import bank_from_tensors
from kernelsimp.models.scannable import open_to_scan
from kernelsimp.settings import ModelSettings, ScanSettings, Settings
from kernelsimp.version import __version__

pytest.importorskip("distributed")

VERSION = "import kernelsimp.version as v; v.__version__ = {version!r}; "
WORKER = "from distributed.cli.dask_worker import main; main()"
SCHEDULER = "from distributed.cli.dask_scheduler import main; main()"


def start(code: str, *arguments: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment(), **quiet)


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[tuple[str, list["subprocess.Popen[bytes]"]]]:
    """Yield the address of a scheduler on the loopback, and a list of processes that end with the test."""
    told = tmp_path / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(told)]
    processes = [start(SCHEDULER, *options)]
    while not told.exists() or not told.read_text().endswith("}"):
        assert processes[0].poll() is None
        time.sleep(0.05)
    yield json.loads(told.read_text())["address"], processes
    for process in reversed(processes):
        process.kill()
        process.wait()


def worker(address: str, version: str | None = None) -> "subprocess.Popen[bytes]":
    code = (VERSION.format(version=version) if version else "") + WORKER
    return start(code, address, "--no-nanny", "--nthreads", "1", "--no-dashboard")


def networks(folder: Path, count: int) -> Path:
    for seed in range(count):
        torch.manual_seed(seed)
        state = tiny_state() | {"stem.weight": torch.randn(4, 3, 3, 3)}
        folder.mkdir(parents=True, exist_ok=True)
        write_zip(state, folder / f"{seed}.pt")
    (folder / "cut.pt").write_bytes((folder / "0.pt").read_bytes()[:-200])
    return folder


def scanned(folder: Path, to: Path, *options: str) -> dict[str, bytes]:
    assert run(["scan", str(folder), "--json", str(to), "-q", "--depth", "shallow", *options]) == 0
    return {path.name: path.read_bytes() for path in sorted(to.rglob("*.json"))}


def kill_when_busy(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Kill a process as soon as the first result is written."""
    while not list(folder.glob("*.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)


def test_three_workers_of_whom_one_is_killed_give_what_one_process_gives(scheduler, tmp_path: Path) -> None:
    address, processes = scheduler
    folder = networks(tmp_path / "nets", 12)
    serial = scanned(folder, tmp_path / "serial")
    assert len(serial) == 12
    workers = [worker(address) for _ in range(3)]
    processes += workers
    wait_for_workers(address, 3)
    killer = threading.Thread(target=kill_when_busy, args=(workers[1], tmp_path / "many"))
    killer.start()
    many = scanned(folder, tmp_path / "many", "--scheduler", address)
    killer.join()
    assert workers[1].wait() == -signal.SIGKILL
    assert many == serial


def wait_for_workers(address: str, count: int) -> None:
    import distributed

    with distributed.Client(address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)


@pytest.fixture
def usual_port() -> Iterator[None]:
    """Occupy the port at which a scheduler usually serves its state, as another run on this machine may."""
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        except OSError:
            pass  # somebody else has it
        yield


@pytest.mark.usefixtures("usual_port")
def test_jobs_give_what_one_process_gives(tmp_path: Path) -> None:
    folder = networks(tmp_path / "nets", 3)
    assert scanned(folder, tmp_path / "two", "--jobs", "2") == scanned(folder, tmp_path / "one")


def test_a_network_cut_by_layers_gives_what_it_gives_whole(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "nets"
    folder.mkdir()
    torch.manual_seed(0)
    state = {
        f"layer{number}.weight": torch.randn(8, 4, size, size) for number, size in enumerate((3, 5, 3, 1, 7))
    }
    state["layer2.weight"][:] = 0  # a note of its own: no null can be estimated
    write_zip(state, folder / "mixed.pt")
    one = scanned(folder, tmp_path / "one")
    monkeypatch.setattr(scan_many, "LARGE_FILE", 0)
    monkeypatch.setattr(scan_many, "KERNELS_A_PIECE", 40)
    pieces = scan_many.pieces_of(
        Source(str(folder / "mixed.pt"), "mixed.pt"), ManyJob(Settings(), cluster=Cluster(2))
    )
    assert len(pieces) == 4
    assert scanned(folder, tmp_path / "two", "--jobs", "2", "--memory", "8") == one


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_parts_have_each_layer_once_and_in_order(count: int) -> None:
    layers = bank_from_tensors(
        {
            f"{name}.weight": torch.randn(4, size, 3, 3)
            for name, size in zip("abcdef", (1, 9, 2, 2, 40, 1), strict=True)
        }
    ).spatial
    parts = [Part(number, count).of(layers) for number in range(count)]
    assert [place for part in parts for place in part] == list(range(6))


def test_a_network_that_changes_between_its_parts_and_one_of_whose_parts_fails_are_one_line(
    tmp_path: Path,
) -> None:
    source = Source("a.pt", "a.pt")
    pieces = [Piece(source, Part(number, 2)) for number in range(2)]
    job, parts = ManyJob(Settings()), []
    for seed in range(2):
        torch.manual_seed(seed)
        write_zip(
            {"a.weight": torch.randn(4, 2, 3, 3), "b.weight": torch.randn(4, 4, 3, 3)}, tmp_path / "a.pt"
        )
        opened = open_to_scan(tmp_path / "a.pt", ModelSettings())
        parts.append(
            scan_part(opened.bank, ScanSettings(depth="shallow"), opened.source, part=pieces[seed].part)
        )
    waiting: dict[str, dict[int, ScannedPart]] = {}
    assert scan_many.join_piece(pieces[0], parts[0], waiting, job) is None
    done = scan_many.join_piece(pieces[1], parts[1], waiting, job)
    assert done is not None
    assert done.line.error == "changed while it was read; wait until it is written, then try again"
    assert not waiting
    lost = scan_many.join_piece(pieces[0], Lost("no memory"), waiting, job)
    assert lost is not None
    assert lost.line.error == "no memory"


def test_a_worker_that_came_late_refuses_a_task_of_another_version() -> None:
    assert checked(__version__, abs, -3) == 3
    said = f"a worker has kernelsimp {__version__}, this is 0.0.9; install the same version on both"
    assert refusal(lambda: checked("0.0.9", abs, -3)) == said


def test_a_worker_of_another_version_is_one_line(scheduler, tmp_path: Path, capsys) -> None:
    address, processes = scheduler
    processes.append(worker(address, "0.0.9"))
    folder = networks(tmp_path / "nets", 1)
    words = command_refusal(["scan", str(folder), "-q", "--scheduler", address], capsys)
    assert words.startswith("worker tcp://127.0.0.1:")
    assert words.endswith("has kernelsimp 0.0.9, this is 0.1.0; install the same version on both")


def end(number: int) -> int:
    """End the process of item 1, whoever works on it."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * number


@pytest.mark.slow
def test_an_item_that_ends_every_worker_is_lost_alone() -> None:
    results = dict(each_result(end, [0, 1, 2], Cluster(jobs=2)))
    assert (results[0], results[2]) == (0, 20)
    assert isinstance(results[1], Lost)


def test_nobody_is_started_for_nothing() -> None:
    assert not list(each_result(abs, [], Cluster(scheduler="tcp://127.0.0.1:9")))


BAD = [
    (Cluster(0), "--jobs is 0; expected 1 or more"),
    (Cluster(2, memory=-1.0), "--memory is -1; expected gigabytes, such as 4"),
    (Cluster(2, "tcp://h:1"), "--jobs is for workers on this machine; those of --scheduler have theirs"),
]


@pytest.mark.parametrize(("cluster", "words"), BAD)
def test_a_cluster_that_cannot_be_is_one_line(cluster: Cluster, words: str) -> None:
    assert refusal(lambda: list(each_result(abs, [1], cluster))) == words


def test_an_address_where_nobody_listens_is_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("kernelsimp.commands.cluster.PATIENCE", 1)
    folder = networks(tmp_path / "nets", 1)
    words = command_refusal(["scan", str(folder), "-q", "--scheduler", "tcp://127.0.0.1:9"], capsys)
    assert words.startswith("--scheduler tcp://127.0.0.1:9: nobody answers (")


def test_without_dask_one_line_says_what_to_install_and_one_job_needs_none(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    folder = networks(tmp_path / "nets", 1)
    words = command_refusal(["scan", str(folder), "-q", "--jobs", "2"], capsys)
    assert words == "more than one job, and --scheduler, need Dask; pip install distributed pyarrow"
    assert run(["scan", str(folder), "-q", "--depth", "shallow"]) == 0


def test_lists_and_globs_are_sources_and_each_network_is_scanned_once(tmp_path: Path, capsys) -> None:
    folder = networks(tmp_path / "nets", 2)
    (tmp_path / "all.txt").write_text(f"# remark\n{folder}/0.pt\tclassification\n\n{folder}/gone.pt\n")
    options = ["--json", str(tmp_path / "out"), "--depth", "shallow"]
    assert run(["scan", str(tmp_path / "all.txt"), f"{folder}/[01].pt", *options]) == 0
    assert len(list((tmp_path / "out").rglob("*.json"))) == 2
    assert "gone.pt" in capsys.readouterr().out
    words = command_refusal(["scan", f"{folder}/x*.pt", "-q"], capsys)
    assert words.startswith(f"{folder}/x*.pt: no checkpoint matches; ")
