import asyncio
import inspect

import pytest

from modelkit.client import AsyncClient, Chunk, Client, Usage
from modelkit.errors import (
    CancelledCallError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnimplementedError,
)
from unit.client.scripted_server import CHANGED_METHODS, HealthServicer, WithoutWatch, running


@pytest.fixture
async def client(server):
    async with AsyncClient(server.address) as client:
        yield client


def test_both_clients_have_the_same_surface():
    def surface(kind):
        return {
            name: [
                (p.name, p.kind, p.default)
                for p in inspect.signature(getattr(kind, name)).parameters.values()
            ]
            for name in vars(kind)
            if not name.startswith("_") and callable(getattr(kind, name))
        }

    assert surface(Client) == surface(AsyncClient)
    constructors = [inspect.signature(kind).parameters for kind in (Client, AsyncClient)]
    assert list(constructors[0].values()) == list(constructors[1].values())


async def test_predict_returns_the_value_and_call_all_of_it(client):
    assert await client.predict(a=1) == {"a": 1}
    response = await client.call(a=1)
    assert (response.value, response.metadata) == ({"a": 1}, {"seen": "predict"})
    assert response.finish_reason == "stop"
    assert await client.predict("a b c", method="summarize", max_words=2) == "a b"


async def test_a_stream_gives_items_usage_metadata_and_request_id(client):
    stream = client.generate(6)
    assert stream.request_id == ""
    assert [item async for item in stream] == [0, 1, 2, 3, 4, 5]
    assert (stream.usage, stream.request_id) == (Usage(output_tokens=6), "from-server")
    assert (stream.metadata, stream.finish_reason) == ({"seen": "generate"}, "length")
    assert [item async for item in stream] == []


async def test_chunks_are_the_messages(client):
    chunks = [chunk async for chunk in client.generate(n=4).chunks()]
    assert chunks[:2] == [Chunk((0,), Usage(output_tokens=1)), Chunk((1, 2), Usage(output_tokens=3))]


@pytest.mark.parametrize("leave", ["close", "with", "task"])
async def test_leaving_a_stream_early_stops_the_model(client, server, leave):
    async def read():
        async with client.generate(method="slow") as stream:
            async for _ in stream:
                if leave == "with":
                    break
                if leave == "close":
                    stream.close()

    task = asyncio.create_task(read())
    if leave == "task":
        assert await asyncio.to_thread(server.servicer.entered.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        await task
    assert await asyncio.to_thread(server.servicer.cancelled.wait, 10)


@pytest.mark.parametrize("kind", ["generate", "stream"])
async def test_a_loop_left_with_break_stops_the_model(client, server, kind):
    async def items():
        while True:
            yield "a"
            await asyncio.sleep(0.01)

    async for _ in client.generate(method="slow") if kind == "generate" else client.stream(items()):
        break
    assert await asyncio.to_thread(server.servicer.cancelled.wait, 10)


async def test_a_cancelled_stream_raises_where_it_is_read(client):
    stream = client.generate(method="slow")
    await anext(stream)
    asyncio.get_running_loop().call_later(0.1, stream.cancel)
    with pytest.raises(CancelledCallError):
        await anext(stream)


async def test_a_stream_cancelled_before_it_starts_never_starts(client, server):
    stream = client.generate(n=1)
    stream.cancel()
    with pytest.raises(CancelledCallError):
        await anext(stream)
    assert not server.servicer.calls


async def test_deadlines(client):
    with pytest.raises(DeadlineExceededError):
        await client.predict(method="slow", timeout_s=0.1)
    with pytest.raises(DeadlineExceededError):
        [item async for item in client.generate(method="slow", timeout_s=0.2)]


async def test_a_cancelled_task_cancels_the_call(client, server):
    task = asyncio.create_task(client.predict(method="slow"))
    assert await asyncio.to_thread(server.servicer.entered.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.servicer.cancelled.wait, 10)


async def test_a_bidirectional_call_interleaves(client, server):
    questions = asyncio.Queue()

    async def items():
        while (item := await questions.get()) is not None:
            yield item

    stream = client.stream(items(), prefix="> ")
    for text in ("a", "b", "c"):
        await questions.put(text)
        assert await anext(stream) == f"> {text}"
    assert not server.servicer.ended
    await questions.put(None)
    assert [item async for item in stream] == ["end"]
    assert (stream.finish_reason, server.servicer.ended) == ("stop", True)


async def test_a_bidirectional_call_takes_a_plain_list(client):
    assert [item async for item in client.stream(["a", "b"])] == ["a", "b", "end"]


async def test_what_the_callers_iterator_raises_is_what_the_caller_sees(client, server):
    answered = asyncio.Event()

    async def items():
        yield "a"
        await answered.wait()
        raise LookupError("no more")

    stream = client.stream(items())
    assert await anext(stream) == "a"
    answered.set()
    with pytest.raises(LookupError, match="no more"):
        await anext(stream)
    assert await asyncio.to_thread(server.servicer.cancelled.wait, 10)
    assert not server.servicer.ended


async def test_methods_are_typed_by_the_server(client):
    assert await client.methods.summarize("a b c", max_words=2) == "a b"
    assert [item async for item in client.methods.generate(3)] == [0, 1, 2]
    assert [item async for item in client.methods.chat(["a"], prefix="p")] == ["pa", "end"]


async def test_a_wrong_call_is_never_sent(client, server):
    with pytest.raises(InvalidArgumentError, match="did you mean 'max_words'"):
        await client.methods.summarize("a", maxwords=2)
    with pytest.raises(UnimplementedError, match="streams") as raised:
        await client.methods.generate(3)
    assert raised.value.cure == "iterate: async for item in generate(...)"
    with pytest.raises(UnimplementedError, match="does not stream"):
        [item async for item in client.methods.summarize("a")]
    assert set(server.servicer.calls) == {"Describe"}


async def test_methods_are_listed_once_they_are_known(client):
    assert "await client.describe()" in repr(client.methods)
    assert repr(client.methods.summarize) == "summarize"
    dir(client.methods)
    with pytest.raises(FailedPreconditionError, match="not known yet"):
        list(client.methods)
    await client.describe()
    assert list(client.methods) == ["summarize", "generate", "chat"]
    assert repr(client.methods.summarize).startswith("summarize(text: str")
    assert "chat" in dir(client.methods)
    assert client.methods.summarize.__doc__.startswith("Shorten")
    assert str(inspect.signature(client.methods.summarize)) == "(text: 'str', max_words: 'int' = 50) -> 'str'"
    assert "nope" not in client.methods
    assert repr(client.methods.nope) == "nope"


async def test_health(client, server):
    assert await client.health() == "SERVING"
    server.set_ready(False)
    assert await client.health() == "NOT_SERVING"
    with pytest.raises(DeadlineExceededError, match="the model is not ready"):
        await client.wait_ready(0.3)


@pytest.mark.parametrize("health", [HealthServicer, WithoutWatch])
async def test_wait_ready_waits_for_the_model(health):
    with running(health=health) as server:
        server.set_ready(False)
        async with AsyncClient(server.address) as client:
            waiting = asyncio.create_task(client.wait_ready(30))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            await asyncio.to_thread(server.set_ready, True)
            await waiting


async def test_a_changed_signature_is_noticed(client, server):
    await client.describe()
    server.servicer.methods = [*CHANGED_METHODS]
    assert await client.methods.summarize("a b", language="en") == "a b"
    assert await client.predict("a b", 1, "en", method="summarize") == "a"


async def test_a_client_that_was_never_used_closes():
    await AsyncClient("localhost:1").close()
