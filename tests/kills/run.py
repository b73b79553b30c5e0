"""Commands killed by SIGKILL, again and again, then called until they end.

After each kill what the command reads is as it was and every file is whole or absent; in the end what it
wrote has the bytes of a run that nobody killed, and nothing half written is left. A command is a fork of this
process, which has imported torch already. It is killed at a moment of its running time, or at one of its
renames: before it, with the file half written, or after it.
"""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kernelsimp.cli.main import main
from kills.jobs import JOBS, Job, make_ground
from kills.whole import PARTIAL, digests_of, faults_in, files_of, partials_of

CHAIN = 5
"""Kills of one command before it may end."""

Trap = Callable[[], None]


@dataclass
class Tally:
    """What became of the kills of one job."""

    kills: int = 0
    renames: int = 0
    ends: int = 0
    files: int = 0
    half: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def kill_job(name: str, folder: Path, moments: int, renames: int, dice: random.Random) -> Tally:
    """Kill a job at so many random moments, and at so many of its renames; `folder` holds `ground`."""
    case, tally = Case(JOBS[name], folder / name.replace(" ", "")), Tally()
    case.begin()
    began = time.monotonic()
    end = case.run(count_renames(case.folder / "renames"))
    length, places = time.monotonic() - began, int((case.folder / "renames").read_text() or 0)
    if end:
        tally.faults.append(f"{name}: ends with {end}: {case.said()}")
        return tally
    case.expected = digests_of(case.out, case.job.same)
    while not tally.faults and tally.kills < moments:
        _chain(case, tally, [dice.uniform(0, length) for _ in range(min(CHAIN, moments - tally.kills))])
    while not tally.faults and tally.renames < renames:
        left = min(CHAIN, renames - tally.renames)
        _chain(case, tally, [kill_at_rename(dice.randint(1, max(1, places)), dice) for _ in range(left)])
    return tally


def _chain(case: "Case", tally: Tally, moments: "list[float] | list[Trap]") -> None:
    """Kill one command at each of the moments, or until it ends before, and let it end."""
    case.begin()
    for moment in moments:
        ended = case.run(moment) if callable(moment) else case.run(seconds=moment)
        if ended != -signal.SIGKILL:
            break
        tally.kills += not callable(moment)
        tally.renames += callable(moment)
        tally.stages[case.stage()] += 1
        tally.files += len(files_of(case.out))
        tally.half += len(partials_of(case.folder))
        tally.faults += case.faults()
    code = case.run()
    tally.ends += 1
    tally.faults += case.faults() + case.faults_at_the_end(code)


class Case:
    """A folder in which a command runs, again and again; `expected` are digests of what it shall write."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder, self.expected = job, folder, dict[str, str]()
        self.ground, self.out = folder.parent / "ground", folder / "out"
        self.read = digests_of(self.ground, ("**/*.*",))

    def begin(self) -> None:
        """Put the folder into the state in which the command finds it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "tmp").mkdir(parents=True)
        (self.folder / "stderr").touch()  # a command may be killed before it opens it
        if self.job.before:
            self.job.before(self.ground, self.out)

    def run(self, trap: Trap | None = None, seconds: float | None = None) -> int:
        """Run the command, or kill it after `seconds`; return its exit code, negative if killed."""
        pid = os.fork()
        if pid == 0:
            _become(self.job.words, self.folder, trap)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def said(self) -> str:
        """Return what the command said last on stderr."""
        return (self.folder / "stderr").read_text(encoding="utf-8")

    def stage(self) -> str:
        """Return the stage that the command had come to, by its first words."""
        begun = [line for line in self.said().splitlines() if line.endswith(" ...")]
        if not begun:
            return "before the first stage"
        words = begun[-1].removesuffix(" ...")
        return (words.partition(": ")[2] or words).split(",")[0]

    def faults(self) -> list[str]:
        """Return what is wrong: what the command reads was changed, a file is neither whole nor absent."""
        now = digests_of(self.ground, ("**/*.*",))
        changed = [f"{name}: input changed" for name in self.read if now.get(name) != self.read[name]]
        return [*changed, *(faults_in(self.out) if self.out.exists() else ())]

    def faults_at_the_end(self, code: int) -> list[str]:
        """Return what is wrong with what was written in the end."""
        if code:
            return [f"ends with {code}: {self.said()[-1000:]}"]
        found = digests_of(self.out, self.job.same)
        names = sorted(found.keys() | self.expected.keys())
        other = [f"{name}: other bytes" for name in names if found.get(name) != self.expected.get(name)]
        left = [*partials_of(self.out), *(self.folder / "tmp").iterdir()]
        return [*other, *(f"{path.name}: left behind" for path in left)]


def _become(words: str, folder: Path, trap: Trap | None) -> None:
    """Be the command, in this fork, to the end."""
    code = 4
    try:
        os.chdir(folder)
        os.environ["TMPDIR"] = str(folder / "tmp")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        if trap is not None:
            trap()
        main(words.split())
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 4
    finally:
        os._exit(code)


def count_renames(place: Path) -> Trap:
    """Have a command write to `place` how many renames it has made."""
    rename, made = Path.replace, [0]

    def counted(self: Path, target: Path) -> Path:
        made[0] += 1
        with place.open("w") as file:
            file.write(str(made[0]))
        return rename(self, target)

    def trap() -> None:
        place.touch()
        Path.replace = counted  # type: ignore[method-assign]

    return trap


def kill_at_rename(number: int, dice: random.Random) -> Trap:
    """Have a command kill itself at the rename of that number: before it, cut short, or after it."""
    rename, made, share = Path.replace, [0], dice.choice((0.0, dice.random(), 1.0, None))

    def replace(self: Path, target: Path) -> Path:
        made[0] += 1
        if made[0] == number and share is not None:
            if PARTIAL.fullmatch(self.name):  # a state that makes room for the next one is whole
                os.truncate(self, int(share * self.stat().st_size))
            os.kill(os.getpid(), signal.SIGKILL)
        done = rename(self, target)
        if made[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    def trap() -> None:
        Path.replace = replace  # type: ignore[method-assign]

    return trap


def ground_in(folder: Path) -> None:
    """Make what the commands read, once; raises RuntimeError where a command does not end well."""
    if (folder / "ground").exists():
        return
    case = Case(Job("", 0, ()), folder / "making")

    def run(words: str) -> None:
        case.job = Job(words, 0, ())
        case.begin()
        if case.run():
            raise RuntimeError(f"{words}: {case.said()}")

    make_ground(folder / "ground", run)
