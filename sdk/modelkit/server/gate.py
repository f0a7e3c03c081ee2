"""Admission: how many calls run at once, how many wait, and what the next one is told."""

import asyncio
from collections import deque
from contextlib import suppress

from modelkit.errors import OverloadedError

__all__ = ["Gate"]


class Gate:
    """Lets at most `max_concurrency` calls run and `max_queue` wait, in the order they came.

    A call enters with `try_enter()`, or `await enter()` where that says no, and leaves with `leave()`, once. All three
    belong to the event loop's thread.
    """

    def __init__(self, max_concurrency: int, max_queue: int) -> None:
        self.max_concurrency = max_concurrency
        self.max_queue = max_queue
        self.num_running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def num_waiting(self) -> int:
        """How many calls wait for one that runs to end."""
        return len(self._waiting)

    def try_enter(self) -> bool:
        """Enter at once if there is room. Cheaper than `enter`, which needs a coroutine."""
        if self.num_running >= self.max_concurrency:
            return False
        self.num_running += 1
        return True

    async def enter(self) -> None:
        """Enter, waiting for room if there is none. Raises OverloadedError where the queue is full."""
        if self.try_enter():
            return
        if len(self._waiting) >= self.max_queue:
            raise OverloadedError(
                f"the server is busy: {self.num_running} calls run and {len(self._waiting)} wait",
                cure="try again later, or raise server.max_concurrency or server.max_queue in config.yaml",
                retry_after_s=1.0,
                executed=False,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the turn came in the same moment as the cancellation: pass it on
            else:
                with suppress(ValueError):  # leave() may have passed it over already
                    self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """Make room: the call that has waited longest takes the place over."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.num_running -= 1
