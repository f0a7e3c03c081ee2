import time

import pytest

from modelkit.client import AsyncClient, Client, RetryPolicy
from modelkit.client.retry import Attempts, Deadline
from modelkit.errors import CallError, InternalError, OverloadedError, UnavailableError
from unit.client.scripted_server import free_port, running

FAST = RetryPolicy(initial_backoff_s=0.01)


def test_backoff_grows_with_jitter_up_to_its_limit():
    policy = RetryPolicy(initial_backoff_s=1, multiplier=2, max_backoff_s=3)
    for num_failures, middle in [(1, 1), (2, 2), (3, 3), (10, 3)]:
        pauses = [policy.backoff_s(num_failures) for _ in range(100)]
        assert middle * 0.8 <= min(pauses) < max(pauses) <= middle * 1.2


@pytest.mark.parametrize("options", [{"max_attempts": 0}, {"initial_backoff_s": -1}, {"multiplier": 0.5}])
def test_a_policy_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match=r"max_attempts|backoff"):
        RetryPolicy(**options)


def test_only_unavailable_is_tried_again():
    for failure in (InternalError("x"), OverloadedError("x", retry_after_s=0.1), CallError("x")):
        assert Attempts(FAST, Deadline(None)).pause_s(failure) is None
    assert Attempts(FAST, Deadline(None)).pause_s(UnavailableError("x")) is not None
    assert Attempts(None, Deadline(None)).pause_s(UnavailableError("x")) is None


def test_no_pause_outlasts_the_deadline_and_none_is_shorter_than_the_server_asks():
    assert Attempts(FAST, Deadline(None)).pause_s(UnavailableError("x", retry_after_s=2)) == 2
    assert Attempts(FAST, Deadline(1)).pause_s(UnavailableError("x", retry_after_s=2)) is None


def test_the_number_of_attempts_is_bounded():
    attempts = Attempts(RetryPolicy(max_attempts=3), Deadline(None))
    pauses = [attempts.pause_s(UnavailableError("x")) for _ in range(3)]
    assert [pause is None for pause in pauses] == [False, False, True]


def test_a_call_is_tried_until_the_server_takes_it(server):
    server.servicer.failures_left = 2
    with Client(server.address, retry=FAST) as client:
        assert client.predict(a=1) == {"a": 1}
    assert server.servicer.calls["Predict"] == 3
    assert len(set(server.servicer.request_ids)) == 1  # one call, one name


async def test_a_call_is_tried_until_the_server_takes_it_async(server):
    server.servicer.failures_left = 2
    async with AsyncClient(server.address, retry=FAST) as client:
        assert await client.predict(a=1) == {"a": 1}
    assert server.servicer.calls["Predict"] == 3


def test_the_pause_the_server_asks_for_is_kept(server):
    server.servicer.failures_left, server.servicer.retry_after_s = 1, 0.3
    started = time.monotonic()
    with Client(server.address, retry=FAST) as client:
        client.predict(a=1)
    assert time.monotonic() - started >= 0.3


def test_retries_can_be_switched_off(server):
    server.servicer.failures_left = 1
    with Client(server.address, retry=None) as client, pytest.raises(UnavailableError, match="loading"):
        client.predict(a=1)
    assert server.servicer.calls["Predict"] == 1


def test_the_deadline_covers_all_attempts(server):
    server.servicer.failures_left = 1000
    slow = RetryPolicy(max_attempts=1000, initial_backoff_s=0.05)
    started = time.monotonic()
    with Client(server.address, retry=slow) as client, pytest.raises(UnavailableError):
        client.predict(a=1, timeout_s=0.4)
    assert time.monotonic() - started < 0.6


def test_a_stream_is_tried_again_before_its_first_message(server):
    server.servicer.failures_left = 2
    with Client(server.address, retry=FAST) as client:
        assert list(client.generate(n=4)) == [0, 1, 2, 3]
    assert server.servicer.calls["Generate"] == 3


async def test_a_stream_is_tried_again_before_its_first_message_async(server):
    server.servicer.failures_left = 2
    async with AsyncClient(server.address, retry=FAST) as client:
        assert [item async for item in client.generate(n=4)] == [0, 1, 2, 3]
    assert server.servicer.calls["Generate"] == 3


@pytest.mark.parametrize("method", ["dies", "resets"])
def test_a_stream_is_not_tried_again_after_its_first_message(server, method):
    with Client(server.address, retry=FAST) as client:
        stream = client.generate(method=method)
        assert next(stream) == 0
        with pytest.raises(UnavailableError):
            next(stream)
    assert server.servicer.calls["Generate"] == 1


def test_a_bidirectional_call_is_not_tried_again_once_items_were_taken(server):
    with Client(server.address, retry=FAST) as client:
        stream = client.stream(iter("ab"), method="refuse")
        with pytest.raises(UnavailableError, match="no more"):
            next(stream)
    assert server.servicer.calls["Stream"] == 1


def test_a_bidirectional_call_waits_for_a_server_that_is_just_starting():
    taken = []
    port = free_port()

    def items():
        taken.append("a")
        yield "a"

    with Client(f"127.0.0.1:{port}", retry=RetryPolicy(max_attempts=50, max_backoff_s=0.1)) as client:
        stream = client.stream(items(), timeout_s=20)
        time.sleep(0.2)
        assert not taken
        with running(port=port):
            assert list(stream) == ["a", "end"]
    assert taken == ["a"]
