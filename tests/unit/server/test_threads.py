import asyncio
import threading

import numpy as np
import pytest
from PIL import Image as PILImage

from modelkit.datatypes import Image, Tensor, Text
from modelkit.errors import CancelledCallError
from modelkit.server.threads import LoopIterator, ThreadStream, _size


def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


async def test_items_arrive_in_order_and_errors_after_them():
    def start():
        yield from range(300)
        raise ValueError("end")

    stream = ThreadStream(asyncio.get_running_loop())
    thread = in_thread(stream.run, start)
    items = []
    with pytest.raises(ValueError, match="end"):
        items.extend([items.append(item) async for item in stream])
    assert items == list(range(300))
    thread.join()


@pytest.mark.parametrize("item", [1, b"x" * 100_000, [{"a": "x" * 50_000}], PILImage.new("L", (9, 9))])
async def test_a_generator_waits_for_its_reader_and_ends_when_the_reader_goes(item):
    produced, ended = [], threading.Event()

    def start():
        try:
            while True:
                produced.append(1)
                yield item
        finally:
            ended.set()

    stream = ThreadStream(asyncio.get_running_loop())
    thread = in_thread(stream.run, start)
    await asyncio.sleep(0.1)
    assert len(produced) <= (65 if item == 1 else 17)
    stream.cancel()
    await asyncio.to_thread(thread.join, 5)
    assert ended.is_set()


@pytest.mark.parametrize(
    ("item", "size"),
    [
        ("ab", 2),
        (b"abc", 3),
        (Text("a"), 0),
        (Image(b"abc"), 3),
        (np.zeros(4, np.float32), 16),
        ([b"a", {"k": b"bc"}], 3),
        (None, 0),
    ],
)
def test_the_size_of_an_item(item, size):
    assert _size(item) == size


def test_what_has_no_known_size_counts():
    assert _size(object()) > 0
    assert _size(Tensor((1,), "uint8", b"x")) > 0


async def test_a_thread_reads_an_asynchronous_source():
    async def source():
        for number in range(5):
            await asyncio.sleep(0)
            yield number

    iterator = LoopIterator(source(), asyncio.get_running_loop())
    assert await asyncio.to_thread(list, iterator) == list(range(5))


@pytest.mark.parametrize("when", ["before", "during"])
async def test_a_cancelled_source_ends_the_wait_of_its_thread(when):
    async def endless():
        await asyncio.Event().wait()
        yield

    iterator = LoopIterator(endless(), asyncio.get_running_loop())
    if when == "before":
        iterator.cancel()
    reading = asyncio.ensure_future(asyncio.to_thread(next, iterator))
    await asyncio.sleep(0.05)
    iterator.cancel()
    with pytest.raises(CancelledCallError):
        await asyncio.wait_for(reading, 5)
