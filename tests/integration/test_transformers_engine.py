"""The embedded engine with a real, if tiny, language model whose greedy answers are known."""

import asyncio
import json
import random
import shutil
import threading
from contextlib import aclosing
from pathlib import Path

import orjson
import pytest

from modelkit.config import EngineConfig
from modelkit.engines import GenerationRequest, Sampling, SamplingParams, create
from modelkit.engines.transformers import check_checkpoint
from modelkit.errors import (
    EngineError,
    InvalidArgumentError,
    LoadError,
    OverloadedError,
    UnavailableError,
    UsageError,
)

STORY = [{"role": "user", "content": "Tell me a story."}]
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


def make_engine(checkpoint: Path, *, args=None, **options):
    return create(EngineConfig(name="transformers", args=args or {}, **options), checkpoint, "tiny-chat")


@pytest.fixture(scope="module")
def engine(tiny_chat_checkpoint):
    """One engine for all tests, which also shows that it may be used from one event loop after another."""
    engine = make_engine(tiny_chat_checkpoint)
    asyncio.run(engine.start())
    yield engine
    asyncio.run(engine.close())


@pytest.fixture
async def own_engine(tiny_chat_checkpoint):
    """An engine that a test may break."""
    engine = make_engine(tiny_chat_checkpoint, args={"max_num_seqs": 8})
    await engine.start()
    yield engine
    await engine.close()


async def ask(engine, messages=None, *, prompt=None, **sampling):
    """Return the joined text, the token ids and the last chunk."""
    request = GenerationRequest(messages=messages, prompt=prompt, sampling=SamplingParams(**sampling))
    text, ids = "", []
    async for chunk in engine.generate(request):
        text += chunk.text
        ids += chunk.token_ids
        assert chunk.output_tokens == len(ids)
    return text, ids, chunk


async def idle(engine):
    async with asyncio.timeout(5):
        while engine.num_running:
            await asyncio.sleep(0.001)


# ------------------------------------------------------------------------------------------------ exact answers


async def test_every_question_one_after_the_other(engine, tiny_chat_answers):
    assert len(tiny_chat_answers) == 101
    for record in tiny_chat_answers:
        text, ids, last = await ask(engine, record["messages"])
        assert (text, ids, last.finish_reason) == (record["answer"], record["token_ids"], "stop")
        assert last.prompt_tokens > 0


async def test_every_question_at_once_among_sampling_neighbours(engine, tiny_chat_answers):
    rng = random.Random(0)
    neighbours = [
        ask(
            engine,
            STORY,
            temperature=1.5,
            top_p=rng.uniform(0.5, 1),
            top_k=rng.choice([0, 20]),
            max_tokens=40,
        )
        for _ in range(64)
    ]
    answers = [ask(engine, record["messages"]) for record in tiny_chat_answers]
    mixed = [*enumerate([*answers, *neighbours])]
    rng.shuffle(mixed)
    results = dict(
        zip([i for i, _ in mixed], await asyncio.gather(*(call for _, call in mixed)), strict=True)
    )
    wrong = [
        record["messages"][-1]["content"]
        for index, record in enumerate(tiny_chat_answers)
        if results[index][:2] != (record["answer"], record["token_ids"])
    ]
    assert wrong == []


async def test_requests_that_come_and_go_while_others_run(engine, tiny_chat_answers):
    rng = random.Random(1)

    async def later(record):
        await asyncio.sleep(rng.uniform(0, 0.3))
        return (await ask(engine, record["messages"]))[0] == record["answer"]

    async def leave():
        await asyncio.sleep(rng.uniform(0, 0.3))
        async with aclosing(engine.generate(GenerationRequest(messages=STORY))) as chunks:
            async for chunk in chunks:
                if chunk.output_tokens > rng.randrange(20):
                    return

    right = await asyncio.gather(
        *(later(record) for record in tiny_chat_answers), *(leave() for _ in range(40))
    )
    assert right[: len(tiny_chat_answers)] == [True] * len(tiny_chat_answers)
    await idle(engine)


