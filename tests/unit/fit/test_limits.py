"""The sum turned round: what is returned fits, and one more does not; every suggestion is true."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkit.config.accelerators import accelerators
from modelkit.fit import (
    LocalReader,
    Settings,
    device_by_name,
    device_of_size,
    estimate,
    largest_concurrency,
    largest_max_model_len,
    read_model,
    suggestions,
)
from unit.fit import checkpoints as ck

CONFIGS = (
    ck.QWEN2_7B,
    ck.LLAMA_31_8B,
    ck.MISTRAL_7B_01,
    ck.GEMMA_2_2B,
    ck.GEMMA_3_27B,
    ck.GPT_OSS_20B,
    ck.QWEN3_NEXT,
)
ENGINES = ("vllm", "sglang", "turbomind", "pytorch", "tgi", "transformers")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    parent = tmp_path_factory.mktemp("models")
    return [
        read_model(LocalReader(ck.write_config(parent / str(number), config)))
        for number, config in enumerate(CONFIGS)
    ]


@given(
    number=st.integers(0, len(CONFIGS) - 1),
    engine=st.sampled_from(ENGINES),
    gib=st.integers(8, 200),
    concurrency=st.integers(1, 300),
    size=st.sampled_from([1, 2, 4]),
    kv_cache_dtype=st.sampled_from(["auto", "fp8"]),
)
@settings(max_examples=150, deadline=None)
def test_the_longest_that_fits_does_and_one_more_does_not(
    models, number, engine, gib, concurrency, size, kv_cache_dtype
):
    model, device = models[number], device_of_size(gib * 2**30)
    options = Settings(engine=engine, tensor_parallel_size=size, kv_cache_dtype=kv_cache_dtype)
    longest = largest_max_model_len(model, options, device, concurrency)
    most = model.architecture.max_model_len
    assert 0 <= longest <= most
    if longest:
        assert estimate(model, options, device, max_model_len=longest, concurrency=concurrency).fits
    if longest < most:
        assert not estimate(model, options, device, max_model_len=longest + 1, concurrency=concurrency).fits


@given(
    number=st.integers(0, len(CONFIGS) - 1),
    engine=st.sampled_from(ENGINES),
    gib=st.integers(8, 200),
    length=st.integers(1, 200_000),
)
@settings(max_examples=100, deadline=None)
def test_as_many_as_fit_do_and_one_more_does_not(models, number, engine, gib, length):
    model, device, options = models[number], device_of_size(gib * 2**30), Settings(engine=engine)
    most = largest_concurrency(model, options, device, length)
    room = estimate(model, options, device, max_model_len=length).most_sequences
    assert most <= room
    if room:
        assert estimate(model, options, device, max_model_len=length, concurrency=room).fits
    assert not estimate(model, options, device, max_model_len=length, concurrency=room + 1).fits


@given(
    number=st.integers(0, len(CONFIGS) - 1),
    engine=st.sampled_from(ENGINES),
    gib=st.integers(8, 100),
    concurrency=st.integers(1, 100),
)
@settings(max_examples=60, deadline=None)
def test_every_suggestion_makes_it_fit(models, number, engine, gib, concurrency):
    model, device, options = models[number], device_of_size(gib * 2**30), Settings(engine=engine)
    found = suggestions(model, options, device, concurrency=concurrency)
    assert all(change.estimate.fits for change in found)
    if estimate(model, options, device, concurrency=concurrency).fits:
        assert found == []


def test_suggestions_name_options_and_cards(models):
    found = suggestions(models[0], Settings(engine="vllm"), device_by_name("A10G"), concurrency=8)
    assert found[0].options[0].startswith("engine.max_model_len=")
    length = int(found[0].options[0].partition("=")[2])
    assert length == largest_max_model_len(models[0], Settings(engine="vllm"), device_by_name("A10G"), 8)
    assert ("compute.num_accelerators=2", "engine.tensor_parallel_size=2") in [
        change.options for change in found
    ]
    name = found[-1].text.removeprefix("use a larger GPU: ")
    smaller = [card for card in accelerators() if device_by_name("A10G").usable_bytes < card.usable_bytes]
    fitting = [
        card.name
        for card in smaller
        if estimate(models[0], Settings(engine="vllm"), device_by_name(card.name), concurrency=8).fits
    ]
    assert name == fitting[0]


def test_where_nothing_alone_helps_nothing_is_suggested(models):
    assert (
        suggestions(models[1], Settings(engine="transformers"), device_of_size(2**30), concurrency=10_000)
        == []
    )
