"""Where a deployment's callers go: one shape, whatever compute it is on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["TIMEOUT_METADATA", "Endpoint", "Route", "told_timeout_s"]

# How a caller says its deadline where the compute's proxy hides it: the milliseconds that are left.
TIMEOUT_METADATA: Final = "x-modelkit-timeout-ms"
_MAX_DIGITS: Final = 15  # thousands of years; Python refuses to read thousands of digits


def told_timeout_s(metadata: Iterable[tuple[str, object]]) -> float | None:
    """Return the seconds that a caller's metadata say are left; None where they say none, or nothing that is a number."""
    told = next((value for key, value in metadata if key == TIMEOUT_METADATA), None)
    is_number = isinstance(told, str) and told.isdecimal() and len(told) <= _MAX_DIGITS
    return int(str(told)) / 1000 if is_number else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One way to a deployment; where there are several, each gets calls by its weight (a canary).

    `targets` are gRPC addresses (host:port), all as good as each other. `waiting` are those that hold a call while no
    replica runs. `metadata` has to go with each call.
    """

    targets: tuple[str, ...]
    waiting: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    weight: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where and how a deployment is called.

    `http_url` has OpenAI's API and the methods as JSON. With `tls` the connection is encrypted, trusting the PEM file
    `ca_path` where there is one. `carries_deadline` is False where the compute's proxy hides a call's deadline from the
    model: the client then says it in metadata too (TIMEOUT_METADATA). `refresh_s` is how long this answer holds, None
    for as long as the deployment lives.
    """

    routes: tuple[Route, ...]
    http_url: str | None = None
    tls: bool = False
    ca_path: str | None = None
    carries_deadline: bool = True
    refresh_s: float | None = None
