"""Which options belong to which engine, and what must never stand in a URL."""

import pytest

from modelkit.config import check_config

HUB = "checkpoints: {type: huggingface, repo_id: org/name}\n"
GPU = HUB + "compute: {num_accelerators: 1}\n"


def problems_of(tmp_path, text):
    (tmp_path / "config.yaml").write_text("model: {id: x}\n" + text)
    return [(problem.severity, problem.message) for problem in check_config(tmp_path)[1]]


@pytest.mark.parametrize(
    "text",
    [
        GPU + "engine: {name: vllm, version: 0.26.0, quantization: awq, kv_cache_dtype: fp8}",
        GPU + "engine: {name: sglang, enable_prefix_caching: false, enable_chunked_prefill: false}",
        GPU + "engine: {name: lmdeploy, max_num_seqs: 4, python: /opt/python}",
        GPU + "engine: {name: tgi, max_num_seqs: 4, quantization: awq}",
        GPU + "engine: {name: vllm, speculative: {method: ngram, num_speculative_tokens: 4}}",
        GPU + "engine: {name: vllm, lora_modules: {here: .}}",
        "engine: {name: openai, url: http://127.0.0.1:8000/v1, api_key_env: MY_KEY, model: gpt-5}",
        "engine: {name: openai, url: 'https://host/v1?version=2'}",
        "engine: {name: openai, url: 'http://[::1]:8000'}",
        "engine: {name: openai}",
        # A key without a value means its default.
        HUB + "engine: {name: transformers, quantization: , url: }",
    ],
)
def test_what_an_engine_has_is_left_alone(tmp_path, text):
    assert problems_of(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "severity", "message"),
    [
        (HUB + "engine: {name: transformers, url: http://x}", "error", "engine.url has no effect"),
        (GPU + "engine: {name: vllm, model: gpt-5}", "error", "engine.model has no effect"),
        (
            HUB + "engine: {name: transformers, quantization: awq}",
            "error",
            "engine.quantization has no effect",
        ),
        (
            HUB + "engine: {name: transformers, lora_modules: {a: .}}",
            "error",
            "engine.lora_modules has no effect",
        ),
        (
            HUB + "engine: {name: transformers, max_num_seqs: 4}",
            "warning",
            "engine.max_num_seqs has no effect",
        ),
        (
            "engine: {name: echo, enable_prefix_caching: false}",
            "warning",
            "engine.enable_prefix_caching has no",
        ),
        ("engine: {name: echo, version: 1.2.3}", "warning", "engine.version has no effect"),
        (GPU + "engine: {name: tgi, python: /x}", "warning", "engine.python has no effect"),
        (GPU + "engine: {name: tgi, tool_call_parser: x}", "error", "TGI reads tool calls without a parser"),
        (GPU + "engine: {name: tgi, reasoning_parser: x}", "error", "TGI does not tell reasoning"),
        (HUB + "engine: {name: tgi}", "warning", "tgi runs on accelerators"),
        (GPU + "engine: {name: vllm, version: '>=0.26'}", "error", "'>=0.26' is no version of an engine"),
        (GPU + "engine: {name: vllm, version: ../../x}", "error", "'../../x' is no version of an engine"),
        (GPU + "engine: {name: vllm, version: latest}", "error", "'latest' is no version of an engine"),
        (
            GPU + "engine: {name: vllm, lora_modules: {a: nowhere}}",
            "warning",
            "there is no folder 'nowhere' yet",
        ),
        ("engine: {name: openai, url: localhost:8000}", "error", "engine.url is no URL of a server"),
        ("engine: {name: openai, url: 'http://'}", "error", "engine.url is no URL of a server"),
        ("engine: {name: openai, url: 'http://host:99999'}", "error", "engine.url is no URL of a server"),
        ("engine: {name: openai, url: 'http://[::1'}", "error", "engine.url is no URL of a server"),
        (
            "engine: {name: openai, url: sk-proj-abcdefghijklmnop}",
            "error",
            "engine.url is no URL of a server",
        ),
        ("engine: {name: openai, url: 'https://me:pw@host/v1'}", "error", "a secret does not belong"),
        ("engine: {name: openai, url: 'https://pw@host/v1'}", "error", "a secret does not belong"),
        ("engine: {name: openai, url: 'https://host/v1?api_key=abc'}", "error", "a secret does not belong"),
        ("engine: {name: openai, url: 'https://host/v1?a=b&access_token=abc'}", "error", "a secret does not"),
        ("engine: {name: openai, api_key_env: sk_abcdefghijklmnopqrst}", "error", "looks like a key itself"),
    ],
)
def test_what_an_engine_has_not_is_found(tmp_path, text, severity, message):
    [(found_severity, found)] = problems_of(tmp_path, text)
    assert found_severity == severity
    assert message in found


def test_the_engines_that_have_an_option_are_named(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "model: {id: x}\n" + HUB + "engine: {name: transformers, quantization: awq}"
    )
    [problem] = check_config(tmp_path)[1]
    assert problem.cure == "remove it; it is for lmdeploy, sglang, tgi and vllm"
    assert (problem.line, problem.column) == (3, 44)
