"""`serve --reload`: the server runs in a child process that is replaced when a file of the model folder changes."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["WATCHER_VARIABLE", "end_with_watcher", "serve_and_reload"]

# The descriptor, in the child, of a pipe that the watcher holds open as long as it lives.
WATCHER_VARIABLE = "MODELKIT_WATCHER_FD"

# Weights and other data may be large and are read once; these are the files that people edit.
_EXTENSIONS = (".yaml", ".yml", ".json", ".txt", ".jinja", ".j2", ".toml")
_STOP_TIMEOUT_S = 60.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_with_watcher() -> None:
    """In the child: end as at SIGTERM once the watcher is gone, however it went."""
    descriptor = int(os.environ.pop(WATCHER_VARIABLE))

    def wait() -> None:
        while os.read(descriptor, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="modelkit-watcher", daemon=True).start()


def serve_and_reload(
    command: Sequence[str], model_dir: Path, *, on_change: Callable[[Path], None], on_end: Callable[[], None]
) -> int:
    """Run `command` until SIGINT, SIGTERM or SIGHUP, anew after each change. Returns the last child's exit code.

    A child that fails (broken Python, a load that raised) has said why; then `on_end` is called, in a thread, and the
    next change starts another.
    """
    from watchfiles import PythonFilter, watch

    reloader = _Reloader(command, on_end)
    watch_filter = PythonFilter(extra_extensions=_EXTENSIONS)
    with reloader.handling_signals():
        try:
            for changes in watch(model_dir, watch_filter=watch_filter, stop_event=reloader.stop):
                on_change(Path(min(path for _, path in changes)))
                reloader.restart()
        finally:
            code = reloader.end()
    return code


class _Reloader:
    """The server's process, and the signals that are passed on to it.

    The child has a process group of its own: Ctrl-C in a terminal reaches every process of the group, and a server
    that got it twice, once more from here, would cancel its running calls instead of letting them end.
    """

    def __init__(self, command: Sequence[str], on_end: Callable[[], None]) -> None:
        self.stop = threading.Event()
        self._command = command
        self._on_end = on_end
        # Never written to: the child reads its end, and the watcher's own end closes with the watcher.
        self._pipe, self._held = os.pipe()
        self._child = self._start()

    def restart(self) -> None:
        """Replace the child, unless it is time to stop."""
        self.end()
        if not self.stop.is_set():
            self._child = self._start()

    def end(self) -> int:
        """End the child as Ctrl-C would and return its exit code; one that does not drain in time is killed."""
        self._ended_here.set()
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Stop at the first signal; pass later ones on, so that a second Ctrl-C cancels what still runs."""
        # `nohup` has SIGHUP ignored, and so it stays.
        is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        numbers = [number for number in _SIGNALS if number != signal.SIGHUP or not is_nohup]
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, *_: object) -> None:
        if self.stop.is_set() and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
        self.stop.set()

    def _start(self) -> "subprocess.Popen[bytes]":
        child = subprocess.Popen(  # noqa: S603 - our own command line
            self._command,
            process_group=0,
            pass_fds=(self._pipe,),
            env={**os.environ, WATCHER_VARIABLE: str(self._pipe)},
        )
        self._ended_here = threading.Event()
        threading.Thread(target=self._tell_of_end, args=(child, self._ended_here), daemon=True).start()
        return child

    def _tell_of_end(self, child: "subprocess.Popen[bytes]", ended_here: threading.Event) -> None:
        child.wait()
        if not ended_here.is_set() and not self.stop.is_set():
            self._on_end()
