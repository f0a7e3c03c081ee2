import asyncio
import time
from contextlib import aclosing

import pytest

from modelkit.config import EngineConfig
from modelkit.engines import GenerationRequest, SamplingParams, create
from modelkit.errors import InvalidArgumentError, UnavailableError, UsageError


def make_engine(**args):
    return create(EngineConfig(name="echo", args=args), None, "echo")


@pytest.fixture
async def engine():
    engine = make_engine()
    await engine.start()
    yield engine
    await engine.close()


async def chunks_of(engine, text, **sampling):
    request = GenerationRequest(
        messages=[{"role": "user", "content": text}], sampling=SamplingParams(**sampling)
    )
    return [chunk async for chunk in engine.generate(request)]


async def test_streams_the_words_of_the_last_message_and_counts_them(engine):
    chunks = await chunks_of(engine, "one  two\nthree ")
    assert [chunk.text for chunk in chunks] == ["one", "  two", "\nthree", " ", ""]
    assert [chunk.output_tokens for chunk in chunks] == [1, 2, 3, 4, 5]
    assert {chunk.prompt_tokens for chunk in chunks} == {4}
    assert [chunk.finish_reason for chunk in chunks] == [None] * 4 + ["stop"]


async def test_ends_at_max_tokens_with_length(engine):
    chunks = await chunks_of(engine, "one two three", max_tokens=2)
    assert ("".join(chunk.text for chunk in chunks), chunks[-1].finish_reason) == ("one two", "length")


async def test_ends_before_a_stop_string(engine):
    chunks = await chunks_of(engine, "one two three", stop=("two th",))
    assert ("".join(chunk.text for chunk in chunks), chunks[-1].finish_reason) == ("one ", "stop")


async def test_a_prompt_without_text_is_refused(engine):
    with pytest.raises(InvalidArgumentError, match="empty"):
        await chunks_of(engine, "")


async def test_delay_is_per_token():
    engine = make_engine(delay_s=0.02)
    await engine.start()
    started = time.monotonic()
    await chunks_of(engine, "one two three")
    assert time.monotonic() - started >= 0.08


async def test_close_ends_a_running_answer_with_abort():
    engine = make_engine(delay_s=0.01)
    await engine.start()
    request = GenerationRequest(prompt="word " * 100)
    async with aclosing(engine.generate(request)) as chunks:
        await anext(chunks)
        await engine.close()
        rest = [chunk async for chunk in chunks]
    assert [chunk.finish_reason for chunk in rest] == ["abort"]
    with pytest.raises(UnavailableError):
        await anext(engine.generate(request))


def test_unknown_args_are_refused_with_the_names_there_are():
    with pytest.raises(UsageError, match="delay_ms") as caught:
        make_engine(delay_ms=3)
    assert "delay_s" in caught.value.cure


async def test_streams_interleave():
    engine = make_engine(delay_s=0.001)
    await engine.start()
    order = []

    async def read(name):
        async for _ in engine.generate(GenerationRequest(prompt="a b c d e")):
            order.append(name)

    await asyncio.gather(read(1), read(2))
    assert order[:6] != [1] * 6
