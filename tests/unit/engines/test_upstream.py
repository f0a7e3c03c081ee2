import asyncio
import itertools

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkit.engines.health import Traffic
from modelkit.engines.upstream import Upstream, _events, _is_last_response_event, _message_in, _status_in
from modelkit.errors import InternalError, InvalidArgumentError, OverloadedError, UnavailableError


async def _cut(content, cuts):
    edges = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        yield content[start:end]


def _framed(content, cuts):
    async def collect():
        return [data async for data in _events(_cut(content, cuts), Traffic())]

    return asyncio.run(collect())


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), max_size=6),
    st.lists(st.integers(min_value=0), max_size=20),
    st.sampled_from([b"\n", b"\r\n"]),
    st.sampled_from([b"data: ", b"data:"]),
)
def test_events_are_the_same_wherever_the_bytes_are_cut(events, cuts, end, prefix):
    data = [orjson.dumps(event) for event in events]
    content = b"".join(prefix + item + end + end for item in data)
    assert _framed(content, cuts) == data


def test_every_single_cut_of_a_stream_gives_the_same_events():
    content = 'data: {"text":"naïve 🙂"}\r\n\r\n: a comment\nevent: x\nid: 3\ndata: [DONE]\n\n'.encode()
    expected = ['{"text":"naïve 🙂"}'.encode(), b"[DONE]"]
    for cut in range(len(content)):
        assert _framed(content, [cut]) == expected
    assert _framed(content, range(len(content))) == expected


def test_a_last_line_without_its_end_counts():
    assert _framed(b"data: [DONE]", []) == [b"[DONE]"]


@pytest.mark.parametrize(
    ("content", "message", "code"),
    [
        # vLLM
        (b'{"error":{"message":"too long","type":"BadRequestError","param":"input_tokens","code":400}}', "too long", 400),
        # SGLang: the same object as a response, and inside {"error": ...} in a stream
        (b'{"object":"error","message":"no model","type":"NotFound","param":null,"code":404}', "no model", 404),
        (b'{"error": {"object": "error", "message": "bad top_k", "type": "BadRequestError", "code": 400}}', "bad top_k", 400),
        # LMDeploy
        (b'{"message":"n must be positive","type":"invalid_request_error","code":400,"param":null,"object":"error"}',
         "n must be positive", 400),
        # TGI
        (b'{"error":"Input validation error","error_type":"validation"}', "Input validation error", 500),
        # FastAPI
        (b'{"detail":"Not Found"}', "Not Found", 500),
        (b'{"detail":[{"loc":["body","n"],"msg":"field required"}]}', '[{"loc":["body","n"],"msg":"field required"}]', 500),
        (b'{"error":{"message":"quota","code":"insufficient_quota"}}', "quota", 500),
        (b"Internal Server Error", "Internal Server Error", 500),
        (b"", "", 500),
    ],
)  # fmt: skip
def test_an_error_of_any_engine_is_read(content, message, code):
    assert _message_in(content) == message
    assert _status_in(content) == code


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidArgumentError), (429, OverloadedError), (500, InternalError), (503, UnavailableError), (418, InternalError)],
)  # fmt: skip
def test_the_status_decides_the_class(status, kind):
    upstream = Upstream("vllm", "http://127.0.0.1:1")
    error = upstream._error(b"no", status)
    assert type(error) is kind
    assert error.message == "vllm: no"
    assert bool(error.retry_after_s) == (kind in (OverloadedError, UnavailableError))
    assert upstream.traffic.num_failed == (status >= 500)


def test_an_error_without_words_says_its_status():
    assert Upstream("x", "http://h")._error(b"", 502).message == "x: HTTP status 502"


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_url_may_end_in_v1(url):
    assert Upstream("x", url).url == "http://h:1"


async def test_a_server_that_is_not_there_is_unavailable():
    upstream = Upstream("vllm", "http://127.0.0.1:1")
    with pytest.raises(UnavailableError, match="vllm went away") as error:
        await upstream.post("/completions", b"{}")
    assert error.value.retry_after_s
    await upstream.close()


@pytest.mark.parametrize(
    ("event", "is_last"),
    [
        (b'{"response": {"output": []}, "type": "response.completed"}', True),
        (b'{"type": "response.completed", "response": {}}', True),
        (b'{"delta": "say response.completed", "type": "response.output_text.delta"}', False),
        (b"response.completed", False),
    ],
)
def test_the_last_event_of_a_response_is_known_wherever_its_type_stands(event, is_last):
    assert _is_last_response_event(event) is is_last
