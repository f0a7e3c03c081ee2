"""OpenAI's dialect over an engine without weights."""

import asyncio

import orjson
import pytest

from modelkit.config import EngineConfig
from modelkit.engines import Chunk, GenerationRequest, create
from modelkit.engines.embedded import EmbeddedEngine
from modelkit.errors import (
    EngineError,
    InvalidArgumentError,
    ModelNotFoundError,
    NotFoundError,
    UnavailableError,
)

CHAT = "/chat/completions"
COMPLETIONS = "/completions"


@pytest.fixture
async def engine():
    engine = create(EngineConfig(name="echo"), None, "echo")
    await engine.start()
    yield engine
    await engine.close()


def chat(text="one two three", **fields):
    return orjson.dumps({"model": "echo", "messages": [{"role": "user", "content": text}], **fields})


async def ask(engine, body, endpoint=CHAT):
    return orjson.loads(await engine.openai(endpoint, body))


async def stream(engine, body, endpoint=CHAT):
    return [orjson.loads(chunk) async for chunk in engine.openai_stream(endpoint, body)]


async def test_chat_response_has_openais_shape(engine):
    response = await ask(engine, chat())
    assert response["id"].startswith("chatcmpl-")
    assert (response["object"], response["model"]) == ("chat.completion", "echo")
    assert response["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "one two three"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert response["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_chat_stream_begins_with_the_role_and_ends_with_a_finish_reason(engine):
    chunks = await stream(engine, chat())
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": "one"},
        {"content": " two"},
        {"content": " three"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]


async def test_usage_is_streamed_only_when_asked_for(engine):
    chunks = await stream(engine, chat(stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4


async def test_completions_take_text_lists_and_streams(engine):
    response = await ask(engine, orjson.dumps({"prompt": ["a b", "c"], "n": 2}), COMPLETIONS)
    assert response["object"] == "text_completion"
    assert [(c["index"], c["text"]) for c in response["choices"]] == [
        (0, "a b"),
        (1, "a b"),
        (2, "c"),
        (3, "c"),
    ]
    assert response["usage"]["prompt_tokens"] == 3
    chunks = await stream(engine, orjson.dumps({"prompt": "a b"}), COMPLETIONS)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", " b", ""]
    assert chunks[0]["object"] == "text_completion"


async def test_several_choices_stream_side_by_side(engine):
    chunks = await stream(engine, chat(n=3, stream_options={"include_usage": True}))
    texts = {0: "", 1: "", 2: ""}
    for chunk in chunks[:-1]:
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == dict.fromkeys(range(3), "one two three")
    usage = chunks[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 12)


@pytest.mark.parametrize("stop", ["two", ["zzz", "two"]])
async def test_stop_and_max_tokens_are_honoured(engine, stop):
    assert (await ask(engine, chat(stop=stop)))["choices"][0]["message"]["content"] == "one "
    choice = (await ask(engine, chat(max_completion_tokens=2)))["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two", "length")


async def test_text_parts_are_joined(engine):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert (await ask(engine, chat(parts)))["choices"][0]["message"]["content"] == "one\ntwo"


async def test_fields_that_change_nothing_are_skipped(engine):
    body = chat(
        user="u", store=False, tools=[], tool_choice="auto", logprobs=False, temperature=None, seed=None
    )
    assert (await ask(engine, body))["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "field", "cure"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "leave it out"),
        ({"logprobs": True}, "logprobs", "leave it out"),
        ({"response_format": {"type": "json_object"}}, "response_format", "leave it out"),
        ({"max_tokenz": 3}, "max_tokenz", "did you mean 'max_tokens'?"),
        ({"n": 0}, "n", ""),
        ({"temperature": "hot"}, "temperature", ""),
        ({"temperature": -1}, "temperature", ""),
        ({"messages": []}, "messages", ""),
        ({"messages": [{"content": "x"}]}, "messages[0].role", ""),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", ""),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
            "",
        ),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name_in_both_forms(engine, fields, field, cure):
    for answer in (ask, stream):
        with pytest.raises(InvalidArgumentError) as caught:
            await answer(engine, chat(**fields))
        assert [violation.field for violation in caught.value.violations] == [field]
        assert caught.value.cure == cure


async def test_a_request_for_too_many_answers_is_refused(engine):
    for prompts, n in ((1025, 1), (9, 128)):
        body = orjson.dumps({"prompt": ["a"] * prompts, "n": n})
        with pytest.raises(InvalidArgumentError, match="answers at once") as caught:
            await engine.openai(COMPLETIONS, body)
        assert [violation.field for violation in caught.value.violations] == ["prompt"]
    body = orjson.dumps({"prompt": ["a"] * 8, "n": 128})
    assert len((await ask(engine, body, COMPLETIONS))["choices"]) == 1024


async def test_token_ids_are_refused_by_an_engine_without_a_tokenizer(engine):
    with pytest.raises(InvalidArgumentError, match="token ids"):
        await engine.openai(COMPLETIONS, orjson.dumps({"prompt": [1, 2]}))


@pytest.mark.parametrize("body", [b"{", b"[]", b"3"])
async def test_a_body_that_is_no_object_is_refused(engine, body):
    with pytest.raises(InvalidArgumentError, match="JSON"):
        await engine.openai(CHAT, body)


async def test_an_endpoint_that_is_not_there_is_named(engine):
    with pytest.raises(NotFoundError, match="/embeddings") as caught:
        await engine.openai("/embeddings", b"{}")
    assert CHAT in caught.value.cure


class ScriptedEngine(EmbeddedEngine):
    """Does what the seed says: 0 answers, 1 fails, 2 aborts, 3 never ends. Counts the streams that are open."""

    name = "scripted"

    def __init__(self):
        super().__init__(EngineConfig(name="echo"), None, "echo")
        self.num_open = 0

    async def start(self): ...

    async def close(self): ...

    async def generate(self, request: GenerationRequest):
        self.num_open += 1
        try:
            yield Chunk("a", (1,), 1, 1)
            match request.sampling.seed:
                case 1:
                    raise EngineError("broken")
                case 2:
                    yield Chunk("", (), 1, 1, finish_reason="abort")
                case 3:
                    await asyncio.Event().wait()
                case _:
                    yield Chunk("", (2,), 1, 2, finish_reason="stop")
        finally:
            self.num_open -= 1


@pytest.mark.parametrize("fields", [{"seed": 1}, {"seed": 1, "n": 3}, {"seed": 0, "n": 2}])
@pytest.mark.parametrize("answer", [ask, stream])
async def test_an_error_reaches_the_caller_and_ends_every_choice(fields, answer):
    engine = ScriptedEngine()
    with pytest.raises(EngineError, match="broken"):
        await answer(engine, chat(**fields))
    assert engine.num_open == 0


@pytest.mark.parametrize("answer", [ask, stream])
async def test_an_answer_cut_off_by_the_engines_end_is_unavailable(answer):
    with pytest.raises(UnavailableError):
        await answer(ScriptedEngine(), chat(seed=2))


@pytest.mark.parametrize("n", [1, 2])
async def test_leaving_a_stream_early_ends_every_choice(n):
    engine = ScriptedEngine()
    chunks = engine.openai_stream(CHAT, chat(seed=3, n=n))
    while not orjson.loads(await anext(chunks))["choices"][0]["delta"].get("content"):
        pass
    assert engine.num_open >= 1
    await chunks.aclose()
    assert engine.num_open == 0


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
async def test_the_name_of_another_model_is_not_found(engine, endpoint):
    with pytest.raises(ModelNotFoundError, match="The model `gpt-4` does not exist"):
        await ask(engine, chat(prompt="x", model="gpt-4"), endpoint)


async def test_a_completion_that_does_not_say_ends_after_16_tokens(engine):
    words = " ".join(map(str, range(40)))
    choice = (await ask(engine, orjson.dumps({"prompt": words}), COMPLETIONS))["choices"][0]
    assert (len(choice["text"].split()), choice["finish_reason"]) == (16, "length")
    choice = (await ask(engine, orjson.dumps({"prompt": words, "max_tokens": 30}), COMPLETIONS))["choices"][0]
    assert len(choice["text"].split()) == 30
    assert len((await ask(engine, chat(words)))["choices"][0]["message"]["content"].split()) == 40
