"""`serve --reload`: the server runs in a child process that is replaced when a file of the model folder changes."""

import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["serve_and_reload"]

# Weights and other data may be large and are read once; these are the files that people edit.
_EXTENSIONS = (".yaml", ".yml", ".json", ".txt", ".jinja", ".j2", ".toml")
_STOP_TIMEOUT_S = 60.0


def serve_and_reload(command: Sequence[str], model_dir: Path, on_change: Callable[[Path], None]) -> int:
    """Run `command` until SIGINT or SIGTERM, anew after each change. Returns the last child's exit code.

    A child that fails (broken Python, a load that raised) has said why; the next change starts another.
    """
    from watchfiles import PythonFilter, watch

    stop = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    child = subprocess.Popen(command)  # noqa: S603 - our own command line
    try:
        for changes in watch(
            model_dir, watch_filter=PythonFilter(extra_extensions=_EXTENSIONS), stop_event=stop
        ):
            on_change(Path(min(path for _, path in changes)))
            _stop(child)
            child = subprocess.Popen(command)  # noqa: S603 - our own command line
    finally:
        code = _stop(child)
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code


def _stop(child: "subprocess.Popen[bytes]") -> int:
    """End the child as Ctrl-C would; one that does not drain in time is killed."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        return child.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
