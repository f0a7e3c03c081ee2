import asyncio
import dataclasses
import io
import json
from collections.abc import AsyncIterator, Iterator
from typing import Literal

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from modelkit import Audio, Field, Image, Model, Tensor, Text, method
from modelkit.testing import run_server


@dataclasses.dataclass
class Box:
    left: float
    label: str = ""


class Everything(Model):
    """One method of each kind and type."""

    @method
    def greet(self, name: str = Field(min_length=1), times: int = Field(1, ge=1, le=3)) -> str:
        """Greet somebody.

        As often as asked.
        """
        self.report_usage(prompt_tokens=len(name), output_tokens=times)
        self.request.response_metadata["mood"] = "good"
        return f"Hello, {name}! " * times

    @method
    def scale(self, values: npt.NDArray[np.float32], factor: float = 2.0) -> npt.NDArray[np.float32]:
        return values * np.float32(factor)

    @method
    def describe_image(self, image: Image, box: Box | None = None) -> dict[str, str]:
        return {"type": image.media_type, "size": str(len(image)), "box": repr(box)}

    @method
    def join(self, first: bytes, second: bytes = b"") -> bytes:
        return first + second

    @method
    def record(self) -> Audio:
        return Audio(b"pcm", "audio/l16", 16_000)

    @method
    def pick(self, which: Literal["a", "b"]) -> Literal["a", "b"]:
        return which

    @method
    def count(self, to: int, fail_at: int = -1) -> Iterator[Text]:
        for number in range(to):
            if number == fail_at:
                raise RuntimeError("the secret reason")
            self.report_usage(output_tokens=number + 1)
            yield Text(f"{number}\n", (number,))

    @method
    async def double(self, numbers: AsyncIterator[int], offset: int = 0) -> AsyncIterator[int]:
        async for number in numbers:
            yield number * 2 + offset

    @method
    def big(self, size: int) -> Iterator[str]:
        for _ in range(size):
            yield "x" * 1024 * 1024

    @method
    def strange(self) -> object:
        return object()


@pytest.fixture(scope="module")
def url():
    with run_server(Everything, http=True) as server:
        yield f"{server.http_url}/v1/methods"


def call(url, name, arguments, **options):
    return httpx.post(f"{url}/{name}", json=arguments, timeout=20, **options)


def events(text):
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")]


def test_a_unary_method_answers_with_the_facts_of_its_call(url):
    response = call(url, "greet", {"name": "Ada"}, headers={"x-request-id": "mine"})
    assert response.json() == {
        "result": "Hello, Ada! ",
        "usage": {"prompt_tokens": 3, "output_tokens": 1, "cached_tokens": 0},
        "request_id": "mine",
        "metadata": {"mood": "good"},
    }
    assert response.headers["x-request-id"] == "mine"


def test_values_that_json_lacks(url):
    assert call(url, "scale", {"values": [[1, 2]]}).json()["result"]["$tensor"]["shape"] == [1, 2]
    data = Tensor.from_numpy(np.array([3], np.float32)).data
    assert call(url, "join", {"first": {"$bytes": "YQ=="}, "second": "data:;base64,Yg=="}).json()[
        "result"
    ] == {"$bytes": "YWI="}
    assert call(url, "record", {}).json()["result"] == {
        "$audio": "data:audio/l16;base64,cGNt",
        "sample_rate_hz": 16_000,
    }
    assert len(data) == 4


def test_an_image_as_data_url_and_an_object_beside_it(url):
    arguments = {"image": "data:image/png;base64,cG5n", "box": {"left": 1, "label": "cat"}}
    result = call(url, "describe_image", arguments).json()["result"]
    assert result == {"type": "image/png", "size": "3", "box": "Box(left=1.0, label='cat')"}


def test_a_form_with_files(url):
    files = {"image": ("a.png", io.BytesIO(b"png!"), "image/png")}
    response = httpx.post(f"{url}/describe_image", files=files, data={"box": '{"left": 2.0}'})
    assert response.json()["result"] == {"type": "image/png", "size": "4", "box": "Box(left=2.0, label='')"}
    response = httpx.post(f"{url}/join", files={"first": b"a", "second": b"b"})
    assert response.json()["result"] == {"$bytes": "YWI="}
    response = httpx.post(f"{url}/greet", files={"times": ("x", b"2")}, data={"name": "12"})
    assert "cannot be a file" in response.json()["error"]["message"]
    response = httpx.post(f"{url}/greet", data={"name": "12", "times": "2"}, files={"_": b""})
    assert response.json()["error"]["param"] == "_"


@pytest.mark.parametrize(
    ("name", "arguments", "param", "message"),
    [
        ("greet", {}, "name", "is required"),
        ("greet", {"name": "A", "times": 9}, "times", "less than or equal to 3"),
        ("greet", {"name": 3}, "name", "string"),
        ("greet", {"nme": "A"}, "nme", "did you mean 'name'"),
        ("pick", {"which": "c"}, "which", "'a' or 'b'"),
        ("join", {"first": {"$byte": ""}}, "first", "$bytes"),
        ("scale", {"values": [["a"]]}, "values", "do not make a tensor"),
        ("describe_image", {"image": "http://example.com/a.png"}, "image", "data URL"),
    ],
)
def test_a_bad_argument_is_named(url, name, arguments, param, message):
    response = call(url, name, arguments)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"3"])
