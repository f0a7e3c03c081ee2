"""Runs a command and makes sure that nothing of it outlives modelkit, however modelkit ends.

    python _guard.py COMMAND...

Standard input is a pipe that only modelkit holds: its end says that modelkit is gone, also after SIGKILL. Then the
command's process group is ended, politely first. Processes that the command leaves behind become children of this one
(Linux: PR_SET_CHILD_SUBREAPER), so they are found even when the command itself has been killed. The guard exits with
the command's exit code, or 128 + N where signal N ended it. Standard library only; it starts in 10 ms.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
TERMINATE_TIMEOUT_S = 10.0


def main(command: list[str]) -> int:
    """Run the command until it ends or standard input does."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        # The terminal's Ctrl-C reaches modelkit too, which decides. A handler, for SIG_IGN would be inherited.
        signal.signal(number, lambda *_: None)
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, restore_signals=True
        )  # noqa: S603
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    wake_fd = _wake_on_child_exit()
    while child.poll() is None:
        ready, _, _ = select.select([0, wake_fd], [], [])
        if wake_fd in ready:
            os.read(wake_fd, 4096)
        if 0 in ready and not os.read(0, 4096):
            break
    code = child.poll()
    _end_everything(child.pid)
    if code is None:
        return 128 + signal.SIGTERM
    return code if code >= 0 else 128 - code


def _wake_on_child_exit() -> int:
    """Return a file descriptor that becomes readable when a child ends."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    return read_fd


def _end_everything(group: int) -> None:
    """End the command's group and whatever it left behind: SIGTERM, then SIGKILL."""
    deadline = time.monotonic() + TERMINATE_TIMEOUT_S
    number = signal.SIGTERM
    _signal(group, number)
    while pids := _descendants():
        if time.monotonic() > deadline and number != signal.SIGKILL:
            number = signal.SIGKILL
        if number == signal.SIGKILL:
            for pid in pids:
                _kill(pid, number)
        _reap()
        time.sleep(0.02)


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass
    for pid in _descendants():
        _kill(pid, number)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _reap() -> None:
    """Collect children that have ended, adopted ones included."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _descendants() -> list[int]:
    """Return the processes below this one; those that have ended and wait to be collected are left out."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state not in "ZX":
            parents[int(entry.name)] = int(parent)
    found: list[int] = []
    level = [os.getpid()]
    while level:
        level = [pid for pid, parent in parents.items() if parent in level]
        found += level
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
