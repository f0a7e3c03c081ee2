import asyncio

import pytest

from modelkit.errors import OverloadedError
from modelkit.server.gate import Gate


async def waiting(gate, order, name):
    await gate.enter()
    order.append(name)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_those_who_wait_enter_in_the_order_they_came():
    gate, order = Gate(1, 10), []
    await gate.enter()
    tasks = [asyncio.create_task(waiting(gate, order, name)) for name in range(5)]
    await settle()
    assert gate.num_waiting == 5
    for _ in range(5):
        assert not gate.try_enter()  # nobody overtakes
        gate.leave()
        await settle()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    gate.leave()
    assert (gate.num_running, gate.num_waiting) == (0, 0)


async def test_a_full_queue_refuses_with_a_time_to_retry():
    gate = Gate(1, 0)
    await gate.enter()
    with pytest.raises(OverloadedError, match="1 calls run and 0 wait") as caught:
        await gate.enter()
    assert caught.value.retry_after_s == 1.0


@pytest.mark.parametrize("first", ["cancel", "leave"])
async def test_a_turn_and_a_cancellation_at_the_same_moment_lose_no_place(first):
    gate, order = Gate(1, 10), []
    await gate.enter()
    doomed = asyncio.create_task(waiting(gate, order, "doomed"))
    other = asyncio.create_task(waiting(gate, order, "other"))
    await settle()
    for action in (doomed.cancel, gate.leave) if first == "cancel" else (gate.leave, doomed.cancel):
        action()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    await other
    assert order == ["other"]
    gate.leave()
    assert (gate.num_running, gate.num_waiting) == (0, 0)