async def test_the_openai_dialect_gives_the_same_answers(engine, tiny_chat_answers):
    async def whole(record):
        body = orjson.dumps({"messages": record["messages"]})
        response = orjson.loads(await engine.openai("/chat/completions", body))
        return response["choices"][0]["message"]["content"], response["usage"]["completion_tokens"]

    async def streamed(record):
        text, body = "", orjson.dumps({"messages": record["messages"], "stream": True})
        async for chunk in engine.openai_stream("/chat/completions", body):
            text += orjson.loads(chunk)["choices"][0]["delta"].get("content", "")
        return text

    expected = [(record["answer"], len(record["token_ids"])) for record in tiny_chat_answers]
    assert await asyncio.gather(*map(whole, tiny_chat_answers)) == expected
    assert await asyncio.gather(*map(streamed, tiny_chat_answers)) == [text for text, _ in expected]


async def test_a_cache_that_is_laid_out_again_and_again(tiny_chat_checkpoint, tiny_chat_answers):
    """One row at a time in and out of a batch of three: every way of growing, shrinking and moving rows."""
    engine = make_engine(tiny_chat_checkpoint, args={"max-num-seqs": 3, "max-batched-tokens": 32})
    await engine.start()
    long_chat = [*(message for record in tiny_chat_answers[:25] for message in record["messages"]), *FRANCE]
    results = await asyncio.gather(
        *(ask(engine, record["messages"]) for record in tiny_chat_answers[:50]),
        ask(engine, long_chat, max_tokens=400, ignore_eos=True),
        *(ask(engine, record["messages"]) for record in tiny_chat_answers[50:]),
    )
    alone = await ask(engine, long_chat, max_tokens=400, ignore_eos=True)
    await engine.close()
    assert len(alone[1]) == 400
    assert results.pop(50)[1][:50] == alone[1][:50]
    assert [text for text, _, _ in results] == [record["answer"] for record in tiny_chat_answers]


# ---------------------------------------------------------------------------------------------------- sampling


async def test_a_seed_repeats_whatever_shares_the_batch(engine):
    options = {"temperature": 1.3, "top_p": 0.95, "max_tokens": 30, "ignore_eos": True}
    alone = [(await ask(engine, FRANCE, seed=seed, **options))[1] for seed in range(8)]
    crowd = await asyncio.gather(
        *(ask(engine, FRANCE, seed=seed, **options) for seed in range(8)),
        *(ask(engine, STORY, temperature=1.0) for _ in range(8)),
        *(ask(engine, STORY) for _ in range(8)),
    )
    assert [ids for _, ids, _ in crowd[:8]] == alone
    assert len(set(map(tuple, alone))) > 1


async def test_restrictions_that_leave_one_token_are_greedy(engine):
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}):
        text, _, _ = await ask(engine, FRANCE, **{"temperature": 1.0, **options})
        assert text == "The capital of France is Paris."


@pytest.mark.parametrize("temperature", [2.1e-38, 5e-324, 9e-5, 1.1e-4])
async def test_a_temperature_next_to_nothing_is_greedy_and_fails_nobody(engine, temperature):
    results = await asyncio.gather(
        *(ask(engine, FRANCE) for _ in range(3)), ask(engine, FRANCE, temperature=temperature, seed=1)
    )
    assert {text for text, _, _ in results} == {"The capital of France is Paris."}


async def test_scores_that_are_no_numbers_fail_their_own_request(engine):
    """Divided by so small a penalty, the scores are infinite; neighbours that are greedy and that sample go on."""
    sampled = {"temperature": 1.2, "seed": 5, "max_tokens": 30}
    expected = [await ask(engine, FRANCE), await ask(engine, STORY, **sampled)]
    for options in ({}, {"temperature": 1.0}, {"temperature": 1.2, "seed": 6}):
        *results, bad = await asyncio.gather(
            ask(engine, FRANCE),
            ask(engine, STORY, **sampled),
            ask(engine, FRANCE, repetition_penalty=1e-45, **options),
            return_exceptions=True,
        )
        assert isinstance(bad, InvalidArgumentError)
        assert "repetition_penalty" in bad.cure
        assert [result[:2] for result in results] == [result[:2] for result in expected]


async def test_a_penalty_changes_what_repeats_and_nobody_elses_answer(engine):
    count = [{"role": "user", "content": "Count to fifty."}]
    plain, penalized, beside = await asyncio.gather(
        ask(engine, count), ask(engine, count, repetition_penalty=10.0, max_tokens=300), ask(engine, count)
    )
    assert penalized[0] != plain[0]
    assert plain[0] == beside[0] == " ".join(map(str, range(1, 51)))


