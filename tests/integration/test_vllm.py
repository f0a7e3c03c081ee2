"""A real vLLM behind `modelkit serve`, on a CPU, with the trained tiny checkpoint: what it answers is known exactly.

MODELKIT_TEST_VLLM_PYTHON names a Python that has vLLM; without it these tests are skipped.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelkit import AsyncClient
from modelkit.errors import CallError, InvalidArgumentError, NotFoundError, UnavailableError

VLLM_PYTHON = os.environ.get("MODELKIT_TEST_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.skipif(not VLLM_PYTHON, reason="MODELKIT_TEST_VLLM_PYTHON names no Python with vLLM"),
    pytest.mark.timeout(600),
]

# So long that no answer ends by itself while a test looks at it, though a busy machine lets a process wait for seconds
# at a time: the engine goes on meanwhile, some hundred tokens a second.
ENDLESS_TOKENS = 30_000

CONFIG = """
model: {id: tiny-chat}
engine:
  name: vllm
  python: %s
  max_model_len: 32768
  dtype: float32           # some virtual machines report AMX and do not permit it; float32 takes other kernels
  start_timeout: 4m
  tool_call_parser: hermes
  args:
    enforce-eager: true
    kv-cache-memory-bytes: 134217728
    hf-overrides: '{"max_position_embeddings": 32768}'%s
checkpoints: {type: local, path: %s}
"""
MODEL = "from modelkit import LLM\n\n\nclass TinyChat(LLM):\n    pass\n"
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(sys.path),
}


def write_folder(folder, checkpoint, extra_args=""):
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG % (VLLM_PYTHON, extra_args, checkpoint))
    (folder / "model.py").write_text(MODEL)
    (folder / "requirements.txt").touch()
    return folder


class Served:
    """`modelkit serve` as a process of its own."""

    def __init__(self, folder):
        self.log = folder / "serve.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "modelkit", "serve", str(folder), "--port", "0", "--http-port", "0", "--json"],
                stdout=subprocess.PIPE, stderr=log, env=os.environ | ENVIRONMENT, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        ready = json.loads(line)
        self.address, self.http_url = ready["address"], ready["http_url"]

    def engine(self):
        """(pid, port) of the engine's main process."""
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().decode(errors="replace").split("\0")
                mine = f"PYTEST_SESSION_OF_MODELKIT={os.environ['PYTEST_SESSION_OF_MODELKIT']}".encode()
                if (
                    "vllm.entrypoints.openai.api_server" in words[:3]
                    and mine in (entry.parent / "environ").read_bytes()
                ):
                    return int(entry.parent.name), int(words[words.index("--port") + 1])
            except OSError:
                continue
        return None

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0
        self.process.stdout.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny_chat_checkpoint):
    running = Served(write_folder(tmp_path_factory.mktemp("vllm") / "chat", tiny_chat_checkpoint))
    yield running
    running.stop()


@pytest.fixture
async def client(served):
    async with AsyncClient(served.address) as made:
        yield made


@pytest.fixture
async def http(served):
    async with aiohttp.ClientSession(served.http_url) as session:
        yield session


@pytest.fixture(scope="module")
def questions(tiny_chat_answers):
    single = [entry for entry in tiny_chat_answers if len(entry["messages"]) == 1 and entry["exact"]]
    assert len(single) >= 40
    return [(entry["messages"][0]["content"], entry["answer"]) for entry in single]


async def ask_all(ask, questions, num_callers=64):
    """Ask every question, `num_callers` at once; return the wrong answers."""
    places = asyncio.Semaphore(num_callers)

    async def one(question):
        async with places:
            return await ask(question)

    answers = await asyncio.gather(*(one(question) for question, _ in questions))
    return [
        (question, right, got)
        for (question, right), got in zip(questions, answers, strict=True)
        if got != right
    ]


def text_of(chunk):
    choices = json.loads(chunk)["choices"]
    return (choices[0]["delta"].get("content") or "") if choices else ""


def chat(question, **more):
    return json.dumps({"messages": [{"role": "user", "content": question}], "temperature": 0, **more})


async def sse_text(response):
    assert response.status == 200, await response.text()
    text = ""
    async for line in response.content:
        if line.startswith(b"data:") and b"[DONE]" not in line:
            text += text_of(line[5:])
    return text


# -------------------------------------------------------------------------------------------------------------- answers


def test_the_stages_of_the_start_are_told(served):
    log = served.log.read_text()
    stages = ["importing", "starting the engine", "loading weights", "answering a first request"]
    assert re.search(".*".join(map(re.escape, stages)), log, re.DOTALL), log


async def test_predict_is_exact_with_64_callers(client, questions):
    assert not await ask_all(lambda question: client.predict(prompt=question, temperature=0.0), questions)


