"""OpenAI's own Python client, and curl, against a real server."""

import asyncio
import json
import shutil
import subprocess
import time

import httpx
import openai
import pytest

from modelkit.config import Config
from modelkit.engines.llm import LLM
from modelkit.server import ServerOptions
from modelkit.testing import run_server

ECHO = {"model": {"id": "echo-chat"}, "engine": {"name": "echo"}}
TEXT = "the quick brown fox jumps over the lazy dog"


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def server():
    options = ServerOptions(port=0, http_port=0, api_key="secret", max_concurrency=128)
    with run_server(LLM, config=Config.model_validate(ECHO), options=options) as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.http_url + "/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_models(client):
    assert [model.id for model in client.models.list()] == ["echo-chat"]
    assert client.models.retrieve("echo-chat").owned_by == "modelkit"


def test_chat(client):
    answer = client.chat.completions.create(model="echo-chat", messages=user(TEXT), n=2)
    assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 20)
    assert answer._request_id


def test_stop_and_max_tokens(client):
    stopped = client.chat.completions.create(model="echo-chat", messages=user(TEXT), stop=[" jumps"])
    assert stopped.choices[0].message.content == "the quick brown fox"
    assert stopped.choices[0].finish_reason == "stop"
    cut = client.completions.create(model="echo-chat", prompt=TEXT, max_tokens=2)
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == ("the quick", "length")


def test_a_stream_with_usage(client):
    chunks = list(
        client.chat.completions.create(
            model="echo-chat", messages=user(TEXT), stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TEXT
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 10
    plain = list(client.chat.completions.create(model="echo-chat", messages=user(TEXT), stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in plain)


def test_n_answers_in_one_stream(client):
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(model="echo-chat", messages=user(TEXT), n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [TEXT] * 3


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (openai.BadRequestError, {"messages": []}),
        (openai.BadRequestError, {"messages": user(TEXT), "n": 1000}),
        (openai.BadRequestError, {"messages": user(TEXT), "extra_body": {"temprature": 1}}),
        (openai.BadRequestError, {"messages": user(""), "stream": True}),
    ],
)
def test_errors_are_the_clients_own_classes(client, error, arguments):
    with pytest.raises(error) as caught:
        client.chat.completions.create(model="echo-chat", **arguments)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_a_wrong_key_and_an_endpoint_that_is_not_there(server, client):
    with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
        client.with_options(api_key="other").models.list()
    with pytest.raises(openai.NotFoundError, match="has no endpoint /embeddings"):
        client.embeddings.create(model="echo-chat", input="hi")
    with pytest.raises(openai.NotFoundError, match="has no endpoint /responses"):
        client.responses.create(model="echo-chat", input="hi")


async def test_64_streams_at_once(server):
    async with openai.AsyncOpenAI(base_url=server.http_url + "/v1", api_key="secret") as client:

        async def ask(number):
            text = " ".join(f"{number}-{word}" for word in range(50))
            stream = await client.chat.completions.create(model="", messages=user(text), stream=True)
            answer = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return answer == text

        assert all(await asyncio.gather(*map(ask, range(64))))


async def test_leaving_a_stream_aborts_it_in_the_engine():
    config = Config.model_validate({**ECHO, "engine": {"name": "echo", "args": {"delay_s": 0.05}}})
    with run_server(LLM, config=config, http=True) as server:
        gate = server.server.predictor.gate
        async with openai.AsyncOpenAI(base_url=server.http_url + "/v1", api_key="-") as client:
            streams = [
                await client.chat.completions.create(model="", messages=user("word " * 500), stream=True)
                for _ in range(8)
            ]
            for stream in streams:
                await anext(aiter(stream))
            assert gate.num_running == 8
            for stream in streams[:4]:
                await stream.close()
            left = time.monotonic()
            while gate.num_running > 4:
                await asyncio.sleep(0.005)
            assert time.monotonic() - left < 0.1
            assert await anext(aiter(streams[4]))
    assert gate.num_running == 0


async def test_a_retry_is_left_to_what_may_succeed(server):
    """OpenAI's client repeats every 5xx and 409 unless told not to."""

    class Failing(LLM):
        num_calls = 0

        async def load(self):
            pass

        async def openai_transport(self, msg: str) -> str:
            Failing.num_calls += 1
            raise ValueError("a bug")

    with run_server(Failing, http=True) as failing:
        async with openai.AsyncOpenAI(base_url=failing.http_url + "/v1", api_key="-") as client:
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="", messages=user(TEXT))
    assert Failing.num_calls == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server):
    def curl(*arguments):
        command = ["curl", "--silent", "--no-buffer", "--header", "Authorization: Bearer secret", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    body = json.dumps({"messages": user(TEXT), "stream": True})
    lines = curl("--data", body, server.http_url + "/v1/chat/completions").split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: {") for line in lines[:-2])
    answer = json.loads(curl("--data", '{"prompt": "hi"}', server.http_url + "/v1/methods/predict"))
    assert answer["result"] == "hi"
    assert "404" in curl("--head", server.http_url + "/nowhere")


@pytest.mark.checkpoint
async def test_the_tiny_model_answers_as_it_was_trained(tiny_chat_checkpoint, tiny_chat_answers, tmp_path):
    """All exact questions, 64 callers at once, streamed and whole."""
    config = Config.model_validate(
        {
            "model": {"id": "tiny-chat"},
            "engine": {"name": "transformers"},
            "checkpoints": {"type": "local", "path": str(tiny_chat_checkpoint)},
        }
    )
    exact = [entry for entry in tiny_chat_answers if entry["exact"]]
    model = LLM()
    from modelkit.model import ModelContext

    model.context = ModelContext(config, tmp_path, {"default": tiny_chat_checkpoint})
    with run_server(model, config=config, http=True) as server:
        callers = asyncio.Semaphore(64)
        async with openai.AsyncOpenAI(base_url=server.http_url + "/v1", api_key="-", timeout=60) as client:

            async def ask(entry, *, stream):
                options = {"model": "tiny-chat", "messages": entry["messages"], "temperature": 0}
                async with callers:
                    if not stream:
                        answer = await client.chat.completions.create(**options)
                        return answer.choices[0].message.content == entry["answer"]
                    chunks = await client.chat.completions.create(**options, stream=True)
                    text = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
                    return text == entry["answer"]

            asked = [ask(entry, stream=stream) for entry in exact for stream in (False, True)]
            assert all(await asyncio.gather(*asked))
        assert "modelkit_output_tokens_total" in httpx.get(server.http_url + "/metrics").text