class OneRow:
    """What the sampler reads of a row."""

    def __init__(self, prompt_ids=(), output_ids=(), **sampling):
        self.prompt_ids, self.output_ids, self.sampling = prompt_ids, output_ids, Sampling(**sampling)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (OneRow([0], [1, 1, 2], presence_penalty=0.5), [4.0, 2.5, 1.5, 1.0]),
        (OneRow([0], [1, 1, 2], frequency_penalty=0.5), [4.0, 2.0, 1.5, 1.0]),
        (OneRow([0], [1], presence_penalty=-0.5, frequency_penalty=0.25), [4.0, 3.25, 2.0, 1.0]),
        (OneRow([0], [1], repetition_penalty=2.0), [2.0, 1.5, 2.0, 1.0]),
        (OneRow([0], [1], min_tokens=2), [4.0, 3.0, 2.0, float("-inf")]),
        (OneRow([0], [1, 2], min_tokens=2), [4.0, 3.0, 2.0, 1.0]),
    ],
)
def test_penalties_and_min_tokens_change_the_scores_as_documented(row, expected):
    """Presence and frequency count the answer only (OpenAI), repetition the prompt too; token 3 is the end."""
    torch = pytest.importorskip("torch")
    from modelkit.engines._sampling import RowSampler

    sampler = RowSampler(row, [3], torch.device("cpu"))
    assert sampler.process(torch.tensor([[4.0, 3.0, 2.0, 1.0]])).tolist() == [expected]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.7, "seed": 1}]
)
@pytest.mark.parametrize("scores", [[NAN, 1.0, 2.0], [INF, 1.0, 2.0], [-INF, -INF, -INF], [NAN, INF, -INF]])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_without_numbers_fails_the_row_and_no_other(options, scores, dtype):
    torch = pytest.importorskip("torch")
    from modelkit.engines._sampling import RowSampler, sample

    rows = [OneRow([0], **options), OneRow([0], temperature=0.0), OneRow([0], **options)]
    samplers = [RowSampler(row, [], torch.device("cpu")) for row in rows]
    good = [-INF, 3e4, -3e4]
    bad, *others = sample(torch.tensor([scores, good, good], dtype=getattr(torch, dtype)), samplers)
    assert isinstance(bad, EngineError)
    assert others == [1, 1]


def test_options_that_raise_fail_their_row_and_no_other():
    torch = pytest.importorskip("torch")
    from modelkit.engines._sampling import RowSampler, sample

    # A token that the scores do not have, where it is counted; the others sample.
    rows = [OneRow([0], temperature=0.0), OneRow([0], [7], presence_penalty=1.0), OneRow([0], seed=3)]
    samplers = [RowSampler(row, [], torch.device("cpu")) for row in rows]
    first, fault, last = sample(torch.tensor([[-INF, 1.0, -INF]] * 3), samplers)
    assert (first, last) == (1, 1)
    assert isinstance(fault, Exception)


def test_draws_follow_the_probabilities():
    torch = pytest.importorskip("torch")
    from modelkit.engines._sampling import RowSampler, sample

    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(6000, 1)
    counts = [0, 0, 0]
    rows = [
        RowSampler(OneRow([0], seed=seed if seed % 2 else None), [], torch.device("cpu"))
        for seed in range(6000)
    ]
    for token in sample(logits, rows):
        counts[token] += 1
    assert [round(count / 6000, 1) for count in counts] == [0.5, 0.3, 0.2]


async def test_min_tokens_and_ignore_eos_go_on_past_the_end(engine):
    _, ids, last = await ask(engine, FRANCE, min_tokens=40, max_tokens=60)
    assert len(ids) >= 40
    _, ids, last = await ask(engine, FRANCE, ignore_eos=True, max_tokens=50)
    assert (len(ids), last.finish_reason) == (50, "length")


async def test_stop_strings_end_the_answer_before_them(engine):
    marker = [{"role": "user", "content": "Stop at the marker."}]
    text, ids, last = await ask(engine, marker, stop=("###",))
    assert (text, last.finish_reason) == ("before the marker ", "stop")
    assert len(ids) < len((await ask(engine, marker))[1])
    assert (await ask(engine, marker, stop=("### after",)))[0] == "before the marker "
    assert (await ask(engine, marker, stop=("nowhere",)))[0] == "before the marker ### after the marker"


