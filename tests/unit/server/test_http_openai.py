import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from modelkit import Model, method
from modelkit.config import Config
from modelkit.engines.llm import LLM
from modelkit.errors import EngineError, OverloadedError
from modelkit.server import ServerOptions
from modelkit.testing import run_server

ECHO = Config.model_validate({"model": {"id": "echo-chat"}, "engine": {"name": "echo"}})
HELLO = {"model": "echo-chat", "messages": [{"role": "user", "content": "hello to you"}]}


@pytest.fixture(scope="module")
def url():
    with run_server(LLM, config=ECHO, http=True) as server:
        yield server.http_url


def sse(text):
    """Return (event name, data) of each event."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        fields = [line.partition(": ")[::2] for line in block.split("\n")]
        name = next((value for key, value in fields if key == "event"), "")
        events.append((name, "\n".join(value for key, value in fields if key == "data")))
    return events


def test_models(url):
    listed = httpx.get(url + "/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["echo-chat"]
    assert httpx.get(url + "/v1/models/echo-chat").json() == listed["data"][0]
    response = httpx.get(url + "/v1/models/other/name")
    assert response.status_code == 404
    assert "there is no model 'other/name' here" in response.json()["error"]["message"]


def test_chat(url):
    response = httpx.post(url + "/v1/chat/completions", json=HELLO, headers={"x-request-id": "mine"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == "mine"
    assert response.json()["choices"][0]["message"]["content"] == "hello to you"


def test_a_stream_is_framed_as_openai_frames_it(url):
    response = httpx.post(url + "/v1/chat/completions", json={**HELLO, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    *chunks, last = sse(response.text)
    assert last == ("", "[DONE]")
    assert {name for name, _ in chunks} == {""}
    deltas = [json.loads(data)["choices"][0]["delta"].get("content", "") for _, data in chunks]
    assert "".join(deltas) == "hello to you"
    assert response.text.endswith("\n\n")


def test_completions_is_its_own_endpoint(url):
    response = httpx.post(url + "/v1/completions", json={"prompt": "a b", "max_tokens": 1})
    assert response.json()["object"] == "text_completion"
    assert response.json()["choices"][0]["text"] == "a"


@pytest.mark.parametrize("endpoint", ["embeddings", "responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_endpoint_that_the_engine_lacks(url, endpoint, stream):
    response = httpx.post(f"{url}/v1/{endpoint}", json={"input": "hi", "stream": stream})
    assert response.status_code == 404
    assert f"has no endpoint /{endpoint}" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "not a JSON object"),
        (b"[]", 400, "not a JSON object"),
        (b"{", 400, "not a JSON object"),
        (b"{nonsense}", 400, "not JSON"),
        (b'{"stream": tru}', 400, "not JSON"),
        (b'{"stream": "yes"}', 400, "'stream' must be true or false"),
        (b'{"messages": "\xff"}', 400, "UTF-8"),
        (b"{}", 400, "messages"),
        (b'{"messages": [{"role": "user", "content": "a"}], "max_token": 3}', 400, "max_token"),
        (b'{"messages": [{"role": "user", "content": "a"}], "stream": true, "n": 0}', 400, "'n'"),
    ],
)
def test_a_bad_request_says_what_is_wrong(url, body, status, message):
    response = httpx.post(
        url + "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == status
    error = response.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert response.headers["x-request-id"]


def test_a_caller_cannot_choose_another_endpoint_inside_the_body(url):
    body = {**HELLO, "openai_endpoint": "/completions"}
    assert httpx.post(url + "/v1/chat/completions", json=body).json()["object"] == "chat.completion"


def test_what_curl_sends_by_itself_is_taken(url):
    body = json.dumps(HELLO).encode()
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert httpx.post(url + "/v1/chat/completions", content=body, headers=headers).status_code == 200


def test_a_model_without_the_transport_says_where_to_go_instead():
    class Plain(Model):
        @method
        def predict(self, text: str) -> str:
            return text

    with run_server(Plain, http=True) as server:
        response = httpx.post(server.http_url + "/v1/chat/completions", json=HELLO)
        assert response.status_code == 404
        assert "/v1/methods/NAME" in response.json()["error"]["cure"]
        assert httpx.get(server.http_url + "/v1/models").status_code == 404


def test_a_model_that_cannot_stream_says_so():
    class Whole(Model):
        @method
        def openai_transport(self, msg: str) -> str:
            return msg

    with run_server(Whole, http=True) as server:
        response = httpx.post(server.http_url + "/v1/completions", json={"prompt": "a", "stream": True})
        assert response.status_code == 501
        answer = httpx.post(server.http_url + "/v1/completions", json={"prompt": "a"}).json()
        assert answer == {"prompt": "a", "openai_endpoint": "/completions"}


class Scripted(LLM):
    """Streams what a test asks for, and remembers when a call was given up."""

    async def load(self) -> None:
        self.ended_at: asyncio.Queue = asyncio.Queue()
        self.num_items = 0

    @method
    async def openai_transport(self, msg: str) -> str:
        return await self._guarded(json.loads(msg))

    async def _guarded(self, body):
        try:
            await asyncio.sleep(body.get("sleep_s", 0))
        finally:
            self.ended_at.put_nowait(time.monotonic())
        return "{}"

    @method
    async def openai_stream_transport(self, msg: str) -> AsyncIterator[str]:
        body = json.loads(msg)
        errors = {"engine": EngineError("out of memory"), "busy": OverloadedError("busy", retry_after_s=3)}
        try:
            for number in range(body["num"]):
                await asyncio.sleep(body.get("sleep_s", 0))
                self.num_items += 1
                yield json.dumps(
                    {"number": number, "pad": "x" * body.get("pad", 0), "type": "response.delta"}
                )
            if body.get("error"):
                raise errors[body["error"]]
            await asyncio.sleep(body.get("then_s", 0))
        finally:
            self.ended_at.put_nowait(time.monotonic())


@pytest.fixture
def scripted():
    options = ServerOptions(port=0, http_port=0, max_concurrency=4, max_queue=0, max_message_bytes=64 * 1024)
    with run_server(Scripted, options=options) as server:
        yield server


def post(server, body, endpoint="chat/completions", **headers):
    return httpx.post(f"{server.http_url}/v1/{endpoint}", json=body, headers=headers, timeout=20)


def metric(server, name):
    lines = httpx.get(server.http_url + "/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


def test_an_error_in_the_middle_is_the_last_event(scripted):
    events = sse(post(scripted, {"stream": True, "num": 3, "error": "engine"}).text)
    assert [json.loads(data).get("number") for _, data in events] == [0, 1, 2, None]
    assert json.loads(events[-1][1])["error"]["message"] == "out of memory"
    assert json.loads(events[-1][1])["error"]["code"] == "internal"


def test_an_error_before_the_first_item_has_a_status(scripted):
    response = post(scripted, {"stream": True, "num": 0, "error": "busy"})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.headers["x-should-retry"] == "true"


def test_an_empty_stream_is_an_empty_stream(scripted):
    response = post(scripted, {"stream": True, "num": 0})
    assert (response.status_code, response.text) == (200, "data: [DONE]\n\n")


def test_the_responses_api_names_its_events(scripted):
    events = sse(post(scripted, {"stream": True, "num": 2}, endpoint="responses").text)
    assert [name for name, _ in events] == ["response.delta", "response.delta"]


def test_a_body_over_the_limit_is_refused(scripted):
    response = post(scripted, {"num": 0, "pad": "x" * 70_000})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_the_call(scripted, stream):
    started = time.monotonic()
    body = {"stream": stream, "num": 1, "sleep_s": 30}
    response = post(scripted, body, **{"x-request-timeout": "0.2"})
    assert response.status_code == 504
    assert time.monotonic() - started < 2
    assert scripted.run(asyncio.wait_for(scripted.server.predictor.model.ended_at.get(), 2))
    assert metric(scripted, 'modelkit_calls_total{code="DEADLINE_EXCEEDED"') == 1


def test_a_deadline_in_the_middle_is_the_last_event(scripted):
    response = post(scripted, {"stream": True, "num": 1, "then_s": 30}, **{"x-request-timeout": "0.2"})
    assert json.loads(sse(response.text)[-1][1])["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("timeout", ["soon", "-1", "0", "nan"])
def test_a_deadline_that_is_none_is_refused(scripted, timeout):
    assert post(scripted, {"num": 0}, **{"x-request-timeout": timeout}).status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_that_goes_away_cancels_its_call(scripted, stream):
    body = json.dumps({"stream": stream, "num": 1, "sleep_s": 0 if stream else 30, "then_s": 30})
    with socket.create_connection(
        (httpx.URL(scripted.http_url).host, httpx.URL(scripted.http_url).port)
    ) as raw:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall((head + body).encode())
        if stream:
            assert b"200 OK" in raw.recv(65536)
        else:
            time.sleep(0.2)
    left = time.monotonic()
    ended = scripted.run(asyncio.wait_for(scripted.server.predictor.model.ended_at.get(), 2))
    assert ended - left < 0.1
    assert metric(scripted, 'modelkit_calls_total{code="CANCELLED"') == 1
    assert metric(scripted, "modelkit_calls_running") == 0


def test_more_callers_than_the_queue_holds_are_told_to_come_again(scripted):
    async def many():
        async with httpx.AsyncClient(base_url=scripted.http_url, timeout=20) as client:
            calls = [client.post("/v1/chat/completions", json={"sleep_s": 0.3}) for _ in range(8)]
            return await asyncio.gather(*calls)

    answers = asyncio.run(many())
    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [429] * 4


def test_a_slow_reader_holds_the_model_back_and_loses_nothing(scripted):
    model = scripted.server.predictor.model
    body = {"stream": True, "num": 4000, "pad": 4000}
    numbers = []
    with httpx.stream("POST", scripted.http_url + "/v1/chat/completions", json=body, timeout=30) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        stuck_at = wait_until_still(lambda: model.num_items)
        # 16 MB in all; the sockets of both sides hold a few, the server 320 KiB.
        assert stuck_at < 3000
        numbers = [json.loads(line[6:])["number"] for line in lines if line.startswith("data: {")]
    assert numbers == list(range(1, 4000))


def wait_until_still(read):
    before = -1
    while (now := read()) != before:
        before = now
        time.sleep(0.3)
    return now


def test_shutdown_waits_for_a_stream(scripted):
    with httpx.stream(
        "POST", scripted.http_url + "/v1/chat/completions", json={"stream": True, "num": 10, "sleep_s": 0.05}
    ) as response:
        lines = response.iter_lines()
        next(lines)
        scripted.run(asyncio.sleep(0))
        stopping = asyncio.run_coroutine_threadsafe(scripted.server.shutdown(), scripted._loop)
        time.sleep(0.1)
        ready = httpx.get(scripted.http_url + "/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "the model is draining")
        assert post(scripted, {"num": 0}).status_code == 503
        assert [line for line in lines if line][-1] == "data: [DONE]"
    stopping.result(5)
    with pytest.raises(httpx.ConnectError):
        httpx.get(scripted.http_url + "/health")


def test_a_stream_that_outlasts_the_drain_is_told_why():
    options = ServerOptions(port=0, http_port=0, drain_timeout_s=0.2)
    with (
        run_server(Scripted, options=options) as server,
        httpx.stream(
            "POST", server.http_url + "/v1/chat/completions", json={"stream": True, "num": 1, "then_s": 30}
        ) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        server.run(server.server.shutdown())
        last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the server is shutting down"
