"""Runs the command line within limits on its own memory and CPU: `bounded.py GIGABYTES SECONDS WORDS ...`.

Whoever goes beyond them is killed, or fails with words of his own; both show in the exit code.
"""

import resource
import sys

from kernelsimp.cli.main import main

if __name__ == "__main__":
    memory, seconds = int(float(sys.argv[1]) * (1 << 30)), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    main(sys.argv[3:])