async def test_max_tokens_ends_with_length(engine):
    _, ids, last = await ask(engine, STORY, max_tokens=5)
    assert (len(ids), last.finish_reason, last.output_tokens) == (5, "length", 5)


# ------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Say thank you in Japanese.", "ありがとうございます。"),
        ("Send me some emoji.", "🎉🚀🌍 done 👩‍🚀✅"),
        ("Say hello in Greek.", "Γειά σου Κόσμε."),
    ],
)
async def test_characters_of_several_tokens_arrive_whole(engine, question, answer):
    request = GenerationRequest(messages=[{"role": "user", "content": question}])
    texts = [chunk.text async for chunk in engine.generate(request)]
    assert "".join(texts) == answer
    assert len(texts) > 3
    # Whatever the cut, no half of a character remains.
    for max_tokens in range(1, 12):
        text, _, _ = await ask(engine, [{"role": "user", "content": question}], max_tokens=max_tokens)
        assert answer.startswith(text)


async def test_a_plain_prompt_and_token_ids_are_continued(engine):
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    text, _, last = await ask(engine, prompt=prompt)
    assert text == "The capital of France is Paris."
    ids = engine._tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert last.prompt_tokens == len(ids)
    chunks = [chunk async for chunk in engine.generate(GenerationRequest(prompt_token_ids=ids))]
    assert "".join(chunk.text for chunk in chunks) == text


# ------------------------------------------------------------------------------------------------ bad requests


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({"prompt": "word " * 3000}, r"the prompt has \d+ tokens, and the model takes at most 2048"),
        ({"prompt": "word " * 10**6}, r"the prompt has 5000000 characters, and the model takes at most 2048"),
        ({"prompt_token_ids": [1] * 10**6}, r"the prompt has 1000000 tokens"),
        ({"prompt": ""}, "empty"),
        ({"prompt_token_ids": []}, "empty"),
        ({"prompt_token_ids": [768]}, "768 is not in the model's vocabulary of 768"),
        ({}, "exactly one"),
        ({"prompt": "a", "messages": FRANCE}, "exactly one"),
        ({"messages": [{"role": "user"}]}, "chat template refused"),
        ({"prompt": "a", "sampling": SamplingParams(top_p=3)}, "top_p"),
    ],
)
async def test_a_bad_request_is_refused_with_the_reason(engine, request_fields, message):
    with pytest.raises(InvalidArgumentError, match=message):
        async for _ in engine.generate(GenerationRequest(**request_fields)):
            pass


@pytest.mark.parametrize(
    "name",
    [
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_dict",
        "return_tensors",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    ],
)
async def test_a_caller_cannot_steer_the_rendering_of_the_chat(engine, name):
    """Above all not bring a template, a program, of its own."""
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    values = {"chat_template": loop, "messages": FRANCE}
    body = orjson.dumps(
        {"messages": STORY, "chat_template_kwargs": {name: values.get(name, True), "fine": 1}}
    )
    with pytest.raises(InvalidArgumentError, match=name) as caught:
        async with asyncio.timeout(5):
            await engine.openai("/chat/completions", body)
    assert [violation.field for violation in caught.value.violations] == [f"chat_template_kwargs.{name}"]


async def test_every_parameter_of_the_rendering_is_refused(engine):
    """Also those that another version of transformers brings."""
    import inspect

    function = inspect.signature(engine._tokenizer.apply_chat_template)
    names = {name for name, value in function.parameters.items() if value.kind is not value.VAR_KEYWORD}
    assert "chat_template" in names
    for name in names:
        with pytest.raises(InvalidArgumentError, match="chat_template_kwargs"):
            await anext(engine.generate(GenerationRequest(messages=STORY, chat_template_kwargs={name: None})))


