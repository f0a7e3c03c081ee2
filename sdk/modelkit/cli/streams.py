"""Output that outlives its readers: a server goes on when its terminal, pipe or disk no longer takes what it says."""

import io
import os
import sys
from contextlib import suppress
from typing import Any

__all__ = ["outlive_readers"]

_NAMES = ("stdin", "stdout", "stderr")


def outlive_readers() -> None:
    """Make stdout and stderr drop what cannot be written, and open what was closed at the start onto nothing.

    Not only the notes of modelkit go there: the log does, what a model prints, and what a child process says. A
    descriptor that stays closed would be given to the next file or socket, which then gets all of that.
    """
    for number, name in enumerate(_NAMES):
        if getattr(sys, f"__{name}__") is None and not _is_open(number):
            _open_nothing(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - open as long as the process is
        elif stream is getattr(sys, f"__{name}__") and stream.fileno() == number:
            with suppress(OSError):
                stream.flush()
            setattr(sys, name, _tolerant(stream))


def _tolerant(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    raw = _DroppingFile(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=True,  # whoever follows the log sees what a model prints when it prints it
    )


class _DroppingFile(io.FileIO):
    """Drops what cannot be written: nobody reads it any more, the disk is full, the terminal is gone or stopped."""

    def write(self, data: Any, /) -> int:
        with suppress(OSError):
            written = super().write(data)
            if written is not None:
                return written
        return memoryview(data).nbytes


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _open_nothing(number: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(opened, number)
        os.close(opened)
