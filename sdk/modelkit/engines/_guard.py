"""Runs a command and makes sure that nothing of it outlives modelkit, however modelkit ends.

    python _guard.py [--tell FD] [--scratch NAME] COMMAND...

Standard input is a pipe that only modelkit holds: its end says that modelkit is gone, also after SIGKILL. Then the
command is ended, politely first. Processes that it leaves behind become children of the guard (Linux:
PR_SET_CHILD_SUBREAPER), so they are found even in a session of their own and after the command has been killed.

There are two guards, one inside the other: `modelkit → guard → guard → command`. Each ends everything when the other
has been killed, the outer one because the orphans become its children, the inner one because its standard input ends.
Should all three be killed at once, the kernel ends the command itself (PR_SET_PDEATHSIG).

Tidying up after a command that has ended may take seconds. That it has ended is told at once: its exit code is written
to the file descriptor FD, which is closed where a guard ends otherwise.

A command that leaves files behind, sockets for example, finds in the environment variable NAME a folder for them, which
is deleted with it.

A guard exits with the command's exit code, or 128 + N where signal N ended it. Standard library only, and the -S and
-I of Python: it starts in 10 ms. Linux only.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_INNER = "--inner"
_TELL = "--tell"
_SCRATCH = "--scratch"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# How long a command that is told to end may take to end its workers; an outer guard waits for the inner one.
_POLITE_S = 8.0
_POLITE_OUTER_S = 12.0
# How long what it has left behind may take.
_LEFTOVERS_S = 2.0
_POLL_S = 0.02
_PARENT_CHECK_S = 1.0
_NOT_FOUND = 127

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> int:
    """Run the command until it ends or standard input does."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_fd = _wake_on_child_exit()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        # These reach modelkit too, which decides. Handlers, for SIG_IGN would be inherited by the command.
        signal.signal(number, lambda *_: None)
    is_inner = arguments[0] == _INNER
    scratch_dir, arguments = _make_scratch(arguments)
    tell_fd, command = _read_tell(arguments[1:] if is_inner else arguments)
    if not is_inner:
        command = [sys.executable, "-IS", __file__, _INNER, *arguments]
    try:
        return _run(command, wake_fd, tell_fd, is_inner=is_inner)
    finally:
        if scratch_dir is not None:
            _delete(scratch_dir)


def _run(command: list[str], wake_fd: int, tell_fd: int | None, *, is_inner: bool) -> int:
    try:
        child = subprocess.Popen(  # noqa: S603 - the command is the engine that config.yaml names
            command,
            stdin=subprocess.DEVNULL if is_inner else subprocess.PIPE,
            start_new_session=True,
            pass_fds=() if is_inner or tell_fd is None else (tell_fd,),
            preexec_fn=_die_with_parent if is_inner else None,  # noqa: PLW1509 - there are no threads here
        )
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return _NOT_FOUND
    if tell_fd is not None and not is_inner:
        os.close(tell_fd)  # the inner one tells; its end is then the end of what can be told
    _wait_for_an_end(child, wake_fd)
    code = child.poll()
    if code is not None and tell_fd is not None and is_inner:
        _tell(tell_fd, _exit_code(code))
    if code is None:
        _end_politely(child, _POLITE_S if is_inner else _POLITE_OUTER_S)
    _end_leftovers()
    return _exit_code(child.wait() if code is None else code)


def _make_scratch(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Make the folder for what the command leaves behind, if one is asked for; return it, and the other arguments."""
    if _SCRATCH not in arguments[:3]:
        return None, arguments
    at = arguments.index(_SCRATCH)
    # Short, for the path of a socket has 107 characters; and nobody else's to look into.
    folder = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"modelkit-{os.getpid()}")  # noqa: PTH118, S108
    try:
        os.mkdir(folder, 0o700)  # noqa: PTH102 - one name, made by nobody but us
    except OSError:
        return None, [*arguments[:at], *arguments[at + 2 :]]  # the command uses its own default
    os.environ[arguments[at + 1]] = folder
    return folder, [*arguments[:at], *arguments[at + 2 :]]


def _delete(folder: str) -> None:
    import shutil  # not before it is needed: a guard starts with each engine

    shutil.rmtree(folder, ignore_errors=True)


def _read_tell(arguments: list[str]) -> tuple[int | None, list[str]]:
    """Return the file descriptor to tell the end on, if there is one, and the command."""
    if arguments[0] == _TELL:
        return int(arguments[1]), arguments[2:]
    return None, arguments


def _exit_code(code: int) -> int:
    """Return the exit code for Popen's: 128 + N where signal N ended the command."""
    return code if code >= 0 else 128 - code


def _tell(tell_fd: int, code: int) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(tell_fd, str(code).encode())
    os.close(tell_fd)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _wake_on_child_exit() -> int:
    """Return a file descriptor that becomes readable when a child ends."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    return read_fd


def _wait_for_an_end(child: "subprocess.Popen[bytes]", wake_fd: int) -> None:
    """Wait until the command has ended, or standard input, or the parent: a fork of it may hold the pipe open."""
    parent = os.getppid()
    while child.poll() is None and os.getppid() == parent:
        ready, _, _ = select.select([0, wake_fd], [], [], _PARENT_CHECK_S)
        if wake_fd in ready:
            os.read(wake_fd, 4096)
            _collect_adopted(child.pid)
        if 0 in ready and not os.read(0, 4096):
            return


def _end_politely(child: "subprocess.Popen[bytes]", timeout_s: float) -> None:
    """Tell the command to end, and wait: it knows best how to end its workers."""
    if child.stdin is not None:
        child.stdin.close()
    child.terminate()
    try:
        child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _end_leftovers() -> None:
    """End what is still there: SIGTERM, then SIGKILL until nothing is left."""
    kill_from = time.monotonic() + _LEFTOVERS_S
    told: set[int] = set()
    while pids := _descendants():
        overdue = time.monotonic() > kill_from
        for pid in pids if overdue else set(pids) - told:
            _signal(pid, signal.SIGKILL if overdue else signal.SIGTERM)
        told.update(pids)
        _collect_adopted(0)
        time.sleep(_POLL_S)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _collect_adopted(main_pid: int) -> None:
    """Collect children that have ended; but `main_pid`, whose exit code Popen collects."""
    try:
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == main_pid:
                return
            os.waitpid(ended.si_pid, 0)
    except ChildProcessError:
        pass


def _descendants() -> list[int]:
    """Return the processes below this one; those that have ended and wait to be collected are left out."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state not in "ZX":
            parents[int(entry.name)] = int(parent)
    found: list[int] = []
    level = {os.getpid()}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found += level
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
