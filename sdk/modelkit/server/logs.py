"""The server's log: one line an event, as text for people or JSON for programs, each with its call's request id.

The author's own logging goes through the same handler, so a line written inside a method carries the id too.
"""

import json
import logging
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, Literal, TextIO

from modelkit.errors import CallError, InternalError
from modelkit.model import REQUEST, Request

__all__ = ["REQUEST_ID_HEADER", "configure_logging", "log_call", "new_request_id", "request_id_from"]

_log = logging.getLogger("modelkit.server")

REQUEST_ID_HEADER = "x-request-id"
_MAX_REQUEST_ID_CHARS = 128


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
    handler = logging.StreamHandler(stream or sys.stderr)
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
