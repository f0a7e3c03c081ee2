"""When an engine is asked for a sign of life: the rhythm is in steps, so that no clock decides."""

import asyncio

import pytest

from modelkit.engines.health import Patience, Traffic, wait_until_wedged
from modelkit.errors import UnavailableError

# A tenth quiet check asks.
PATIENCE = Patience(check_s=0.001, idle_s=0.0095, probe_timeout_s=60, num_failures=2)


class Watched:
    """Traffic that changes with each look at it, as `received` and `failed` say, until `num_looks` have been taken."""

    def __init__(self, *, received=(0,), failed=(0,), num_looks=100):
        self.traffic = Traffic()
        self.received, self.failed = received, failed
        self.num_looks, self.looks = num_looks, 0
        self.done = asyncio.Event()
        self.num_probes = 0

    @property
    def num_received(self):
        self.looks += 1
        if self.looks >= self.num_looks:
            self.done.set()
        self.traffic.num_received += self.received[self.looks % len(self.received)]
        return self.traffic.num_received

    @property
    def num_failed(self):
        self.traffic.num_failed += self.failed[self.looks % len(self.failed)]
        return self.traffic.num_failed

    async def probe(self):
        self.num_probes += 1

    async def watch(self):
        """Watch until the looks are used up; the reason where the engine was given up before."""
        watching = asyncio.create_task(wait_until_wedged(self.probe, self, PATIENCE))
        waiting = asyncio.create_task(self.done.wait())
        await asyncio.wait([watching, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not watching.done():
            watching.cancel()
            return ""
        return watching.result()


async def test_while_answers_flow_nothing_is_asked():
    watched = Watched(received=(1,))
    assert await watched.watch() == ""
    assert watched.num_probes == 0


async def test_a_pause_shorter_than_the_patience_is_no_silence():
    watched = Watched(received=(1, *[0] * 8))
    assert await watched.watch() == ""
    assert watched.num_probes == 0


async def test_silence_is_asked_into_and_an_answer_ends_it():
    watched = Watched()
    assert await watched.watch() == ""
    # The probe's own answer counts as traffic in an engine that works; here it only ends the count of quiet checks.
    assert 5 <= watched.num_probes <= 10


async def test_failed_requests_are_looked_into_though_answers_flow():
    watched = Watched(received=(1,), failed=(0, 0, 1))
    assert await watched.watch() == ""
    assert watched.num_probes > 5


@pytest.mark.parametrize("failure", [UnavailableError("broken"), TimeoutError()])
async def test_as_many_failures_in_a_row_as_the_patience_has(failure):
    class Wedged(Watched):
        async def probe(self):
            self.num_probes += 1
            raise failure

    watched = Wedged()
    assert await watched.watch() in {"broken", "no token in 60 s"}
    assert watched.num_probes == PATIENCE.num_failures
