"""The guard with real processes: whatever is killed, nothing of the command stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

GUARD = Path(__file__).resolve().parents[3] / "sdk" / "modelkit" / "engines" / "_guard.py"
# Prints its own pid and that of a worker in a session of its own, then sleeps.
COMMAND = """
import os, signal, subprocess, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(os.getpid(), worker.pid, flush=True)
time.sleep(600)
"""


class Guarded:
    def __init__(self, *arguments):
        self.guard = subprocess.Popen(
            [sys.executable, "-IS", str(GUARD), sys.executable, "-c", COMMAND, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.guard.stdout is not None
        self.main, self.worker = map(int, self.guard.stdout.readline().split())
        self.inner = parent_of(self.main)
        assert parent_of(self.inner) == self.guard.pid

    def all_gone(self, timeout_s=5.0):
        deadline = time.monotonic() + timeout_s
        while any(map(is_alive, (self.main, self.worker, self.inner, self.guard.pid))):
            self.guard.poll()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


@pytest.fixture
def guarded(request):
    started = Guarded(*getattr(request, "param", ()))
    yield started
    started.guard.stdin.close()
    started.guard.stdout.close()
    started.guard.wait(20)


def stat(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent_of(pid):
    return int(stat(pid)[1])


def is_alive(pid):
    try:
        return stat(pid)[0] not in "ZX"
    except OSError:
        return False


def test_the_end_of_standard_input_ends_everything(guarded):
    guarded.guard.stdin.close()
    assert guarded.all_gone()
    assert guarded.guard.wait() == 128 + signal.SIGTERM


@pytest.mark.parametrize("guarded", [["stubborn"]], indirect=True)
def test_a_command_that_ignores_sigterm_is_killed(guarded):
    guarded.guard.stdin.close()
    assert guarded.all_gone(timeout_s=11)


@pytest.mark.parametrize("victim", ["guard", "inner", "main"])
def test_whatever_is_killed_nothing_stays(guarded, victim):
    pid = guarded.guard.pid if victim == "guard" else getattr(guarded, victim)
    os.kill(pid, signal.SIGKILL)
    assert guarded.all_gone(timeout_s=11)


def test_the_command_is_told_when_all_guards_are_killed_at_once(guarded):
    os.kill(guarded.guard.pid, signal.SIGSTOP)
    os.kill(guarded.inner, signal.SIGKILL)
    os.kill(guarded.guard.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_alive(guarded.main) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(guarded.main)
    os.kill(guarded.worker, signal.SIGKILL)  # nobody is left to end it


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_of_the_terminal_are_left_to_modelkit(guarded, number):
    os.kill(guarded.guard.pid, number)
    os.kill(guarded.inner, number)
    time.sleep(0.2)
    assert is_alive(guarded.main)
    assert is_alive(guarded.guard.pid)


def test_killing_the_parent_ends_everything_even_when_a_fork_of_it_holds_the_pipe():
    script = f"""
import os, subprocess, sys, time
guard = subprocess.Popen([sys.executable, "-IS", {str(GUARD)!r}, sys.executable, "-c", {COMMAND!r}],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
print(guard.stdout.readline().decode().strip(), flush=True)
fork = os.fork()
if fork: print(fork, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    main, worker = map(int, parent.stdout.readline().split())
    fork = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 8
    while (is_alive(main) or is_alive(worker)) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(fork, signal.SIGKILL)
    parent.stdout.close()
    assert not is_alive(main)
    assert not is_alive(worker)


@pytest.mark.parametrize(
    ("code", "expected"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), ("", 0)]
)
def test_the_exit_code_is_the_commands(code, expected):
    with subprocess.Popen(
        [sys.executable, "-IS", str(GUARD), sys.executable, "-c", code], stdin=subprocess.PIPE
    ) as guard:
        assert guard.wait(10) == expected


def test_a_command_that_does_not_exist_is_named(capfd):
    with subprocess.Popen(
        [sys.executable, "-IS", str(GUARD), "no-such-program"], stdin=subprocess.PIPE
    ) as guard:
        assert guard.wait(10) == 127
    assert "cannot run no-such-program: No such file or directory" in capfd.readouterr().err


def test_it_imports_nothing_slow():
    """It starts with each engine, and its time is the engine's."""
    with subprocess.Popen(
        [sys.executable, "-IS", "-X", "importtime", str(GUARD), "/bin/true"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as guard:
        lines = guard.stderr.read().splitlines()
        assert guard.wait(20) == 0
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert "subprocess" in imported
    assert imported.isdisjoint({"asyncio", "shutil", "tempfile", "json", "logging", "typing", "modelkit"})


@pytest.mark.parametrize("victim", ["guard", "command", "nobody"])
def test_what_a_command_leaves_in_its_scratch_folder_is_deleted_with_it(tmp_path, victim):
    code = "import os, time; print(os.getpid(), os.environ['SOCKETS'], flush=True); "
    code += "open(os.environ['SOCKETS'] + '/left', 'w').close(); time.sleep(600)"
    guard = subprocess.Popen(
        [sys.executable, "-IS", str(GUARD), "--scratch", "SOCKETS", sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    pid, folder = guard.stdout.readline().decode().split()
    assert Path(folder).parent == tmp_path
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    if victim == "command":
        os.kill(int(pid), signal.SIGKILL)
    elif victim == "guard":
        os.kill(parent_of(int(pid)), signal.SIGKILL)
    guard.stdin.close()
    guard.stdout.close()
    guard.wait(20)
    assert not list(tmp_path.iterdir())