async def test_a_variable_of_the_template_reaches_it(tiny_chat_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_chat_checkpoint, tmp_path / "checkpoint")
    template = folder / "chat_template.jinja"
    template.write_text("{{ '' if enable_thinking else 'much longer' }}" + template.read_text())
    engine = make_engine(folder)
    await engine.start()
    lengths = []
    for variables in ({"enable_thinking": True}, {"enable_thinking": False}):
        request = GenerationRequest(messages=FRANCE, chat_template_kwargs=variables)
        lengths.append((await anext(engine.generate(request))).prompt_tokens)
    await engine.close()
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize(
    ("request_fields", "on_loop"),
    [
        ({"prompt": "Hi"}, True),
        ({"messages": FRANCE}, True),
        ({"prompt": "word " * 500}, False),
        ({"messages": [{"role": "user", "content": "word " * 500}]}, False),
        ({"messages": FRANCE * 40}, False),
        ({"messages": FRANCE, "chat_template_kwargs": {"x": 1}}, False),
        ({"messages": FRANCE, "tools": [{"type": "function"}]}, False),
        ({"messages": [{"role": "user", "content": "Hi", "parts": ["x" * 9999]}]}, False),
    ],
)
async def test_what_takes_long_to_render_or_tokenize_leaves_the_event_loop_alone(
    engine, monkeypatch, request_fields, on_loop
):
    threads = []
    encode = engine._encode_text
    monkeypatch.setattr(
        engine, "_encode_text", lambda request: threads.append(threading.get_ident()) or encode(request)
    )
    sampling = SamplingParams(max_tokens=1)
    async for _ in engine.generate(GenerationRequest(**request_fields, sampling=sampling)):
        pass
    assert [thread == threading.get_ident() for thread in threads] == [on_loop]


async def test_an_answer_ends_at_the_models_length(tiny_chat_checkpoint):
    engine = make_engine(tiny_chat_checkpoint, max_model_len=40)
    await engine.start()
    _, ids, last = await ask(engine, STORY, ignore_eos=True)
    await engine.close()
    assert last.finish_reason == "length"
    assert last.prompt_tokens + len(ids) == 40


async def test_without_a_chat_template_messages_are_refused(tiny_chat_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_chat_checkpoint, tmp_path / "checkpoint")
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    engine = make_engine(folder)
    await engine.start()
    assert not engine.has_chat_template
    with pytest.raises(InvalidArgumentError, match="no chat template"):
        await ask(engine, FRANCE)
    await engine.close()


# ------------------------------------------------------------------------------------- cancellation, errors, end


@pytest.mark.parametrize("how", ["aclose", "cancel"])
async def test_a_caller_that_leaves_frees_its_row_and_the_cache(own_engine, how):
    async def endless():
        async for _ in own_engine.generate(
            GenerationRequest(messages=STORY, sampling=SamplingParams(ignore_eos=True))
        ):
            started.set()

    started = asyncio.Event()
    if how == "cancel":
        task = asyncio.create_task(endless())
        await started.wait()
        assert own_engine.num_running == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        chunks = own_engine.generate(
            GenerationRequest(messages=STORY, sampling=SamplingParams(ignore_eos=True))
        )
        await anext(chunks)
        await chunks.aclose()
    await idle(own_engine)
    batch = own_engine._scheduler._batch
    async with asyncio.timeout(5):
        while any(layer.keys is not None for layer in batch._layers):
            await asyncio.sleep(0.001)


def break_forward(engine, is_bad):
    """Let the model fail, after it has written to the cache, in steps with a row of which `is_bad` says so."""
    batch = engine._scheduler._batch
    forward = batch._model.forward

    def failing(*args, **kwargs):
        output = forward(*args, **kwargs)
        if any(is_bad(row) for row in batch._rows[batch._forward.rows]):
            raise RuntimeError("injected")
        return output

    batch._model.forward = failing


async def test_a_row_that_breaks_a_step_fails_and_its_neighbours_answer_exactly(own_engine):
    sampled = {"temperature": 1.2, "seed": 5, "max_tokens": 80, "ignore_eos": True}
    expected = [
        await ask(own_engine, STORY),
        await ask(own_engine, FRANCE),
        await ask(own_engine, STORY, **sampled),
    ]
    break_forward(own_engine, lambda row: row.sampling.seed == 666 and len(row.output_ids) == 5)
    results = await asyncio.gather(
        ask(own_engine, STORY),
        ask(own_engine, FRANCE),
        ask(own_engine, STORY, seed=666),
        ask(own_engine, STORY, **sampled),
        return_exceptions=True,
    )
    assert isinstance(results.pop(2), EngineError)
    assert [result[:2] for result in results] == [result[:2] for result in expected]
    assert own_engine.num_running == 0


async def test_a_step_that_fails_once_costs_nobody_anything(own_engine):
    expected = (await ask(own_engine, STORY))[:2]
    broken = set()
    break_forward(
        own_engine, lambda row: len(row.output_ids) == 70 and not broken and broken.add(row) is None
    )
    results = await asyncio.gather(*(ask(own_engine, STORY) for _ in range(3)))
    assert broken
    assert [result[:2] for result in results] == [expected] * 3