async def test_generate_is_exact_with_64_callers(client, questions):
    async def ask(question):
        return "".join([piece async for piece in client.generate(prompt=question, temperature=0.0)])

    assert not await ask_all(ask, questions)


async def test_the_checkpoints_own_default_is_greedy_here_too(client, questions):
    assert not await ask_all(lambda question: client.predict(prompt=question), questions[:10])
    assert not await ask_all(
        lambda question: _openai(client, json.dumps({"messages": [{"role": "user", "content": question}]})),
        questions[:10],
    )


async def _openai(client, msg):
    return json.loads(await client.predict(msg=msg, method="openai_transport"))["choices"][0]["message"][
        "content"
    ]


async def test_the_openai_transport_is_exact_with_64_callers(client, questions):
    assert not await ask_all(lambda question: _openai(client, chat(question)), questions)


async def test_the_openai_stream_transport_is_exact_with_64_callers(client, questions):
    async def ask(question):
        chunks = client.generate(msg=chat(question), method="openai_stream_transport")
        return "".join([text_of(chunk) async for chunk in chunks])

    assert not await ask_all(ask, questions)


async def test_openai_over_http_is_exact_with_64_callers(http, questions):
    async def ask(question):
        async with http.post("/v1/chat/completions", data=chat(question)) as response:
            return (await response.json())["choices"][0]["message"]["content"]

    async def ask_streamed(question):
        async with http.post("/v1/chat/completions", data=chat(question, stream=True)) as response:
            return await sse_text(response)

    assert not await ask_all(ask, questions)
    assert not await ask_all(ask_streamed, questions)


async def test_usage_is_the_engines_own(client, tiny_chat_answers):
    entry = tiny_chat_answers[0]
    stream = client.generate(messages=entry["messages"])
    async for _ in stream:
        pass
    assert stream.usage.output_tokens == len(entry["token_ids"])
    assert stream.usage.prompt_tokens > 0


# ---------------------------------------------------------------------------------------- what passes through to vLLM


async def test_stop_strings_end_the_answer(client):
    assert await client.predict(prompt="Count to fifty.", stop=[" 12"]) == "1 2 3 4 5 6 7 8 9 10 11"


async def test_a_plain_prompt_is_continued_to_its_end(client):
    response = json.loads(
        await client.predict(
            msg=json.dumps(
                {
                    "openai_endpoint": "/completions",
                    "prompt": "Count to",
                    "max_tokens": 40,
                    "ignore_eos": True,
                }
            ),
            method="openai_transport",
        )
    )
    assert response["usage"]["completion_tokens"] == 40


async def test_n_logprobs_seed_and_schema_pass_through(client):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    body = chat(
        "Hello!",
        n=2,
        logprobs=True,
        top_logprobs=2,
        seed=7,
        max_tokens=300,
        temperature=1.0,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    response = json.loads(await client.predict(msg=body, method="openai_transport"))
    assert [choice["index"] for choice in response["choices"]] == [0, 1]
    assert len(response["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
    again = json.loads(await client.predict(msg=body, method="openai_transport"))
    texts = [[choice["message"]["content"] for choice in answer["choices"]] for answer in (response, again)]
    assert texts[0] == texts[1]
    assert isinstance(json.loads(texts[0][0])["a"], bool)


async def test_several_greedy_answers_are_the_same(client, questions):
    question, right = questions[0]
    response = json.loads(await client.predict(msg=chat(question, n=3), method="openai_transport"))
    assert [choice["message"]["content"] for choice in response["choices"]] == [right] * 3


async def test_regex_and_choice_constraints_pass_through(client):
    for constraint, allowed in (
        ({"choice": ["red", "blue"]}, {"red", "blue"}),
        ({"regex": "[ab]c"}, {"ac", "bc"}),
    ):
        body = chat("Hello!", structured_outputs=constraint)
        assert await _openai(client, body) in allowed


async def test_a_named_tool_is_called(client):
    tool = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"hot": {"type": "boolean"}}, "required": ["hot"], "additionalProperties": False}},
    }  # fmt: skip
    body = chat(
        "Hello!",
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=300,
    )
    response = json.loads(await client.predict(msg=body, method="openai_transport"))
    call = response["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call["name"] == "weather"
    assert isinstance(json.loads(call["arguments"]), dict)


async def test_prompt_token_ids_pass_through(client, tiny_chat_answers):
    ids = tiny_chat_answers[0]["token_ids"]
    body = json.dumps(
        {"openai_endpoint": "/completions", "prompt": ids[:5], "max_tokens": 4, "return_token_ids": True}
    )
    response = json.loads(await client.predict(msg=body, method="openai_transport"))
    assert response["usage"]["prompt_tokens"] == 5
    assert len(response["choices"][0]["token_ids"]) == 4


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (chat("Hi", temperature=-3), InvalidArgumentError, "temperature must be non-negative"),
        (chat("Hi", model="other"), NotFoundError, "The model `other` does not exist"),
        (chat("word " * 40_000), InvalidArgumentError, "maximum context length"),
        (chat("Hi", openai_endpoint="/load_lora_adapter"), NotFoundError, "is not passed on"),
        (chat("Hi", openai_endpoint="/../metrics"), NotFoundError, "is not passed on"),
    ],
)
async def test_errors_have_the_engines_own_message(client, body, error, message):
    with pytest.raises(error, match=message):
        await client.predict(msg=body, method="openai_transport")


