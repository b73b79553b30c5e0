"""Runs the command line where writing fails: `refused_writes.py read-only|full|BYTES ARGUMENTS`.

`read-only` obeys the permissions of folders even for root, `full` has a standard output on a full disk, and a
number of bytes is the size beyond which no file grows, as a quota or a full disk stops it.
"""

import ctypes
import os
import resource
import sys

from kernelsimp.cli.main import main

VERSION = 0x20080522


def obey_permissions() -> None:
    """Give up the capabilities with which root writes where nobody may."""
    header, nothing = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None).capset(header, nothing):
        raise OSError("cannot give up capabilities")


def speak_through_another() -> int:
    """Hand stderr, a file too, to a process that no limit stops; return its number."""
    reader, writer = os.pipe()
    speaker = os.fork()
    if speaker == 0:
        os.close(writer)
        while said := os.read(reader, 1 << 16):
            os.write(2, said)
        os._exit(0)
    os.close(reader)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(writer, 2)
    os.close(writer)
    return speaker


def meet(how: str) -> None:
    if how == "read-only":
        obey_permissions()
    elif how == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(how), int(how)))


if __name__ == "__main__":
    speaker = speak_through_another() if sys.argv[1].isdecimal() else 0
    meet(sys.argv.pop(1))
    try:
        main()
    finally:
        if speaker:
            sys.stderr.flush()
            os.dup2(1, 2)
            os.waitpid(speaker, 0)