async def test_out_of_memory_ends_one_request_and_the_others_answer_exactly(own_engine, monkeypatch):
    """Memory runs out while the second layer grows, when the first has grown already."""
    layer = own_engine._scheduler._batch._layers[1]
    lay_out, calls = layer._lay_out, []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("injected")
        lay_out(*args, **kwargs)

    monkeypatch.setattr(layer, "_lay_out", failing)
    texts = [asyncio.create_task(ask(own_engine, STORY)) for _ in range(2)]
    results = await asyncio.gather(*texts, return_exceptions=True)
    assert len(calls) >= 3
    failed = [result for result in results if isinstance(result, OverloadedError)]
    exact = [result for result in results if isinstance(result, tuple) and result[0].endswith("The end.")]
    assert (len(failed), len(exact)) == (1, 1)


async def test_close_ends_running_answers_with_abort(tiny_chat_checkpoint):
    engine = make_engine(tiny_chat_checkpoint)
    await engine.start()
    running = [asyncio.create_task(ask(engine, STORY, ignore_eos=True)) for _ in range(4)]
    async with asyncio.timeout(5):
        while engine.num_running < 4:
            await asyncio.sleep(0.001)
    await engine.close()
    assert {last.finish_reason for _, _, last in await asyncio.gather(*running)} == {"abort"}
    with pytest.raises(UnavailableError):
        await ask(engine, FRANCE)


# -------------------------------------------------------------------------------------------------------- start


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shutil.rmtree, "there is no checkpoint folder"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"lacks weights: model\.safetensors"),
    ],
)
def test_an_incomplete_checkpoint_says_what_is_missing(tiny_chat_checkpoint, tmp_path, break_it, message):
    folder = shutil.copytree(tiny_chat_checkpoint, tmp_path / "checkpoint")
    check_checkpoint(folder)
    break_it(folder)
    with pytest.raises(LoadError, match=message) as caught:
        asyncio.run(make_engine(folder).start())
    assert caught.value.cure


def test_each_shard_that_the_index_names_must_be_there(tiny_chat_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_chat_checkpoint, tmp_path / "checkpoint")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(LoadError, match="model-00002-of-00002"):
        check_checkpoint(folder)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
async def test_a_device_that_is_not_there_is_named(tiny_chat_checkpoint, device):
    engine = make_engine(tiny_chat_checkpoint, args={"device": device})
    with pytest.raises(UsageError, match=device) as caught:
        await engine.start()
    assert "engine.args.device" in caught.value.cure
    await engine.close()


async def test_an_engine_whose_thread_ends_says_that_it_is_down(tiny_chat_checkpoint):
    engine = make_engine(tiny_chat_checkpoint)
    await engine.start()
    assert engine.down_reason == ""
    engine._scheduler._batch.drop = lambda _rows: 1 / 0
    await ask(engine, FRANCE)  # answered, before its row cannot be dropped
    async with asyncio.timeout(5):
        while not engine.down_reason:
            await asyncio.sleep(0.001)
    assert "ZeroDivisionError" in engine.down_reason
    with pytest.raises(UnavailableError, match="the engine is down"):
        await ask(engine, FRANCE)
    await engine.close()


async def test_broken_weights_are_a_load_error(tiny_chat_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_chat_checkpoint, tmp_path / "checkpoint")
    (folder / "model.safetensors").write_bytes(b"no tensors")
    engine = make_engine(folder)
    with pytest.raises(LoadError, match="cannot load"):
        await engine.start()
    await engine.close()


async def test_a_length_beyond_the_checkpoint_is_refused(tiny_chat_checkpoint):
    engine = make_engine(tiny_chat_checkpoint, max_model_len=4096)
    with pytest.raises(UsageError, match="2048"):
        await engine.start()
    await engine.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"args": {"max_num_seq": 4}}, "max_num_seq"),
        ({"args": {"max_num_seqs": 0}}, "max_num_seqs"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(tmp_path, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        make_engine(tmp_path, **options)
    assert caught.value.cure


async def test_no_checkpoint_at_all_says_what_to_add():
    engine = make_engine(None)
    with pytest.raises(LoadError, match="needs a checkpoint"):
        await engine.start()
    await engine.close()
