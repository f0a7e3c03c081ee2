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

    stream = ThreadStream(asyncio.get_running_loop(), lambda: None)
    thread = in_thread(stream.run, start)
    items = []

    async def read_all():
        async for item, _ in stream:
            items.append(item)

    with pytest.raises(ValueError, match="end"):
        await read_all()
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

    stream = ThreadStream(asyncio.get_running_loop(), lambda: None)
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


async def test_each_item_comes_with_the_mark_of_its_own_moment():
    counted = 0

    def start():
        nonlocal counted
        for _ in range(100):
            counted += 1
            yield counted

    stream = ThreadStream(asyncio.get_running_loop(), lambda: counted)
    thread = in_thread(stream.run, start)
    await asyncio.sleep(0.05)  # the generator runs ahead
    assert [(item, mark) async for item, mark in stream] == [(n, n) for n in range(1, 101)]
    thread.join()
