"""Follows what the replicas of a deployment write, on whatever compute: those that come later too.

A stream may break while its replica goes on, and a replica may be started again: both are read on from where their lines
have ended. What fails again and again is said, and not tried for ever.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from modelkit.deploy.base import LogLine
from modelkit.errors import DeployError, ModelkitError

__all__ = ["Read", "Source", "follow"]

_LOOK_AGAIN_S: Final = 1.0
_MAX_FAILURES: Final = 10
# A silent stream that was open for so long has not failed at once.
_GOOD_FOR_S: Final = 60.0
_END_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A replica whose lines can be read. `run` tells one start of its process from the next."""

    key: str
    replica: str
    run: str
    is_running: bool


# Yields a replica's lines as they come, each with its position, from after a position: all of them for "". Ends with the
# replica's process, where the connection breaks, or soon after the event was set.
Read = Callable[[Source, str, threading.Event], Iterator[tuple[str, str]]]


def follow(
    find: Callable[[], Sequence[Source]], read: Read, *, look_again_s: float = _LOOK_AGAIN_S
) -> Iterator[LogLine]:
    """Yield what all replicas write until the caller stops.

    Raises what `find` or `read` has raised, once it has many times in a row: a compute may be away for a moment.
    """
    lines: queue.SimpleQueue[LogLine] = queue.SimpleQueue()
    readers: dict[str, _Reader] = {}
    sources = find()
    num_failures = 0
    try:
        while True:
            for source in sources:
                known = readers.get(source.key)
                if known is None or known.has_to_go_on(source):
                    readers[source.key] = _Reader(source, read, lines, known)
                    readers[source.key].start()
            deadline = time.monotonic() + look_again_s
            while (left := deadline - time.monotonic()) > 0:
                with suppress(queue.Empty):
                    yield lines.get(timeout=left)
            try:
                sources = find()
                num_failures = 0
            except DeployError:
                num_failures += 1
                if num_failures >= _MAX_FAILURES:
                    raise
    finally:
        for reader in readers.values():
            reader.is_over.set()
        for reader in readers.values():
            reader.join(_END_S)


class _Reader(threading.Thread):
    """Reads one stream of a replica to its end, from where the one before has come to."""

    def __init__(
        self,
        source: Source,
        read: Read,
        lines: "queue.SimpleQueue[LogLine]",
        before: "_Reader | None",
    ) -> None:
        super().__init__(daemon=True, name=f"modelkit-logs-{source.replica}")
        self._source = source
        self._read = read
        self._lines = lines
        self.position: str = "" if before is None else before.position
        self.num_failures: int = 0 if before is None else before.num_failures
        self._failure: Exception | None = None
        self.is_over = threading.Event()

    def has_to_go_on(self, source: Source) -> bool:
        """Tell whether this has ended and there is more to read: of a stream that broke, or of a process after it.

        Raises what has ended it, once it ends all of them.
        """
        if self.is_alive():
            return False
        if self._failure is not None and source.is_running and self.num_failures >= _MAX_FAILURES:
            raise _as_error(source, self._failure)
        return source.is_running or source.run != self._source.run or self._failure is not None

    def run(self) -> None:
        opened_at = time.monotonic()
        try:
            for position, text in self._read(self._source, self.position, self.is_over):
                self.position = position
                self.num_failures = 0
                self._lines.put(LogLine(replica=self._source.replica, text=text))
            self.num_failures = 0
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again and then raised
            self._failure = error
            self.num_failures = 1 + (self.num_failures if time.monotonic() - opened_at < _GOOD_FOR_S else 0)
        finally:
            self.is_over.set()


def _as_error(source: Source, failure: Exception) -> ModelkitError:
    if isinstance(failure, ModelkitError):
        return failure
    return DeployError(
        f"what {source.replica} writes cannot be read: {failure}", cure="run the command again in a moment"
    )
