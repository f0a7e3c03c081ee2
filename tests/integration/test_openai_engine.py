"""The engine `openai` and the token path, against a real HTTP server in a process of its own (tests/fake_engine.py)."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from modelkit import LLM, AsyncClient
from modelkit.config import Config
from modelkit.engines.base import GenerationRequest
from modelkit.engines.openai import RemoteEngine
from modelkit.engines.sampling import SamplingParams
from modelkit.errors import (
    EngineError,
    InternalError,
    InvalidArgumentError,
    LoadError,
    ModelNotFoundError,
    OverloadedError,
    UnavailableError,
)
from modelkit.testing import run_server

LONG = "word " * 5000
FAKE = Path(__file__).resolve().parents[1] / "fake_engine.py"


class Fake:
    def __init__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([sys.executable, str(FAKE), "--port", str(port)])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        raise TimeoutError

    async def control(self, **behaviour):
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/control", json=behaviour) as response,
        ):
            assert response.status == 200

    async def state(self):
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/state") as response:
            return await response.json()


@pytest.fixture
def fake():
    started = Fake()
    yield started
    started.process.terminate()
    started.process.wait(10)


@pytest.fixture
async def engine(fake):
    made = RemoteEngine(config_for(fake).engine, None, "chat")
    await made.start()
    yield made
    await made.close()


def config_for(fake, **engine):
    return Config.model_validate(
        {"model": {"id": "chat"}, "engine": {"name": "openai", "url": fake.url, **engine}}
    )


async def answer(engine, text="one two three", **sampling):
    request = GenerationRequest(
        messages=[{"role": "user", "content": text}], sampling=SamplingParams(**sampling)
    )
    return [chunk async for chunk in engine.generate(request)]


def raw(**more):
    return json.dumps({"messages": [{"role": "user", "content": "one two three"}], **more}).encode()


# ------------------------------------------------------------------------------------------------------------ starting


async def test_the_servers_first_model_is_the_default(engine):
    assert engine.served_name == "fake-1"


async def test_a_model_that_the_server_does_not_have_is_refused(fake):
    engine = RemoteEngine(config_for(fake, model="fake-9").engine, None, "chat")
    with pytest.raises(EngineError, match="no model 'fake-9'") as error:
        await engine.start()
    assert "fake-1, fake-2" in error.value.cure
    await engine.close()


async def test_without_a_url_the_cure_is_told(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    config = Config.model_validate({"model": {"id": "chat"}, "engine": {"name": "openai"}})
    with pytest.raises(LoadError, match="needs the URL") as error:
        await RemoteEngine(config.engine, None, "chat").start()
    assert "OPENAI_BASE_URL" in error.value.cure


async def test_a_server_that_is_away_is_an_error_with_a_cure():
    config = Config.model_validate(
        {"model": {"id": "chat"}, "engine": {"name": "openai", "url": "http://127.0.0.1:9/v1"}}
    )
    engine = RemoteEngine(config.engine, None, "chat")
    with pytest.raises(
        EngineError, match=r"server at http://127.0.0.1:9/v1 does not list its models"
    ) as error:
        await engine.start()
    assert "`curl http://127.0.0.1:9/v1/models` has to answer" in error.value.cure
    await engine.close()


async def test_a_server_without_the_route_has_another_url(fake):
    engine = RemoteEngine(config_for(fake, url=f"{fake.url}/api").engine, None, "chat")
    with pytest.raises(EngineError) as error:
        await engine.start()
    assert "correct engine.url" in error.value.cure
    await engine.close()


# -------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("behaviour", [{}, {"cut": 1}, {"cut": 7}, {"crlf": True}, {"cut": 3, "crlf": True}])
async def test_an_answer_is_the_same_however_its_bytes_arrive(fake, engine, behaviour):
    await fake.control(**behaviour)
    chunks = await answer(engine, "naïve 🙂 words {}")
    assert "".join(chunk.text for chunk in chunks) == "naïve 🙂 words {}"
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert (chunks[-1].prompt_tokens, chunks[-1].output_tokens, chunks[-1].cached_tokens) == (3, 4, 1)


async def test_usage_is_asked_for_always_and_counted_where_a_server_has_none(fake, engine):
    await fake.control(usage=False)
    chunks = await answer(engine)
    assert chunks[-1].output_tokens == 3
    assert (await fake.state())["last_body"]["stream_options"] == {"include_usage": True}


async def test_only_what_a_request_sets_is_sent_to_a_server_of_others(fake, engine):
    await answer(engine, temperature=0.0, max_tokens=2, stop=("x",))
    body = (await fake.state())["last_body"]
    assert set(body) == {"model", "stream", "stream_options", "messages", "temperature", "max_tokens", "stop"}


async def test_raw_chunks_pass_through_unread(engine):
    chunks = [
        chunk
        async for chunk in engine.openai_stream("/chat/completions", raw(stream=True, logit_bias={"5": 1}))
    ]
    assert chunks[1] == b'{"choices": [{"index": 0, "delta": {"content": "one"}, "finish_reason": null}]}'
    whole = json.loads(await engine.openai("/chat/completions", raw(model="chat")))
    assert whole["choices"][0]["message"]["content"] == "one two three"


async def test_names_of_the_model_are_put_right(fake, engine):
    for given, sent in ((None, "fake-1"), ("", "fake-1"), ("chat", "fake-1"), ("fake-2", "fake-2")):
        await engine.openai("/chat/completions", raw(model=given))
        assert (await fake.state())["last_body"]["model"] == sent
    with pytest.raises(ModelNotFoundError, match="`fake-3` does not exist"):
        await engine.openai("/chat/completions", raw(model="fake-3"))


async def test_embeddings_pass_through(fake, engine):
    response = json.loads(await engine.openai("/embeddings", b'{"input": ["a"]}'))
    assert response["data"][0]["embedding"] == [1.0, 2.0]


async def test_connections_are_used_again(fake, engine):
    for _ in range(20):
        await answer(engine)
        await engine.openai("/chat/completions", raw())
    # One; and another where the machine was busy for so long that the pool took it for idle.
    assert (await fake.state())["num_connections"] <= 4


async def test_64_streams_at_once(engine):
    answers = await asyncio.gather(*(answer(engine, f"{number} words here") for number in range(64)))
    assert ["".join(chunk.text for chunk in chunks) for chunks in answers] == [
        f"{n} words here" for n in range(64)
    ]


# --------------------------------------------------------------------------------------------------------- cancellation


async def becomes(fake, name, value):
    """Wait until the server's state says so: long before an answer of LONG words would have ended by itself."""
    async with asyncio.timeout(60):
        while (await fake.state())[name] != value:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", ["aclose", "cancel", "cancel whole response"])
