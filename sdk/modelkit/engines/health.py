"""Notices an engine that is there but no longer works.

An engine's health route is not to be trusted: LMDeploy's server stays up when the worker behind it is dead, and others
have said yes while every request failed. So health is asked for by generating a token; but only where nothing else
tells: while answers flow nothing is asked.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from modelkit.errors import ModelkitError

__all__ = ["Patience", "Traffic", "wait_until_wedged"]


@dataclass(slots=True)
class Traffic:
    """What requests to an engine have met so far: counted by those who send them, read by those who watch."""

    num_received: int = 0  # pieces of answers
    num_failed: int = 0  # requests that failed by the engine's fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How soon an engine is asked for a sign of life, and how many times it may owe the answer."""

    check_s: float = 2.0
    idle_s: float = 60.0
    probe_timeout_s: float = 30.0
    num_failures: int = 3


async def wait_until_wedged(
    probe: Callable[[], Awaitable[None]], traffic: Traffic, patience: Patience
) -> str:
    """Return why the engine is given up, once it is.

    `probe` returns when a token has been generated. It runs after `idle_s` without an answer, and at once (`check_s`)
    after a failed request; an answer to anybody clears the record.
    """
    num_failures, quiet_s = 0, 0.0
    received, failed = traffic.num_received, traffic.num_failed
    while True:
        await asyncio.sleep(patience.check_s)
        flows, fails = traffic.num_received != received, traffic.num_failed != failed
        received, failed = traffic.num_received, traffic.num_failed
        quiet_s += patience.check_s
        if flows and not fails:
            num_failures, quiet_s = 0, 0.0
        if not (fails or num_failures or quiet_s >= patience.idle_s):
            continue
        reason = await _why_no_token(probe, patience.probe_timeout_s)
        quiet_s = 0.0
        if not reason or traffic.num_received != received:
            num_failures = 0
            continue
        num_failures += 1
        if num_failures >= patience.num_failures:
            return reason


async def _why_no_token(probe: Callable[[], Awaitable[None]], timeout_s: float) -> str:
    try:
        async with asyncio.timeout(timeout_s):
            await probe()
    except TimeoutError:
        return f"no token in {timeout_s:g} s"
    except ModelkitError as error:
        return error.message
    return ""
