"""Kill commands at random moments and look at what they leave: `kill_test [--count N] [--seed S] [JOB ...]`.

Each is killed at its share of N moments of its running time, then, half as often, at one of its renames,
with the file half written. After each kill all that it reads is as it was and every file is whole or absent;
called until it ends, it has written the bytes of a run that nobody killed and left nothing half written.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision  # noqa: F401  before the forks, so that each is quick

import kernelsimp.cli.present
import kernelsimp.commands.check
import kernelsimp.commands.simplify
import kernelsimp.report.terminal
import kernelsimp.training.engine  # noqa: F401
from kills.jobs import JOBS
from kills.run import Tally, ground_in, kill_job

HEADS = ("command", "moments", "renames", "ended", "files read", "half written", "faults", "seconds")


def main() -> int:
    """Kill what was asked for; print a table; return 1 where there is a fault or the time was over."""
    asked = arguments()
    torch.set_num_threads(1)
    began, faults, late = time.monotonic(), list[str](), list[str]()
    say = sys.stdout.write
    say("| " + " | ".join(HEADS) + " |\n| --- " + "| ---: " * (len(HEADS) - 1) + "|\n")
    with tempfile.TemporaryDirectory() as spare:
        folder = asked.folder or Path(spare)
        ground_in(folder)
        stages: dict[str, Tally] = {}
        for name in asked.jobs or JOBS:
            if time.monotonic() - began > asked.seconds:
                late.append(name)
                continue
            since = time.monotonic()
            moments = share_of(name, asked.count, asked.jobs)
            renames = moments // 2 if asked.renames is None else share_of(name, asked.renames, asked.jobs)
            tally = kill_job(name, folder, moments, renames, random.Random(f"{asked.seed} {name}"))
            say(row(name, tally, time.monotonic() - since))
            sys.stdout.flush()
            faults += [f"{name}: {fault}" for fault in tally.faults]
            stages[name] = tally
        for name, tally in stages.items():
            say(f"{name}: killed in {', '.join(f'{stage} {n}' for stage, n in tally.stages.most_common())}\n")
    for fault in faults:
        say(f"{fault}\n")
    if late:
        say(f"the {asked.seconds} seconds were over before {', '.join(late)}\n")
    return 1 if faults or late else 0


def share_of(name: str, count: int, chosen: list[str]) -> int:
    """Return how many of `count` kills a job gets, of all that are chosen."""
    whole = sum(JOBS[other].share for other in chosen or JOBS)
    return max(1, round(count * JOBS[name].share / whole))


def row(name: str, tally: Tally, seconds: float) -> str:
    """Return one row of the table."""
    numbers = (tally.kills, tally.renames, tally.ends, tally.files, tally.half, len(tally.faults))
    return f"| {name} | " + " | ".join(f"{number:,}" for number in numbers) + f" | {seconds:.0f} |\n"


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--count", type=int, default=100, help="kills at random moments, all jobs together")
    parser.add_argument("--renames", type=int, help="kills at renames [half of --count]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600, help="no job begins after this time")
    parser.add_argument("--folder", type=Path, help="where to work, and to leave what is found")
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(JOBS))
    asked = parser.parse_args()
    for name in asked.jobs:
        if name not in JOBS:
            parser.error(f"no job '{name}'; known: {', '.join(JOBS)}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
