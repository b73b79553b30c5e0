"""Runs the command line with an output that nobody reads: `gone_readers.py pipe|line|closed ARGUMENTS`."""

import os
import sys

from kernelsimp.cli.main import main


def leave(sink: str) -> None:
    """Pipe what is written into `true` or into `head -n 1`, or close it as `>&- 2>&-` does."""
    if sink == "closed":
        os.close(1)
        os.close(2)
        sys.stdout = sys.stderr = None  # as python finds them where they were closed before it began
        return
    reader, writer = os.pipe()
    if sink == "line" and os.fork() == 0:
        os.close(writer)
        os.fdopen(reader).readline()
        os._exit(0)
    os.close(reader)
    os.dup2(writer, 1)
    if sink == "line":
        os.dup2(writer, 2)


if __name__ == "__main__":
    leave(sys.argv.pop(1))
    main()
