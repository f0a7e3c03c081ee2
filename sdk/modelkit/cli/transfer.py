"""How a transfer looks: bars on a terminal, a line every few seconds elsewhere.

Both hear what `modelkit.progress` tells, from several threads; `console.transfer` chooses between them.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from modelkit.progress import size_text

__all__ = ["Bars", "Lines"]

LINE_INTERVAL_S = 5.0
# More files than this at a time would scroll the terminal.
_MAX_BARS = 8


def _seconds(num_s: float) -> str:
    if num_s < 100:  # noqa: PLR2004 - two digits
        return f"{num_s:.0f} s"
    minutes, seconds = divmod(round(num_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


class _Count:
    """What a transfer amounts to, over everything that was begun."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.started_at = time.monotonic()
        self.num_files = self.num_finished = 0
        self.total_bytes = self.done_bytes = 0

    def begin(self, num_files: int, total_bytes: int) -> None:
        with self.mutex:
            if not self.num_files:
                self.started_at = time.monotonic()
            self.num_files += num_files
            self.total_bytes += total_bytes

    def advance(self, num_bytes: int) -> None:
        with self.mutex:
            self.done_bytes += num_bytes

    def finish(self) -> None:
        with self.mutex:
            self.num_finished += 1

    @property
    def elapsed_s(self) -> float:
        return max(time.monotonic() - self.started_at, 1e-3)

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return max(self.done_bytes, 0) / self.elapsed_s

    def summary(self) -> str:
        """Say what there was to do, once it is done; "" where there was nothing."""
        if not self.num_finished:
            return ""
        files = "file" if self.num_finished == 1 else "files"
        return (
            f"{self.num_finished} {files}, {size_text(max(self.done_bytes, 0))} "
            f"in {_seconds(self.elapsed_s)} ({size_text(self.rate)}/s)"
        )


class Lines:
    """Progress as lines, where one cannot replace another."""

    def __init__(self, title: str, note: Callable[[str], None]) -> None:
        self._title = title
        self._note = note
        self._count = _Count()
        self._said_at = time.monotonic()

    def begin(self, num_files: int, total_bytes: int) -> None:
        """Say how much there is to do."""
        self._count.begin(num_files, total_bytes)
        files = "file" if num_files == 1 else "files"
        self._note(f"{self._title}: {num_files} {files}, {size_text(total_bytes)}")

    def started(self, name: str, size_bytes: int, done_bytes: int = 0) -> None:
        """Say which file goes on from an earlier attempt."""
        if done_bytes:
            self._note(f"  {name} goes on at {size_text(done_bytes)} of {size_text(size_bytes)}")

    def advanced(self, name: str, num_bytes: int) -> None:  # noqa: ARG002 - the lines are about the whole
        """Count, and say so every few seconds."""
        count = self._count
        count.advance(num_bytes)
        now = time.monotonic()
        with count.mutex:
            if now - self._said_at < LINE_INTERVAL_S:
                return
            self._said_at = now
        left = max(count.total_bytes - count.done_bytes, 0)
        remaining = f", {_seconds(left / count.rate)} left" if count.rate else ""
        self._note(
            f"  {size_text(count.done_bytes)} of {size_text(count.total_bytes)}, "
            f"{size_text(count.rate)}/s{remaining}"
        )

    def finished(self, name: str) -> None:  # noqa: ARG002
        """Count a file."""
        self._count.finish()

    def end(self) -> str:
        """Stop; return the summary."""
        return self._count.summary()


class Bars:
    """Progress as bars: one for the whole, and one for each file under way."""

    def __init__(self, title: str, on_begin: Callable[[], None]) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns: list[Any] = [TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn()]
        columns += [TransferSpeedColumn(), TimeRemainingColumn(compact=True)]
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._title = title
        self._on_begin = on_begin
        self._count = _Count()
        self._whole: Any = None
        self._bars: dict[str, Any] = {}

    def begin(self, num_files: int, total_bytes: int) -> None:
        """Show the bar of the whole, from the moment that there is something to do."""
        self._count.begin(num_files, total_bytes)
        if self._whole is None:
            self._on_begin()
            self._whole = self._progress.add_task(self._title, total=total_bytes)
            self._progress.start()
        self._progress.update(self._whole, total=self._count.total_bytes)

    def started(self, name: str, size_bytes: int, done_bytes: int = 0) -> None:
        """Show a file."""
        with self._count.mutex:
            if name in self._bars:
                self._progress.update(self._bars[name], completed=done_bytes)
            elif len(self._bars) < _MAX_BARS:
                self._bars[name] = self._progress.add_task(
                    f"  {name}", total=size_bytes, completed=done_bytes
                )

    def advanced(self, name: str, num_bytes: int) -> None:
        """Move a file's bar, and that of the whole."""
        self._count.advance(num_bytes)
        with self._count.mutex:  # a bar that is taken away meanwhile cannot be moved
            bar = self._bars.get(name)
            if bar is not None:
                self._progress.advance(bar, num_bytes)
        if self._whole is not None:
            self._progress.advance(self._whole, num_bytes)

    def finished(self, name: str) -> None:
        """Take a file's bar away."""
        self._count.finish()
        with self._count.mutex:
            bar = self._bars.pop(name, None)
            if bar is not None:
                self._progress.remove_task(bar)

    def end(self) -> str:
        """Take all bars away; return the summary."""
        self._progress.stop()
        return self._count.summary()
