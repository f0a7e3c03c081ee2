"""What an engine's server prints: kept in a file of bounded size, the end of it in memory for error messages."""

import asyncio
import contextlib
import logging
import os
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["Deviation", "EngineLog", "Stage"]

_log = logging.getLogger("modelkit.engine")

_TAIL_LINES = 400
_MAX_LINE_BYTES = 64 * 1024
_MAX_FILE_BYTES = 32 * 1024 * 1024
_KEPT_S = 14 * 24 * 3600.0
_READ_BYTES = 64 * 1024
_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Stage:
    """A phase of an engine's start, recognised by what it prints."""

    name: str
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """Something else than the engine was told to do, recognised by what it prints while it starts.

    `message` says what it does, `cure` how it is told so. Where `is_fatal` the start fails: what the user asked for by
    name would be measured and served under that name, and be something else. Otherwise it is a warning.
    """

    pattern: re.Pattern[str]
    message: str
    cure: str
    is_fatal: bool


class EngineLog:
    """Reads an engine's output to its end. One run of the engine, one EngineLog.

    `path` is the file of this run; that of the run before, or the part before the last 32 MiB, stays beside it as
    `.previous.log`. Only its owner can read it, for engines print what they are asked. A file that cannot be written is
    given up: an engine must never wait for its log. `secret`, if there is one, is written as ***.
    """

    def __init__(
        self,
        path: Path,
        stages: Sequence[Stage],
        on_stage: Callable[[str], None],
        *,
        deviations: Sequence[Deviation] = (),
        on_deviation: Callable[[Deviation, str], None] = lambda _, __: None,
        secret: str = "",
    ) -> None:
        self.path = path
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        # Stages come in order; those passed, and all of them once the engine is ready, are no longer looked for.
        self._stages = list(stages)
        self._on_stage = on_stage
        # Those not heard yet: engines say some things twice.
        self._deviations = list(deviations)
        self._on_deviation = on_deviation
        self._secret = secret
        self._file: IO[str] | None = None
        self._num_bytes = 0

    def start_is_over(self) -> None:
        """Look for stages and deviations no more: a running engine prints a line a request."""
        self._stages.clear()
        self._deviations.clear()

    async def read(self, stream: asyncio.StreamReader) -> None:
        """Read until the engine, and everything it started, has closed its output."""
        self._open()
        try:
            async for line, is_final in _lines(stream):
                self._find_stage(line)
                if is_final:
                    if self._secret:
                        line = line.replace(self._secret, "***")  # noqa: PLW2901 - the line as it may be shown
                    self._find_deviation(line)
                    self.tail.append(line)
                    self._write(line)
                    _log.debug("%s", line)
        finally:
            self._give_up_file()

    def _find_stage(self, line: str) -> None:
        for number, stage in enumerate(self._stages):
            if stage.pattern.search(line):
                del self._stages[: number + 1]
                self._on_stage(stage.name)
                return

    def _find_deviation(self, line: str) -> None:
        for deviation in self._deviations:
            if deviation.pattern.search(line):
                self._deviations.remove(deviation)
                self._on_deviation(deviation, line)
                return

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
            self.path.parent.chmod(_FOLDER_MODE)  # also where it is older than this rule
            _remove_old(self.path.parent)
            if self.path.exists():
                self.path.replace(self.path.with_suffix(".previous.log"))
            opened = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE)
            self._file = os.fdopen(opened, "w", encoding="utf-8", errors="replace")
            self._num_bytes = 0
        except OSError as error:
            _log.warning("the engine's output is not kept: %s", error)

    def _write(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            _log.warning("the engine's output is kept no longer: %s", error)
            self._give_up_file()
            return
        self._num_bytes += len(line) + 1
        if self._num_bytes > _MAX_FILE_BYTES:
            self._give_up_file()
            self._open()

    def _give_up_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[tuple[str, bool]]:
    """Yield each line that is not empty, with False for one that a progress bar is about to draw again."""
    rest = b""
    while block := await stream.read(_READ_BYTES):
        rest += block
        start = 0
        for end in _LINE_END.finditer(rest):
            if end.group() == b"\r" and end.end() == len(rest):
                break  # half of a \r\n, perhaps
            if line := _text(rest[start : end.start()]):
                yield line, end.group() != b"\r"
            start = end.end()
        rest = rest[start:]
        if len(rest) > _MAX_LINE_BYTES:
            yield _text(rest), True
            rest = b""
    if line := _text(rest):
        yield line, True


def _text(raw: bytes) -> str:
    return raw[:_MAX_LINE_BYTES].decode(errors="replace").rstrip().strip("\x00")


def _remove_old(log_dir: Path) -> None:
    """Remove logs that nothing has been written to for two weeks."""
    oldest = time.time() - _KEPT_S
    for path in log_dir.glob("*.log"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
