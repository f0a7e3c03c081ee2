"""When a failed call is tried again, and how long a call may take with all its tries. No transport, no clock to wait on."""

import math
import random
import time
from dataclasses import dataclass
from typing import Any

from modelkit.errors import CallError, UnavailableError, UsageError

__all__ = ["Attempts", "Deadline", "RetryPolicy", "checked_timeout"]

_FOREVER_S = 10 * 365 * 86_400.0  # longer than any call; the clocks of gRPC overflow not far beyond

_JITTER = 0.2  # spread of the backoff, as in gRPC's own retry design (proposal A6), so that callers do not march in step


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a call that found the server unavailable is tried, and the pauses between.

    Only UNAVAILABLE is tried again, only before the first byte of the response, and only where the model has certainly
    not seen the call: no connection came up, or the server refused it while loading or draining. A connection that is
    lost in mid-call, or a model that says UNAVAILABLE itself, leaves open what has been done already; such a call is
    tried again where `idempotent` promises that running a method twice does no harm.

    A pause the server asks for (google.rpc.RetryInfo) is kept, and none is begun that would end after the call's
    deadline.
    """

    max_attempts: int = 4
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    multiplier: float = 2.0
    idempotent: bool = False

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts}; 1 means that a call is tried once")
        if self.initial_backoff_s < 0 or self.max_backoff_s < 0 or self.multiplier < 1:
            raise ValueError("a backoff cannot be negative, and its multiplier is at least 1")

    def backoff_s(self, num_failures: int) -> float:
        """Return the pause after the given number of failures, jitter included."""
        backoff = min(self.initial_backoff_s * self.multiplier ** (num_failures - 1), self.max_backoff_s)
        return backoff * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads load, hides nothing


def checked_timeout(timeout_s: Any) -> float | None:
    """Return the seconds to wait, None for ever. Raises UsageError for what is no time to wait."""
    if timeout_s is None:
        return None
    try:
        seconds = math.nan if isinstance(timeout_s, (bool, str, bytes)) else float(timeout_s)
    except (TypeError, ValueError):
        seconds = math.nan
    if not seconds >= 0:
        raise UsageError(
            f"the timeout {timeout_s!r} is not a number of seconds from 0 up",
            cure="give seconds, such as 2.5; none, or infinity, waits without end",
        )
    return None if seconds > _FOREVER_S else seconds


class Deadline:
    """The moment a whole call must be done by; `timeout_s` None means never, as does infinity.

    Raises UsageError for what is no time to wait.
    """

    __slots__ = ("_at", "timeout_s")

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = checked_timeout(timeout_s)
        self._at = None if self.timeout_s is None else time.monotonic() + self.timeout_s

    def remaining_s(self) -> float | None:
        """Return the seconds left, never below 0; None where there is no end."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())


class Attempts:
    """The tries of one call: asked after each failure whether, and after what pause, to try again."""

    __slots__ = ("_deadline", "_idempotent", "_num_failures", "_policy")

    def __init__(self, policy: RetryPolicy | None, deadline: Deadline, *, idempotent: bool = False) -> None:
        self._policy = policy
        self._deadline = deadline
        self._idempotent = idempotent or (policy is not None and policy.idempotent)
        self._num_failures = 0

    def pause_s(self, failure: CallError, *, elsewhere: bool = False) -> float | None:
        """Return the seconds to wait before the next try; None where the failure is final.

        Where the next try may go `elsewhere`, what this server asks for is not waited for the first time.
        """
        self._num_failures += 1
        if self._policy is None or not isinstance(failure, UnavailableError):
            return None
        if failure.executed and not self._idempotent:
            return None
        if self._num_failures >= self._policy.max_attempts:
            return None
        pause = self._policy.backoff_s(self._num_failures)
        if not elsewhere or self._num_failures > 1:
            pause = max(pause, failure.retry_after_s or 0.0)
        remaining = self._deadline.remaining_s()
        return pause if remaining is None or pause < remaining else None