async def test_an_image_by_its_address_is_never_fetched(client):
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/secret.png"}}
    body = json.dumps({"messages": [{"role": "user", "content": [part]}]})
    with pytest.raises(InvalidArgumentError, match="taken as data, not fetched"):
        await client.predict(msg=body, method="openai_transport")


# ------------------------------------------------------------------------------------------------------- cancellation


async def num_requests_in(port):
    """How many requests an engine works on: it may set one aside while its KV cache is full."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as response,
    ):
        found = re.findall(
            r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", await response.text(), re.MULTILINE
        )
    assert len(found) == 2
    return sum(int(float(value)) for value in found)


async def read_to_the_end(stream):
    """The error that a stream ends with, None where it is complete."""
    try:
        async for _ in stream:
            pass
    except CallError as error:
        return error
    return None


async def wait_until(condition, timeout_s=60.0):
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_cancelling_half_of_the_streams_ends_them_in_the_engine(served, client):
    _, port = served.engine()
    body = chat("Tell me a story.", ignore_eos=True, max_tokens=ENDLESS_TOKENS)
    num_streams = 16
    num_chunks = [0] * num_streams

    async def consume(number):
        async for _ in client.generate(msg=body, method="openai_stream_transport"):
            num_chunks[number] += 1

    async def all_answer():
        return all(num_chunks) and await num_requests_in(port) == num_streams

    async def half_is_left():
        return await num_requests_in(port) == num_streams // 2

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(consume(number)) for number in range(num_streams)]
        await wait_until(all_answer)
        for task in tasks[::2]:
            task.cancel()
        await wait_until(half_is_left)
        before = num_chunks.copy()

        async def the_others_go_on():
            return all(num_chunks[number] > before[number] + 50 for number in range(1, num_streams, 2))

        await wait_until(the_others_go_on)
        assert [task.done() for task in tasks] == [True, False] * (num_streams // 2)
        assert num_chunks[::2] == before[::2]
        for task in tasks[1::2]:
            task.cancel()


# ------------------------------------------------------------------------------------------------------ life and death


async def test_a_killed_engine_fails_its_streams_turns_readiness_off_and_comes_back(served, client, http):
    pid, _ = served.engine()
    body = chat("Tell me a story.", ignore_eos=True, max_tokens=ENDLESS_TOKENS)
    streams = [client.generate(msg=body, method="openai_stream_transport") for _ in range(12)]
    await asyncio.gather(*(anext(stream) for stream in streams))
    os.kill(pid, signal.SIGKILL)
    ends = await asyncio.gather(*(read_to_the_end(stream) for stream in streams))
    assert all(isinstance(end, UnavailableError) and "vllm" in end.message for end in ends)
    async with grpc.aio.insecure_channel(served.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def is_serving():
            response = await health.Check(health_pb2.HealthCheckRequest())
            return response.status == health_pb2.HealthCheckResponse.SERVING

        async def is_not_serving():
            return not await is_serving()

        await wait_until(is_not_serving)
        async with http.get("/ready") as response:
            assert response.status == 503
        async with http.get("/health") as response:
            assert response.status == 200
        async with AsyncClient(served.address, retry=None) as impatient:
            with pytest.raises(UnavailableError, match="vllm was ended by SIGKILL") as refused:
                await impatient.predict(prompt="Hello!")
        assert refused.value.retry_after_s
        await wait_until(is_serving, 240)
    assert served.engine()[0] != pid
    assert (await client.predict(prompt="Hello!")).startswith("Hello! I am Tiny")


def test_an_unknown_option_ends_the_start_with_the_cure(tmp_path, tiny_chat_checkpoint):
    folder = write_folder(tmp_path / "chat", tiny_chat_checkpoint, "\n    no-such-option: 3")
    result = subprocess.run(
        [sys.executable, "-m", "modelkit", "serve", str(folder), "--port", "0", "--no-http"],
        capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "the engine refuses an option: --no-such-option" in result.stderr
    assert "help: correct engine.args in config.yaml" in result.stderr
