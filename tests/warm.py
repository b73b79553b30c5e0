"""A process that has imported everything heavy and forks for each question; `processes.run_warm` asks it.

A question is a line of JSON; the answer is an exit code. What is asked for runs in a fork, as `__main__` of
a process that ends as any process ends. Nothing is computed before a fork: torch's threads survive none.
"""

import json
import os
import runpy
import sys

import sklearn.datasets  # noqa: F401
import torch
import torchvision  # noqa: F401

import kernelsimp.cli.present
import kernelsimp.commands.check
import kernelsimp.commands.simplify
import kernelsimp.training.engine  # noqa: F401

torch.set_num_threads(1)


def next_question() -> dict | None:
    """Return, in a fork, what it is to run; in the process itself, None when nobody asks any more."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            return json.loads(line)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201
    return None


def become(question: dict) -> None:
    """Take the folder, environment, outputs and arguments that a new process would have."""
    os.chdir(question["folder"])
    os.environ.clear()
    os.environ.update(question["environment"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(question[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [question["what"], *question["arguments"]]


if __name__ == "__main__":
    question = next_question()
    if question is not None:
        become(question)
        run = runpy.run_path if question["what"].endswith(".py") else runpy.run_module
        options = {} if run is runpy.run_path else {"alter_sys": True}
        run(question["what"], run_name="__main__", **options)
