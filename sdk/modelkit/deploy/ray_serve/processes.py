"""The processes of a Ray that was started here, found however they have come to be.

Ray starts them in process groups of their own and has some of them write a title over their environment. So a process
belongs to it where the mark is in its environment, where it has a file of its folder open (each has its log), or where
it is of the session that was started.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["end_processes", "find_processes"]

_POLL_S: Final = 0.1


def find_processes(mark: str, *, folder: Path | None = None, session: int | None = None) -> list[int]:
    """Return the processes that belong to a Ray; `mark` is NAME=VALUE. Other users' cannot be read, and are not ours."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        # One that has ended, and that nobody has waited for yet, has neither environment nor files.
        with suppress(OSError, ValueError):
            if (
                mark.encode() in (process / "environ").read_bytes().split(b"\0")
                or (folder is not None and _has_open(process, f"{folder}/"))
                or (session is not None and _lives_in(process, session))
            ):
                found.append(int(process.name))
    return found


def end_processes(
    mark: str, *, folder: Path | None = None, session: int | None = None, timeout_s: float = 20.0
) -> list[int]:
    """Kill them until none is left; return those that do not end in time."""
    deadline = time.monotonic() + timeout_s
    while pids := find_processes(mark, folder=folder, session=session):
        if time.monotonic() > deadline:
            return pids
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)
    return []


def _has_open(process: Path, prefix: str) -> bool:
    for descriptor in (process / "fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            if str(descriptor.readlink()).startswith(prefix):
                return True
    return False


def _lives_in(process: Path, session: int) -> bool:
    # The name, in brackets, may have blanks; after it come state, parent, group, session.
    state, _, _, own, *_ = (process / "stat").read_text().rpartition(")")[2].split()
    return int(own) == session and state != "Z"
