import asyncio
import threading
import time
from dataclasses import replace

import pytest

from modelkit.client import AsyncClient, Client, RetryPolicy
from modelkit.client.retry import Attempts, Deadline
from modelkit.errors import (
    CallError,
    CancelledCallError,
    DeadlineExceededError,
    InternalError,
    OverloadedError,
    UnavailableError,
    UsageError,
)
from unit.client.scripted_server import Relay, free_port, running

FAST = RetryPolicy(initial_backoff_s=0.01)
IDEMPOTENT = replace(FAST, idempotent=True)
both_kinds = pytest.mark.parametrize("kind", [Client, AsyncClient])
both_verbs = pytest.mark.parametrize(("verb", "rpc"), [("predict", "Predict"), ("generate", "Generate")])


def call(kind, address, retry, verb, *args, **kwargs):
    """Return what a client of that kind gets: a result, or the list of the items."""
    if kind is AsyncClient:
        return asyncio.run(call_async(address, retry, verb, *args, **kwargs))
    with Client(address, retry=retry) as client:
        answer = getattr(client, verb)(*args, **kwargs)
        return answer if verb == "predict" else list(answer)


async def call_async(address, retry, verb, *args, **kwargs):
    async with AsyncClient(address, retry=retry) as client:
        answer = getattr(client, verb)(*args, **kwargs)
        return await answer if verb == "predict" else [item async for item in answer]


def test_backoff_grows_with_jitter_up_to_its_limit():
    policy = RetryPolicy(initial_backoff_s=1, multiplier=2, max_backoff_s=3)
    for num_failures, middle in [(1, 1), (2, 2), (3, 3), (10, 3)]:
        pauses = [policy.backoff_s(num_failures) for _ in range(100)]
        assert middle * 0.8 <= min(pauses) < max(pauses) <= middle * 1.2


@pytest.mark.parametrize("options", [{"max_attempts": 0}, {"initial_backoff_s": -1}, {"multiplier": 0.5}])
def test_a_policy_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match=r"max_attempts|backoff"):
        RetryPolicy(**options)


def refused(**facts):
    return UnavailableError("x", executed=False, **facts)


def test_only_a_call_that_has_not_run_is_tried_again():
    for failure in (InternalError, OverloadedError, CallError):
        assert Attempts(FAST, Deadline(None)).pause_s(failure("x", retry_after_s=0.1, executed=False)) is None
    assert Attempts(FAST, Deadline(None)).pause_s(UnavailableError("x")) is None
    assert Attempts(FAST, Deadline(None)).pause_s(UnavailableError("x", retry_after_s=0.1)) is None
    assert Attempts(FAST, Deadline(None)).pause_s(refused()) is not None
    assert Attempts(None, Deadline(None)).pause_s(refused()) is None


def test_a_call_that_may_run_twice_is_tried_again_whatever_became_of_it():
    assert Attempts(IDEMPOTENT, Deadline(None)).pause_s(UnavailableError("x")) is not None
    assert Attempts(FAST, Deadline(None), idempotent=True).pause_s(UnavailableError("x")) is not None
    assert Attempts(IDEMPOTENT, Deadline(None)).pause_s(InternalError("x")) is None
    assert Attempts(None, Deadline(None), idempotent=True).pause_s(refused()) is None


def test_no_pause_outlasts_the_deadline_and_none_is_shorter_than_the_server_asks():
    assert Attempts(FAST, Deadline(None)).pause_s(refused(retry_after_s=2)) == 2
    assert Attempts(FAST, Deadline(1)).pause_s(refused(retry_after_s=2)) is None


def test_the_number_of_attempts_is_bounded():
    attempts = Attempts(RetryPolicy(max_attempts=3), Deadline(None))
    pauses = [attempts.pause_s(refused()) for _ in range(3)]
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
    slow = RetryPolicy(max_attempts=1000, initial_backoff_s=0.05, multiplier=1)
    with (
        Client(server.address, retry=slow) as client,
        pytest.raises((UnavailableError, DeadlineExceededError)),
    ):
        client.predict(a=1, timeout_s=1)
    first, *_, last = server.servicer.time_left
    assert last < first < 1.1  # what the server is told of the deadline; gRPC rounds it


@both_kinds
@pytest.mark.parametrize("verb", ["predict", "generate"])
def test_the_deadline_covers_the_question_for_the_signature(server, kind, verb):
    server.servicer.before_describe = lambda: asyncio.sleep(60)
    with pytest.raises(DeadlineExceededError, match=r"within 0\.3 s"):
        call(kind, server.address, FAST, verb, "a b", timeout_s=0.3)


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


