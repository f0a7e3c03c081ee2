"""The LLM class over an engine without weights."""

from collections.abc import AsyncIterator

import orjson
import pytest

from modelkit import LLM, method
from modelkit.config import Config
from modelkit.engines import SamplingParams
from modelkit.errors import InvalidArgumentError, LoadError, UnavailableError
from modelkit.model import REQUEST, Request, read_signatures
from modelkit.model.base import ModelContext


class Shouter(LLM):
    @method
    async def shout(self, text: str) -> str:
        """Answer twice, loudly."""
        return (await self.complete(text)).upper() + (await self.complete(text, max_tokens=1)).upper()

    @method
    async def letters(self, text: str) -> AsyncIterator[str]:
        """Stream the answer letter by letter."""
        async for piece in self.stream(text):
            for letter in piece:
                yield letter


def make_model(tmp_path, cls=Shouter, **engine):
    model = cls()
    config = Config.model_validate({"model": {"id": "m"}, "engine": {"name": "echo", **engine}})
    model.context = ModelContext(config, tmp_path)
    return model


@pytest.fixture
async def model(tmp_path):
    model = make_model(tmp_path)
    await model.load()
    yield model
    await model.close()


@pytest.fixture
def call():
    """The call being answered, as the server sets it."""
    request = Request(id="1", method="predict")
    token = REQUEST.set(request)
    yield request
    REQUEST.reset(token)


async def test_predict_answers_and_reports_usage(model, call):
    assert await model.predict("one two") == "one two"
    assert (call.usage.prompt_tokens, call.usage.output_tokens) == (2, 3)
    assert call.finish_reason == "stop"


async def test_generate_streams_and_usage_grows_with_each_piece(model, call):
    seen = [(text, call.usage.output_tokens) async for text in model.generate("one two three")]
    assert seen == [("one", 1), (" two", 2), (" three", 3)]
    assert call.usage.output_tokens == 4


async def test_usage_of_several_answers_in_one_call_adds_up(model, call):
    assert await model.shout("one two") == "ONE TWOONE"
    assert (call.usage.prompt_tokens, call.usage.output_tokens) == (4, 4)


async def test_a_method_of_the_author_streams(model):
    assert [letter async for letter in model.letters("a bc")] == ["a", " ", "b", "c"]


async def test_options_reach_the_engine(model):
    assert await model.predict("one two three", max_tokens=2) == "one two"
    assert await model.predict("one two three", stop=["two"]) == "one "


async def test_every_option_reaches_the_engine_from_both_methods(model, monkeypatch):
    seen = []
    generate = model.engine.generate
    monkeypatch.setattr(model.engine, "generate", lambda request: seen.append(request) or generate(request))
    options = {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.6,
        "top_k": 7,
        "min_p": 0.1,
        "stop": ["x", "y"],
        "seed": 8,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "min_tokens": 1,
    }
    given = {"prompt": "one two", "messages": [{"role": "user", "content": "before"}], "system": "be brief"}
    arguments = {argument.name for argument in read_signatures(Shouter)["predict"].arguments}
    assert arguments == options.keys() | given.keys()
    await model.predict(**given, **options)
    assert [text async for text in model.generate(**given, **options)]
    expected = SamplingParams(**{**options, "stop": ("x", "y")})
    assert [request.sampling for request in seen] == [expected, expected]
    assert [len(request.messages) for request in seen] == [3, 3]


@pytest.mark.parametrize("stop", ["two", ["two"], ("zzz", "two")])
async def test_a_stop_is_a_string_or_several(model, stop):
    assert await model.complete("one two three", stop=stop) == "one "


async def test_an_engine_that_is_down_makes_the_model_unready(model):
    assert model.unready_reason == ""
    model.engine.down_reason = "the engine is down"
    assert model.unready_reason == "the engine is down"
    assert LLM().unready_reason == ""


async def test_messages_system_and_prompt_make_one_chat(model):
    request = model._request("now", [{"role": "user", "content": "before"}], "be brief", None)
    assert request.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "before"},
        {"role": "user", "content": "now"},
    ]
    assert await model.predict(messages=[{"role": "user", "content": "hello there"}]) == "hello there"


async def test_a_prompt_is_continued_where_there_is_no_chat_template(model, monkeypatch):
    monkeypatch.setattr(type(model.engine), "has_chat_template", property(lambda _: False))
    assert model._request("once upon", (), "", None).prompt == "once upon"
    assert model._request("once upon", (), "be brief", None).messages is not None


async def test_nothing_to_answer_is_refused(model):
    with pytest.raises(InvalidArgumentError, match="prompt or messages"):
        await model.predict()


async def test_an_engine_that_closes_makes_the_call_unavailable(tmp_path):
    model = make_model(tmp_path, args={"delay_s": 0.01})
    await model.load()
    pieces = model.stream("word " * 50)
    await anext(pieces)
    await model.close()
    with pytest.raises(UnavailableError):
        async for _ in pieces:
            pass


async def test_openai_transport_answers_and_reports_usage(model, call):
    msg = orjson.dumps({"messages": [{"role": "user", "content": "one two"}], "stream": True}).decode()
    response = orjson.loads(await model.openai_transport(msg))
    assert response["choices"][0]["message"]["content"] == "one two"
    assert response["model"] == "m"
    assert (call.usage.prompt_tokens, call.usage.output_tokens) == (2, 3)


@pytest.mark.parametrize("endpoint", ["/completions", "completions", "/v1/completions"])
async def test_openai_endpoint_in_the_message_chooses(model, endpoint):
    msg = orjson.dumps({"openai_endpoint": endpoint, "prompt": "one two"}).decode()
    assert orjson.loads(await model.openai_transport(msg))["choices"][0]["text"] == "one two"


@pytest.mark.parametrize("wanted", [True, False])
async def test_openai_stream_reports_usage_and_passes_it_on_only_when_asked(model, call, wanted):
    body = {"messages": [{"role": "user", "content": "one two"}]}
    if wanted:
        body["stream_options"] = {"include_usage": True}
    chunks = [
        orjson.loads(chunk) async for chunk in model.openai_stream_transport(orjson.dumps(body).decode())
    ]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text == "one two"
    assert ("usage" in chunks[-1]) is wanted
    assert call.usage.output_tokens == 3


@pytest.mark.parametrize("msg", ["{", "[]", '{"openai_endpoint": 3}'])
async def test_an_openai_message_that_is_no_request_is_refused(model, msg):
    with pytest.raises(InvalidArgumentError, match=r"msg|openai_endpoint"):
        await model.openai_transport(msg)


async def test_an_llm_without_engine_says_what_to_add(tmp_path):
    model = LLM()
    model.context = ModelContext(Config.model_validate({"model": {"id": "m"}}), tmp_path)
    with pytest.raises(LoadError, match="engine") as caught:
        await model.load()
    assert "engine:" in caught.value.cure
    await model.close()


def test_the_signatures_can_be_served():
    signatures = read_signatures(Shouter)
    assert set(signatures) == {
        "predict", "generate", "openai_transport", "openai_stream_transport", "shout", "letters",
    }  # fmt: skip
    assert [a.name for a in signatures["predict"].arguments] == [
        a.name for a in signatures["generate"].arguments
    ]
    assert all(argument.description for argument in signatures["predict"].arguments)
    assert not any(argument.required for argument in signatures["predict"].arguments)
