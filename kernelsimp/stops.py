"""Ctrl-C, SIGTERM and SIGHUP are one request to stop: what can be saved is, and the exit code says which.

A workstation sends the first, CI systems and SLURM the second, a closing terminal the third. The first raises
`KeyboardInterrupt` (in training, after the step that is under way); another one ends the process at once.
"""

import os
import signal
import threading
from types import FrameType

KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_met: list[int] = []


def listen() -> None:
    """Meet the signals from now on; one that the process was told to ignore (nohup) stays ignored."""
    _met.clear()  # what stopped an earlier command of this process says nothing of this one
    if threading.current_thread() is not threading.main_thread():
        return
    for kind in KINDS:
        if signal.getsignal(kind) is not signal.SIG_IGN:
            signal.signal(kind, interrupt)


def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Raise `KeyboardInterrupt`; end the process where it was asked to stop before."""
    if _met:
        os._exit(128 + number)
    note(number)
    raise KeyboardInterrupt


def note(number: int) -> None:
    """Remember which signal asked to stop."""
    _met.append(number)


def exit_code() -> int:
    """Return the exit code of a command that was asked to stop, and forget it: 130, 143 or 129."""
    number = _met[0] if _met else signal.SIGINT
    _met.clear()
    return 128 + number