def test_a_body_that_is_no_object(url, body):
    response = httpx.post(f"{url}/greet", content=body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_argument")


def test_a_method_that_is_not_there(url):
    response = call(url, "gret", {})
    assert response.status_code == 404
    assert "did you mean 'greet'" in response.json()["error"]["message"]


def test_a_result_that_cannot_be_sent(url):
    response = call(url, "strange", {})
    assert response.status_code == 500
    assert "cannot be sent" in response.json()["error"]["message"]


def test_a_stream_is_a_list_unless_events_are_asked_for(url):
    content = call(url, "count", {"to": 2}).json()
    assert content["result"] == [{"$text": "0\n", "token_ids": [0]}, {"$text": "1\n", "token_ids": [1]}]
    assert content["usage"]["output_tokens"] == 2


@pytest.mark.parametrize("how", [{"headers": {"Accept": "text/event-stream"}}, {"params": {"stream": ""}}])
def test_a_stream_as_events_ends_with_the_facts(url, how):
    response = call(url, "count", {"to": 2}, **how)
    assert response.headers["content-type"].startswith("text/event-stream")
    *items, end = events(response.text)
    assert [json.loads(item["data"])["$text"] for item in items] == ["0\n", "1\n"]
    assert end["event"] == "end"
    assert json.loads(end["data"])["usage"]["output_tokens"] == 2
    assert json.loads(end["data"])["request_id"] == response.headers["x-request-id"]


def test_an_error_in_a_stream_is_its_last_event_and_tells_no_trace(url):
    response = call(url, "count", {"to": 3, "fail_at": 2}, params={"stream": "1"})
    *items, end = events(response.text)
    assert len(items) == 2
    assert end["event"] == "error"
    assert json.loads(end["data"])["error"]["code"] == "internal"
    assert "Traceback" not in end["data"]


def test_a_list_that_no_message_holds_is_refused(url):
    response = call(url, "big", {"size": 80})
    assert response.status_code == 429
    assert "text/event-stream" in response.json()["error"]["cure"]


def test_both_ways_from_lines(url):
    response = httpx.post(f"{url}/double", content=b'{"offset": 1}\n1\n2\n\n3', params={"stream": "1"})
    assert [json.loads(event["data"]) for event in events(response.text)[:-1]] == [3, 5, 7]
    assert httpx.post(f"{url}/double", content=b"{}\n4\n").json()["result"] == [8]
    assert httpx.post(f"{url}/double", content=b"").json()["result"] == []
    bad = httpx.post(f"{url}/double", content=b'{}\n"four"\n')
    assert bad.status_code == 400
    assert httpx.post(f"{url}/double", content=b"{}\n{\n").status_code == 400


async def test_both_ways_at_the_same_time(url):
    """Each answer comes before the next item is sent."""
    host, port = httpx.URL(url).host, httpx.URL(url).port
    reader, writer = await asyncio.open_connection(host, port)
    head = "POST /v1/methods/double?stream HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode() + b"3\r\n{}\n\r\n")
    for number in (1, 2, 3):
        writer.write(b"2\r\n%d\n\r\n" % number)
        assert await asyncio.wait_for(reader.readuntil(b"data: %d\n\n" % (number * 2)), 5)
    writer.write(b"0\r\n\r\n")
    assert b"event: end" in await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 5)
    writer.close()


def test_the_description_is_json_with_schemas(url):
    content = httpx.get(url).json()
    assert content["ready"] is True
    methods = {one["name"]: one for one in content["methods"]}
    greet = methods["greet"]
    assert greet["kind"] == "unary"
    assert greet["description"].startswith("Greet somebody.")
    assert greet["arguments"][1]["schema"] == {"type": "integer", "minimum": 1, "maximum": 3, "default": 1}
    assert greet["arguments"][0]["required"] is True
    assert methods["double"]["streamed_argument"] == "numbers"
    assert methods["describe_image"]["arguments"][1]["type"] == "Box | None"
    assert content["$defs"]["Box"]["required"] == ["left"]


class Promises(Model):
    @method
    def predict(self, value: object) -> float:
        return value  # type: ignore[return-value]

    @method
    async def generate(self, value: object) -> AsyncIterator[float]:
        yield 1
        yield value  # type: ignore[misc]


def test_a_result_is_held_against_its_annotation_over_http_too():
    with run_server(Promises, http=True) as server, httpx.Client(base_url=server.http_url) as http:
        assert http.post("/v1/methods/predict", json={"value": 3}).text.startswith('{"result":3.0,')
        response = http.post("/v1/methods/predict", json={"value": "3"})
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "'predict' promises float and gave str"
        events = http.post("/v1/methods/generate?stream", json={"value": None}).text
        assert events.startswith("data: 1.0\n\n")
        assert "'generate' promises float and gave NoneType" in events
