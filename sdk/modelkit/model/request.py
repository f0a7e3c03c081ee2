"""What a model may know about the call it is answering, and what it reports back beside the result."""

import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from modelkit.errors import CancelledCallError

__all__ = ["REQUEST", "Request", "Usage", "current_request"]


@dataclass(slots=True)
class Usage:
    """Tokens of one call so far. `cached_tokens` are those of the prompt found in a prefix cache."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    def totals(self) -> tuple[int, int, int]:
        """Return the three numbers as they are now."""
        return self.prompt_tokens, self.output_tokens, self.cached_tokens


@dataclass(slots=True, eq=False)
class Request:
    """One call, as the model sees it. `deadline` is a `time.monotonic()` value, None where the caller set none.

    The model sets `usage`, `response_metadata` and `finish_reason`. `progress` is the server's own: the usage as it was
    when the last item of a stream was yielded, for a generator in a thread may be ahead of what its caller has got.
    """

    id: str = ""
    method: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    deadline: float | None = None
    usage: Usage = field(default_factory=Usage)
    response_metadata: dict[str, str] = field(default_factory=dict)
    finish_reason: str = ""
    cancelled: bool = False
    progress: tuple[int, int, int] = (0, 0, 0)

    def time_remaining_s(self) -> float | None:
        """Return the seconds left until the caller gives up, never below 0; None where it waits for ever."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def raise_if_cancelled(self) -> None:
        """Stop here if the caller has gone: for synchronous code that computes for long between two yields."""
        if self.cancelled:
            raise CancelledCallError("the caller went away")


REQUEST: ContextVar[Request] = ContextVar("modelkit_request")


def current_request() -> Request:
    """Return the call being answered; outside of one (a unit test calling a method directly) an empty Request."""
    return REQUEST.get(None) or Request()