@both_kinds
@both_verbs
def test_a_call_whose_connection_is_lost_is_not_run_twice(server, relay, kind, verb, rpc):
    with pytest.raises(UnavailableError, match="was lost") as raised:
        call(kind, relay.address, FAST, verb, method="slow-at-first", n=1)
    assert "the call may have run" in raised.value.cure
    assert raised.value.executed
    assert server.servicer.calls[rpc] == 1


@both_kinds
@both_verbs
def test_a_call_that_may_run_twice_survives_a_lost_connection(server, relay, kind, verb, rpc):
    answer = call(kind, relay.address, IDEMPOTENT, verb, method="slow-at-first", n=1)
    assert answer == ([0] if verb == "generate" else {"n": 1})
    assert server.servicer.calls[rpc] == 2


@both_kinds
@both_verbs
def test_what_the_model_calls_unavailable_is_not_tried_again(server, kind, verb, rpc):
    server.servicer.failures_left, server.servicer.refuses, server.servicer.retry_after_s = 1, False, 0.01
    with pytest.raises(UnavailableError):
        call(kind, server.address, FAST, verb, n=1)
    assert server.servicer.calls[rpc] == 1
    server.servicer.failures_left = 1
    call(kind, server.address, IDEMPOTENT, verb, n=1)
    assert server.servicer.calls[rpc] == 3


@both_kinds
@both_verbs
def test_a_call_waits_for_a_server_that_is_just_starting(kind, verb, rpc):
    port = free_port()
    patient = RetryPolicy(max_attempts=1000, max_backoff_s=0.1)
    answers = []
    caller = threading.Thread(
        target=lambda: answers.append(call(kind, f"127.0.0.1:{port}", patient, verb, n=1, timeout_s=30))
    )
    caller.start()
    time.sleep(0.2)
    with running(port=port) as server:
        caller.join()
    assert answers == [[0] if verb == "generate" else {"n": 1}]
    assert server.servicer.calls[rpc] == 1


@both_kinds
def test_describing_is_tried_again_whatever_became_of_it(server, kind):
    relay = Relay(server.address)

    async def cut_first():
        if server.servicer.calls["Describe"] == 1:
            relay.cut()
            await asyncio.sleep(60)

    server.servicer.before_describe = cut_first
    assert call(kind, relay.address, FAST, "predict", "a b", method="summarize") == "a b"
    assert server.servicer.calls == {"Describe": 2, "Predict": 1}
    relay.close()


@both_kinds
def test_a_stream_that_is_cancelled_between_two_tries_ends(kind):
    patient = RetryPolicy(initial_backoff_s=0.5)

    async def cancel_async():
        async with AsyncClient("localhost:1", retry=patient) as client:
            stream = client.generate(n=1)
            asyncio.get_running_loop().call_later(0.1, stream.cancel)
            await anext(stream)

    def cancel():
        with Client("localhost:1", retry=patient) as client:
            stream = client.generate(n=1)
            threading.Timer(0.1, stream.cancel).start()
            next(stream)

    with pytest.raises(CancelledCallError):
        asyncio.run(cancel_async()) if kind is AsyncClient else cancel()


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

    with Client(f"127.0.0.1:{port}", retry=RetryPolicy(max_attempts=1000, max_backoff_s=0.1)) as client:
        answers = []
        caller = threading.Thread(target=lambda: answers.extend(client.stream(items(), timeout_s=30)))
        caller.start()
        time.sleep(0.2)
        assert not taken
        with running(port=port):
            caller.join()
    assert answers == ["a", "end"]
    assert taken == ["a"]


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e10, 1e12, 1e300])
def test_a_timeout_longer_than_any_call_is_none(server, timeout_s):
    with Client(server.address, timeout_s=timeout_s) as client:
        assert client.predict(a=1) == {"a": 1}
        assert client.predict(a=1, timeout_s=timeout_s) == {"a": 1}
        client.wait_ready(timeout_s)


def test_a_timeout_of_years_is_kept(server):
    with Client(server.address, timeout_s=3e8) as client:
        assert client.predict(a=1) == {"a": 1}


@pytest.mark.parametrize("timeout_s", [-1, float("nan"), "5", True])
def test_what_is_no_time_to_wait_is_refused(client, server, timeout_s):
    with pytest.raises(UsageError, match="is not a number of seconds"):
        Client(server.address, timeout_s=timeout_s)
    with pytest.raises(UsageError, match="is not a number of seconds"):
        client.predict(a=1, timeout_s=timeout_s)
