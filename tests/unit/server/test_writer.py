import asyncio

import pytest

from modelkit.codec import decode, encode
from modelkit.server.writer import StreamWriter

TOTALS = (0, 0, 0)


class Wire:
    """A transport that takes a message when it is told to."""

    def __init__(self, open_=True):
        self.messages = []
        self.open = asyncio.Event()
        if open_:
            self.open.set()
        self.fails = False

    async def send(self, items, totals):
        await self.open.wait()
        if self.fails:
            raise ConnectionError
        self.messages.append([decode(item) for item in items])


async def finish(writer, wire):
    last = await writer.flush()
    if last:
        await wire.send(last, TOTALS)
    return [item for message in wire.messages for item in message]


async def test_the_first_item_goes_alone_and_at_once():
    wire = Wire()
    writer = StreamWriter(wire.send)
    await writer.put(encode(0), TOTALS)
    assert wire.messages == [[0]]


async def test_a_reader_that_keeps_up_gets_one_item_a_message():
    wire = Wire()
    writer = StreamWriter(wire.send)
    for number in range(10):
        await writer.put(encode(number), TOTALS)
        await asyncio.sleep(0.001)
    assert await finish(writer, wire) == list(range(10))
    assert all(len(message) == 1 for message in wire.messages)


async def test_items_gather_while_a_write_is_in_flight():
    wire = Wire()
    writer = StreamWriter(wire.send)
    await writer.put(encode(0), TOTALS)
    wire.open.clear()
    for number in range(1, 40):
        await writer.put(encode(number), TOTALS)
    wire.open.set()
    assert await finish(writer, wire) == list(range(40))
    assert [len(message) for message in wire.messages] == [1, 1, 38]


@pytest.mark.parametrize(("item", "most"), [(1, 70), (b"x" * 100_000, 6)])
async def test_a_closed_window_stops_the_writer(item, most):
    wire = Wire()
    writer = StreamWriter(wire.send)
    await writer.put(encode(0), TOTALS)
    wire.open.clear()
    num_put = 0

    async def put_on():
        nonlocal num_put
        while True:
            await writer.put(encode(item), TOTALS)
            num_put += 1

    task = asyncio.create_task(put_on())
    await asyncio.sleep(0.05)
    assert 1 < num_put < most
    task.cancel()
    await asyncio.wait([task])
    await writer.abort()


async def test_a_shared_message_stays_within_the_bound():
    wire = Wire()
    writer = StreamWriter(wire.send, max_bytes=1000)
    await writer.put(encode(b""), TOTALS)
    wire.open.clear()

    async def put_all():
        for size in (10, 10, 900, 10, 900, 5000, 10):
            await writer.put(encode(b"x" * size), TOTALS)
        return await finish(writer, wire)

    task = asyncio.create_task(put_all())
    await asyncio.sleep(0.01)
    wire.open.set()
    assert len(await task) == 8
    for message in wire.messages:
        assert len(message) == 1 or sum(map(len, message)) <= 1000


async def test_a_failed_write_is_told_to_the_writer():
    wire = Wire()
    writer = StreamWriter(wire.send)
    await writer.put(encode(0), TOTALS)
    wire.fails = True
    await writer.put(encode(1), TOTALS)
    with pytest.raises(ConnectionError):
        await writer.flush()


async def test_abort_ends_the_write_in_flight_also_during_a_flush():
    wire = Wire()
    writer = StreamWriter(wire.send)
    await writer.put(encode(0), TOTALS)
    wire.open.clear()
    await writer.put(encode(1), TOTALS)
    flushing = asyncio.create_task(writer.flush())
    await asyncio.sleep(0)
    flushing.cancel()
    await asyncio.wait([flushing])
    await writer.abort()
    assert len(asyncio.all_tasks()) == 1