async def test_leaving_closes_the_upstream_request(fake, engine, way):
    await fake.control(delay_s=0.05)
    if way == "aclose":
        stream = engine.openai_stream("/chat/completions", raw(messages=[{"content": LONG}], stream=True))
        await anext(stream)
        await stream.aclose()
    else:
        whole = raw(messages=[{"content": LONG}])
        streamed = way == "cancel"
        task = asyncio.create_task(
            answer(engine, LONG) if streamed else engine.openai("/chat/completions", whole)
        )
        await becomes(fake, "running", 1)
        task.cancel()
        await asyncio.wait([task])
    await becomes(fake, "num_disconnects", 1)
    assert (await fake.state())["running"] == 0


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        ({"fail": 500}, InternalError, "openai: it is broken inside"),
        ({"fail": 400, "error_body": '{"object": "error", "message": "bad n", "code": 400}'}, InvalidArgumentError, "bad n"),
        ({"fail": 429, "error_body": "slow down"}, OverloadedError, "openai: slow down"),
        ({"error_after": 2}, InternalError, "openai: the KV cache is gone"),
        ({"break_after": 2}, UnavailableError, "openai went away"),
        ({"die_after": 2}, UnavailableError, "openai went away"),
        ({"end_without_done": True}, UnavailableError, "broke off in the middle"),
    ],
)  # fmt: skip
async def test_what_goes_wrong_reaches_the_caller_with_the_servers_words(
    fake, engine, behaviour, error, message
):
    await fake.control(**behaviour)
    with pytest.raises(error, match=message):
        await answer(engine, "one two three four")


# -------------------------------------------------------------------------------------------------- through the server


async def test_a_folder_with_a_server_of_others_answers_over_grpc(fake):
    class Chat(LLM):
        pass

    with run_server(Chat, config=config_for(fake)) as server:
        async with AsyncClient(server.address) as client:
            assert await client.predict(prompt="hello you") == "hello you"
            stream = client.generate(prompt="a b c")
            assert "".join([piece async for piece in stream]) == "a b c"
            assert stream.usage.output_tokens == 3
            await fake.control(delay_s=0.05)
            endless = client.generate(prompt=LONG)
            await anext(endless)
            endless.cancel()
            await becomes(fake, "num_disconnects", 1)
