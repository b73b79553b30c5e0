"""One run directory, one process: a lock file that names who holds it.

A lock whose process is gone is taken over. One of another host cannot be asked, and is refused.
"""

import json
import os
import socket
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from kernelsimp.errors import KernelsimpError

NAME = ".lock"


def take_lock(folder: Path, owner: object) -> None:
    """Hold `folder` until `owner` is gone or the process ends; what this process holds already is no bar.

    Raises `KernelsimpError` where another process is at work in it.
    """
    path = folder / NAME
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "began": _began(os.getpid())}
    for _ in range(3):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(mine))
        except FileExistsError:
            holder = _holder(path)
            if holder == mine:
                return
            if _is_alive(holder):
                raise KernelsimpError(
                    f"{folder}: process {holder.get('pid')} on {holder.get('host')} is at work there; "
                    f"wait for it, choose another --out, or remove {path} if it is gone"
                ) from None
            path.unlink(missing_ok=True)
            continue
        except OSError as error:
            raise KernelsimpError(f"{path}: cannot write: {error.strerror}; choose another place") from error
        weakref.finalize(owner, _release, path, mine)
        return
    raise KernelsimpError(f"{folder}: another process has just begun there; choose another --out")


def _release(path: Path, mine: dict[str, Any]) -> None:
    if os.getpid() == mine["pid"] and _holder(path) == mine:  # a fork has the finalizer too
        path.unlink(missing_ok=True)


def _holder(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _is_alive(holder: dict[str, Any]) -> bool:
    """Say whether the holder may be at work: another host's may, an empty lock's (killed as it wrote) not."""
    pid = holder.get("pid")
    if type(pid) is not int or pid <= 0:
        return False
    return holder.get("host") != socket.gethostname() or _began(pid) == holder.get("began") != ""


def _began(pid: int) -> str:
    """Return when a process began, which tells it from a later one of its number; empty if it is gone."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        )
        return fields[19] if fields[0] != "Z" else ""
    except OSError:
        pass
    return "unknown" if is_running(pid) and not Path("/proc/self/stat").exists() else ""


def is_running(pid: int) -> bool:
    """Say whether this host has a process of that number, whoever owns it."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
