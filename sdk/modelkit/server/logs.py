"""The server's log: one line an event, as text for people or JSON for programs, each with its call's request id.

The author's own logging goes through the same handler, so a line written inside a method carries the id too.
"""

import contextlib
import json
import logging
import os
import random
import select
import sys
import time
from pathlib import Path
from typing import Any, Literal, TextIO

from modelkit.errors import CallError, InternalError
from modelkit.model import REQUEST, Request

__all__ = [
    "REQUEST_ID_HEADER",
    "KeptWarnings",
    "configure_logging",
    "log_call",
    "new_request_id",
    "request_id_from",
]

_log = logging.getLogger("modelkit.server")

REQUEST_ID_HEADER = "x-request-id"
_MAX_REQUEST_ID_CHARS = 128
# A pipe that is writable takes 4096 bytes (PIPE_BUF), and a character has 4 at most.
_PIECE_CHARS = 1024
_GRACE_MS = 50
# What is kept goes into one line of JSON, and readers of lines usually take 64 KiB: a character is up to 12 there.
_MAX_WARNINGS = 8
_MAX_WARNING_CHARS = 500


_random = random.Random()  # noqa: S311 - names, not secrets; os.urandom would give the GIL away on every call


def new_request_id() -> str:
    """Return 16 random hexadecimal digits."""
    return f"{_random.getrandbits(64):016x}"


def request_id_from(header: str | None) -> str:
    """Return the id that a caller chose, cut where it is too long, or a new one where it chose none."""
    return header[:_MAX_REQUEST_ID_CHARS] if header else new_request_id()


def log_call(call: Request, code: str, started: float, error: CallError | None = None) -> None:
    """Log the end of a call: one that succeeds at debug level, for a busy server has thousands a second.

    Where the model raised something it did not mean to, its traceback is logged too; the caller never gets it.
    `started` is a `time.perf_counter()` value.
    """
    if isinstance(error, InternalError) and error.__cause__ is not None:
        _log.error("method '%s' failed", call.method, exc_info=error.__cause__)
    level = logging.DEBUG if code in ("OK", "CANCELLED") else logging.WARNING
    if not _log.isEnabledFor(level):
        return
    fields = {
        "method": call.method,
        "code": code,
        "duration_ms": round((time.perf_counter() - started) * 1000, 3),
        "prompt_tokens": call.usage.prompt_tokens,
        "output_tokens": call.usage.output_tokens,
    }
    reason = f": {error.message}" if error else ""
    _log.log(level, "%s %s%s", call.method, code, reason, extra={"fields": fields})


def configure_logging(
    level: int = logging.INFO,
    style: Literal["text", "json"] = "text",
    stream: TextIO | None = None,
    author_dir: Path | None = None,
) -> None:
    """Send log records to `stream` (stderr): those of modelkit and of the files in `author_dir` from `level` up.

    Of other libraries, warnings. An author's lines are known by their file: their logger may have any name.
    """
    handler = _UnblockedHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter())
    own_files = () if author_dir is None else (f"{author_dir.resolve()}{os.sep}", f"{author_dir}{os.sep}")

    def is_meant_to_be_seen(record: logging.LogRecord) -> bool:
        return (
            record.levelno >= logging.WARNING
            or record.name.partition(".")[0] == "modelkit"
            or record.pathname.startswith(own_files)
        )

    handler.addFilter(is_meant_to_be_seen)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


class KeptWarnings(logging.Handler):
    """Keeps what is warned of from now until `end`, each text once: of a start, for whoever waits for it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: dict[str, None] = {}
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of a record."""
        with contextlib.suppress(Exception):  # of one that has no text, the log itself tells
            if len(self._texts) < _MAX_WARNINGS:
                self._texts[record.getMessage()[:_MAX_WARNING_CHARS]] = None

    def end(self) -> list[str]:
        """Return what was kept, and keep no more."""
        logging.getLogger().removeHandler(self)
        return list(self._texts)


class _UnblockedHandler(logging.StreamHandler[TextIO]):
    """Leaves lines out while nobody reads them, and says how many once somebody does.

    A pipe that nobody empties takes 64 KiB; a terminal takes nothing after Ctrl-S. A write that waits for them would stop
    the event loop, and every call with it.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._num_left_out = 0
        self._poll: select.poll | None = None
        with contextlib.suppress(OSError, ValueError):  # a stream in memory
            descriptor = stream.fileno()
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record where that does not wait."""
        try:
            text = self.format(record) + self.terminator
            if self._num_left_out and self._is_writable():
                num, self._num_left_out = self._num_left_out, 0
                self._write(f"{num} line{'s' * (num > 1)} of the log left out: nobody read them\n")
            if not (self._is_writable() and self._write(text)):
                self._num_left_out += 1
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - as every handler of logging
            self.handleError(record)

    def _write(self, text: str) -> bool:
        """Write a text in pieces that a pipe takes whole once it takes anything; False where the rest was left out."""
        for start in range(0, len(text), _PIECE_CHARS):
            if start and not self._is_writable():
                return False
            self.stream.write(text[start : start + _PIECE_CHARS])
            self.stream.flush()
        return True

    def _is_writable(self) -> bool:
        """Give a reader that is a little behind a moment, but not for every line."""
        return self._poll is None or bool(self._poll.poll(0 if self._num_left_out else _GRACE_MS))


def _request_id() -> str:
    request = REQUEST.get(None)
    return request.id if request is not None else ""


class _TextFormatter(logging.Formatter):
    """`12:00:01.234 warning [9f86d081884c7d65] generate INVALID_ARGUMENT: ... duration_ms=1.2`."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        request_id = _request_id()
        identity = f" [{request_id}]" if request_id else ""
        fields: dict[str, Any] = getattr(record, "fields", {})
        shown = "".join(
            f" {key}={value}" for key, value in fields.items() if key not in ("method", "code") and value
        )
        line = f"{clock}.{int(record.msecs):03d} {record.levelname.lower()}{identity} {record.getMessage()}{shown}"
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := _request_id():
            entry["request_id"] = request_id
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)
