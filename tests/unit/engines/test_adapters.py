"""What each engine is told: command lines, fields of requests, stages of its log."""

import json

import pytest

from modelkit.config import EngineConfig
from modelkit.engines.base import GenerationRequest
from modelkit.engines.lmdeploy import LmdeployEngine, _StreamCutter
from modelkit.engines.sampling import SamplingParams
from modelkit.engines.sglang import SglangEngine
from modelkit.engines.tgi import TgiEngine
from modelkit.engines.upstream import Upstream
from modelkit.engines.vllm import VllmEngine
from modelkit.errors import EngineError, InvalidArgumentError, ModelNotFoundError, NotFoundError, UsageError

ENGINES = {engine.name: engine for engine in (VllmEngine, SglangEngine, LmdeployEngine, TgiEngine)}
COMMON = {
    "tensor_parallel_size": 2,
    "max_model_len": 4096,
    "dtype": "bfloat16",
    "quantization": "awq",
    "gpu_memory_utilization": 0.8,
    "enable_prefix_caching": True,
    "max_num_seqs": 64,
    "kv_cache_dtype": "fp8",
    "speculative": {"method": "ngram", "num_speculative_tokens": 4},
    "trust_remote_code": True,
}


def make(name, folder, **options):
    return ENGINES[name](EngineConfig(name=name, **options), folder, "chat")


def test_vllm_is_told_in_its_own_words(tmp_path):
    engine = make("vllm", tmp_path, **COMMON, enable_chunked_prefill=False, tool_call_parser="hermes",
                  lora_modules={"a": "/l"}, args={"seed": 7})  # fmt: skip
    assert " ".join(engine.arguments()) == (
        "--max-model-len 4096 --tensor-parallel-size 2 --dtype bfloat16 --quantization awq "
        "--gpu-memory-utilization 0.8 --max-num-seqs 64 --enable-prefix-caching --no-enable-chunked-prefill "
        '--kv-cache-dtype fp8 --speculative-config {"method":"ngram","num_speculative_tokens":4} '
        "--enable-auto-tool-choice --tool-call-parser hermes --enable-lora --lora-modules a=/l --trust-remote-code --seed 7"
    )
    assert engine.command("/py", 80)[:3] == ["/py", "-m", "vllm.entrypoints.openai.api_server"]


def test_sglang_is_told_in_its_own_words(tmp_path):
    engine = make("sglang", tmp_path, **COMMON, enable_chunked_prefill=False)
    assert " ".join(engine.arguments()) == (
        "--enable-metrics --context-length 4096 --tp-size 2 --dtype bfloat16 --quantization awq "
        "--mem-fraction-static 0.8 --max-running-requests 64 --chunked-prefill-size -1 --kv-cache-dtype fp8 "
        "--speculative-algorithm NGRAM --speculative-num-draft-tokens 4 --trust-remote-code"
    )
    assert "--disable-radix-cache" in make("sglang", tmp_path, enable_prefix_caching=False).arguments()


@pytest.mark.parametrize("backend", ["turbomind", "pytorch"])
def test_lmdeploy_is_told_in_its_own_words(tmp_path, backend):
    engine = make("lmdeploy", tmp_path, **COMMON, args={"backend": backend, "log-level": "INFO"})
    assert " ".join(engine.arguments()) == (
        "--session-len 4096 --tp 2 --dtype bfloat16 --model-format awq --cache-max-entry-count 0.8 "
        "--max-batch-size 64 --enable-prefix-caching --quant-policy fp8 --speculative-algorithm ngram "
        "--speculative-num-draft-tokens 4 --trust-remote-code --log-level INFO"
    )
    assert " ".join(engine.command("/py", 80)).endswith(
        f"--backend {backend} --model-name chat --server-name 127.0.0.1 --server-port 80"
    )


def test_what_an_engine_does_not_have_is_refused_before_it_starts(tmp_path):
    with pytest.raises(UsageError, match=r"engine.dtype with lmdeploy: this engine has no 'float32' here"):
        make("lmdeploy", tmp_path, dtype="float32").arguments()
    with pytest.raises(UsageError, match="LMDeploy has no backend 'cuda'"):
        _ = make("lmdeploy", tmp_path, args={"backend": "cuda"}).backend
    with pytest.raises(UsageError, match=r"engine.reasoning_parser with tgi: TGI has no reasoning parsers"):
        make("tgi", tmp_path, reasoning_parser="qwen3").arguments()
    with pytest.raises(EngineError, match="text-generation-launcher is not on the PATH"):
        make("tgi", tmp_path).command("", 80)


@pytest.mark.parametrize("name", ENGINES)
def test_no_option_means_the_engines_own_defaults(name, tmp_path, monkeypatch):
    monkeypatch.setattr("modelkit.engines.vllm.has_nvidia_gpu", lambda: True)
    arguments = [argument for argument in make(name, tmp_path).arguments() if argument != "--enable-metrics"]
    assert arguments in ([], ["--dtype", "auto"])


@pytest.mark.parametrize(("dtype", "told"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_vllm_takes_float32_where_nothing_is_said_and_there_is_no_gpu(dtype, told, tmp_path, monkeypatch):
    monkeypatch.setattr("modelkit.engines.vllm.has_nvidia_gpu", lambda: False)
    assert make("vllm", tmp_path, dtype=dtype).arguments()[:2] == ["--dtype", told]


@pytest.mark.parametrize("name", ENGINES)
def test_every_common_option_has_a_word_or_a_reason(name):
    missing = {*COMMON, "tool_call_parser", "lora_modules"} - set(ENGINES[name].flags)
    # TGI is told by an environment variable.
    assert missing == ({"enable_prefix_caching"} if name == "tgi" else set())


# ------------------------------------------------------------------------------------------------------------- requests


def body_of(engine, sampling, **request):
    made = GenerationRequest(messages=[{"role": "user", "content": "Hi"}], sampling=sampling, **request)
    return engine.adapt(engine._body(made))


@pytest.mark.parametrize("name", ENGINES)
def test_what_a_request_leaves_out_is_the_checkpoints_own(name, tmp_path):
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_k": 20}')
    engine = make(name, tmp_path)
    body = body_of(engine, SamplingParams())
    assert (body["temperature"], body["top_k"]) == (0.6, 20)
    assert "max_tokens" not in body
    raw = json.loads(
        engine._prepare("/chat/completions", b'{"messages": [], "top_k": 3, "temperature": null}')
    )
    assert (raw["temperature"], raw["top_k"], raw["model"]) == (0.6, 3, "chat")


@pytest.mark.parametrize("name", ENGINES)
def test_a_checkpoint_that_says_nothing_is_greedy(name, tmp_path):
    assert body_of(make(name, tmp_path), SamplingParams())["temperature"] == 0


@pytest.mark.parametrize(("name", "word"), [("vllm", 0), ("sglang", -1), ("lmdeploy", 0), ("tgi", None)])
def test_all_tokens_is_said_in_each_engines_way(name, word, tmp_path):
    assert body_of(make(name, tmp_path), SamplingParams(top_k=0)).get("top_k") == word


def test_everything_a_request_can_say_is_in_the_body(tmp_path):
    sampling = SamplingParams(
        max_tokens=5, min_tokens=2, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.1,
        presence_penalty=0.2, frequency_penalty=0.3, stop=("a", "b"), seed=0, ignore_eos=True,
    )  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = body_of(make("vllm", tmp_path), sampling, tools=tools, chat_template_kwargs={"think": False})
    assert body == {
        "model": "chat", "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "max_tokens": 5, "min_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1,
        "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3, "stop": ("a", "b"), "seed": 0,
        "ignore_eos": True, "messages": [{"role": "user", "content": "Hi"}], "tools": tools,
        "chat_template_kwargs": {"think": False},
    }  # fmt: skip


def test_bad_sampling_is_refused_the_same_on_every_engine(tmp_path):
    with pytest.raises(InvalidArgumentError, match="top_p must be above 0"):
        body_of(make("sglang", tmp_path), SamplingParams(top_p=0))


def test_sglang_takes_vllms_structured_outputs(tmp_path):
    engine = make("sglang", tmp_path)
    assert engine.adapt({"structured_outputs": {"regex": "a+"}}) == {"regex": "a+"}
    assert engine.adapt({"structured_outputs": {"grammar": "root ::= x"}}) == {"ebnf": "root ::= x"}
    assert engine.adapt({"structured_outputs": {"choice": ["a.b", "c"]}}) == {"regex": r"(a\.b)|(c)"}
    adapted = engine.adapt({"structured_outputs": {"json": {"type": "object"}}})
    assert adapted["response_format"]["json_schema"]["schema"] == {"type": "object"}
    with pytest.raises(InvalidArgumentError, match=r"structured_outputs.structural_tag"):
        engine.adapt({"structured_outputs": {"structural_tag": "x"}})


def test_lmdeploy_refuses_what_its_server_would_ignore(tmp_path):
    engine = make("lmdeploy", tmp_path)
    with pytest.raises(InvalidArgumentError, match="no presence_penalty"):
        engine.adapt({"messages": [], "presence_penalty": 1})
    with pytest.raises(InvalidArgumentError, match="one completion a request"):
        engine.adapt({"prompt": "x", "n": 2})
    assert engine.adapt({"messages": [], "n": 2, "min_tokens": 3}) == {
        "messages": [],
        "n": 2,
        "min_new_tokens": 3,
    }


def prepared(engine, endpoint="/chat/completions", **fields):
    return json.loads(engine._prepare(endpoint, json.dumps({"messages": [], **fields}).encode()))


@pytest.mark.parametrize("endpoint", ["/chat/completions", "/completions", "/embeddings"])
@pytest.mark.parametrize("name", ENGINES)
def test_the_name_of_another_model_is_not_found_on_any_engine(name, endpoint, tmp_path):
    engine = make(name, tmp_path)
    for fields in ({}, {"model": None}, {"model": ""}, {"model": "chat"}):
        assert prepared(engine, endpoint, **fields)["model"] == "chat"
    for other in ("gpt-4", "Chat", ["chat"], 3):
        with pytest.raises(ModelNotFoundError, match=r"The model `.*` does not exist") as error:
            prepared(engine, endpoint, model=other)
        assert error.value.violations[0].field == "model"
        assert "use one of: chat" in error.value.cure


@pytest.mark.parametrize(("name", "sent"), [("vllm", "law"), ("lmdeploy", "law"), ("sglang", "chat:law")])
def test_a_lora_adapter_is_named_as_its_engine_does(name, sent, tmp_path):
    engine = make(name, tmp_path, lora_modules={"law": "/l"})
    assert prepared(engine, model="law")["model"] == sent


@pytest.mark.parametrize("name", ENGINES)
def test_a_completion_that_does_not_say_is_as_long_as_openais(name, tmp_path):
    engine = make(name, tmp_path)
    assert prepared(engine, "/completions", prompt="x")["max_tokens"] == 16
    assert prepared(engine, "/completions", prompt="x", max_tokens=None)["max_tokens"] == 16
    assert prepared(engine, "/completions", prompt="x", max_tokens=3)["max_tokens"] == 3
    assert "max_tokens" not in prepared(engine)


def test_vllm_makes_several_greedy_answers_too(tmp_path):
    engine = make("vllm", tmp_path)
    body = prepared(engine, n=2)  # the checkpoint says nothing, so it is greedy
    assert (body["temperature"], body["top_k"], body["n"]) == (1.0, 1, 2)
    assert prepared(engine, n=1)["temperature"] == 0
    assert prepared(engine, n=2, temperature=0.5)["temperature"] == 0.5


@pytest.mark.parametrize(("name", "method"), [("sglang", "EAGLE"), ("lmdeploy", "eagle")])
def test_speculative_settings_are_spelled_with_dashes(name, method, tmp_path):
    engine = make(name, tmp_path, dtype="auto", speculative={"method": "eagle", "eagle_topk": 4})
    line = " ".join(engine.arguments())
    assert f"--speculative-algorithm {method} --speculative-eagle-topk 4" in line


def test_lmdeploys_streams_are_cut_at_stop_strings():
    cutter = _StreamCutter(["lo wo"])
    texts, reasons = [], []
    for piece in ("hel", "lo", " ", "world"):
        cut = cutter.cut({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        if cut:
            texts.append(cut["choices"][0]["delta"]["content"])
            reasons.append(cut["choices"][0]["finish_reason"])
    assert "".join(texts) == "hel"
    assert reasons[-1] == "stop"
    usage = {"choices": [], "usage": {"completion_tokens": 4}}
    assert cutter.cut(usage) == usage


def test_what_may_still_become_a_stop_string_is_given_at_the_end():
    cutter = _StreamCutter(["###"])
    assert cutter.cut({"choices": [{"index": 0, "text": "a ##"}]}) == {
        "choices": [{"index": 0, "text": "a "}]
    }
    last = cutter.cut({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    assert last["choices"][0]["text"] == "##"


# -------------------------------------------------------------------------------------------------------------- safety


@pytest.mark.parametrize(
    "endpoint", ["/load_lora_adapter", "/../shutdown", "/chat/completions/../../terminate", "", "/models"]
)
def test_only_inference_is_passed_on(endpoint, tmp_path):
    with pytest.raises(NotFoundError, match="is not passed on"):
        make("vllm", tmp_path)._prepare(endpoint, b"{}")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
        {"type": "image_url", "image_url": "https://example.com/a.png"},
        {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
        {"type": "audio_url", "audio_url": {"url": "FTP://x"}},
        {"type": "tool_result", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
    ],
)
def test_no_engine_is_made_to_fetch_anything(part, tmp_path):
    engine = make("vllm", tmp_path)
    messages = [{"role": "user", "content": [part]}]
    with pytest.raises(InvalidArgumentError, match="not fetched"):
        engine._prepare("/chat/completions", json.dumps({"messages": messages}).encode())
    with pytest.raises(InvalidArgumentError, match="not fetched"):
        engine._prepare("/responses", json.dumps({"input": messages}).encode())
    with pytest.raises(InvalidArgumentError, match="not fetched"):
        engine._body(GenerationRequest(messages=messages))


def test_images_as_data_pass(tmp_path):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    make("vllm", tmp_path)._prepare(
        "/chat/completions", json.dumps({"messages": [{"content": [part]}]}).encode()
    )


KEY_VARIABLES = {
    "vllm": "VLLM_API_KEY",
    "sglang": "MODELKIT_ENGINE_KEY",
    "lmdeploy": "MODELKIT_ENGINE_KEY",
    "tgi": "API_KEY",
}


@pytest.mark.parametrize("name", ENGINES)
def test_each_start_has_a_key_of_its_own_that_no_command_line_shows(name, tmp_path, monkeypatch):
    monkeypatch.setattr("modelkit.engines.tgi.shutil.which", lambda _: "/tgi")
    engine = make(name, tmp_path)
    engine.upstream = Upstream(name, "")
    first, second = engine._launch(80), engine._launch(81)
    assert len(second.api_key) >= 32
    assert first.api_key != second.api_key
    assert second.environment[KEY_VARIABLES[name]] == second.api_key
    assert not any(second.api_key in word for word in second.command)
    assert engine.upstream._headers["Authorization"] == f"Bearer {second.api_key}"


def test_sglang_and_lmdeploy_get_the_key_as_an_option_inside_their_process(tmp_path):
    sglang, lmdeploy = (
        make("sglang", tmp_path).command("/py", 80),
        make("lmdeploy", tmp_path).command("/py", 80),
    )
    assert sglang[1].endswith("_with_key.py")
    assert sglang[2:5] == ["--api-key", "sglang.launch_server", "--model-path"]
    assert lmdeploy[2:5] == ["--api-keys", "lmdeploy", "serve"]


@pytest.mark.parametrize("option", [{"tokenizer-worker-num": 4}, {"--grpc_port": 50051}])
def test_sglang_gets_no_key_where_it_refuses_one(option, tmp_path):
    engine = make("sglang", tmp_path, args=option)
    engine.upstream = Upstream("sglang", "")
    launch = engine._launch(80)
    assert launch.api_key == ""
    assert launch.command[1:3] == ["-m", "sglang.launch_server"]
    assert "Authorization" not in engine.upstream._headers


@pytest.mark.parametrize("name", ["api-key", "--api-keys", "api_key"])
def test_a_key_in_the_engines_options_is_refused(name, tmp_path):
    with pytest.raises(UsageError, match="a new key at each start") as error:
        make("vllm", tmp_path, args={name: "mine"}).arguments()
    assert "--api-key-env" in error.value.cure


# --------------------------------------------------------------------------------------------------------------- stages

LOGS = {
    "vllm": [
        ("reading the config", "(APIServer pid=1) INFO [utils.py:233] non-default args: {'port': 8000}"),
        ("starting the engine", "(EngineCore pid=2) INFO [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config"),
        ("loading weights", "(Worker pid=3) INFO [gpu_model_runner.py:68] Starting to load model /m..."),
        ("compiling", "INFO [backends.py:1] Dynamo bytecode transform time: 3.2 s"),
        ("measuring memory", "INFO [gpu_worker.py:1] Available KV cache memory: 100.2 GiB"),
        ("capturing CUDA graphs", "Capturing CUDA graphs (decode, FULL):  10%|"),
        ("starting the server", "INFO:     Application startup complete."),
    ],
    "sglang": [
        ("reading the config", "[2026] server_args=ServerArgs(model_path='/m')"),
        ("loading weights", "[2026] Load weight begin. avail mem=138.00 GB"),
        ("allocating the KV cache", "[2026] Load weight end. elapsed=1.2 s"),
        ("capturing CUDA graphs", "[2026] Capture cuda graph begin. This can take up to several minutes."),
        ("starting the server", "INFO:     Application startup complete."),
        ("warming up", "[2026] The server is fired up and ready to roll!"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "stage", "line"), [(n, s, line) for n, log in LOGS.items() for s, line in log]
)
def test_a_line_of_the_log_tells_the_stage(name, stage, line):
    found = [known.name for known in ENGINES[name].stages if known.pattern.search(line)]
    assert found[:1] == [stage]


# LMDeploy 0.18, 0.7, 0.5 and 0.4; a model that TurboMind does not run, and a build without TurboMind.
FALLBACKS = (
    "archs.py:38 - Fallback to pytorch engine because '/m' not supported by turbomind engine.",
    "archs.py:40 - Fallback to pytorch engine because turbomind is not built.",
    "archs.py:53 - Fallback to pytorch engine because `/m` not supported by turbomind engine.",
    "Fallback to pytorch engine because turbomind engine is not installed correctly. If you insist to use turbomind",
    "Try to run with pytorch engine because `/m` is not explicitly supported by lmdeploy. ",
)


@pytest.mark.parametrize("line", FALLBACKS)
@pytest.mark.parametrize(("args", "is_fatal"), [({"backend": "turbomind"}, True), ({}, False)])
def test_lmdeploy_on_pytorch_is_not_taken_for_turbomind(args, is_fatal, line, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["MistralForCausalLM"]}')
    engine = make("lmdeploy", tmp_path, args=args)
    engine.version = "0.18.0"
    (deviation,) = engine.deviations
    assert deviation.pattern.search(f"2026-08-01 11:43:14,814 - lmdeploy - WARNING - {line}")
    assert deviation.is_fatal is is_fatal
    assert deviation.message == (
        "TurboMind of LMDeploy 0.18.0 does not run MistralForCausalLM, and LMDeploy runs it on PyTorch in its place"
    )
    assert "engine.args.backend: pytorch" in deviation.cure


def test_lmdeploy_that_does_what_it_is_told_is_no_deviation(tmp_path):
    # Some versions warn also of what they were told: PyTorch.
    assert make("lmdeploy", tmp_path, args={"backend": "pytorch"}).deviations == ()
    (deviation,) = make("lmdeploy", tmp_path).deviations  # a checkpoint that does not say what it is
    assert "TurboMind of LMDeploy does not run the model" in deviation.message
    for line in ("lmdeploy - INFO - input backend=turbomind", "[TM][INFO] Object cache budget: 51200.00 MB"):
        assert not deviation.pattern.search(line)


@pytest.mark.parametrize("name", ENGINES)
def test_a_launch_knows_what_its_engines_log_may_tell(name, tmp_path, monkeypatch):
    monkeypatch.setattr("modelkit.engines.tgi.shutil.which", lambda _: "/tgi")
    engine = make(name, tmp_path)
    engine.upstream = Upstream(name, "")
    launch = engine._launch(80)
    assert (launch.stages, launch.deviations) == (engine.stages, engine.deviations)
    assert bool(launch.deviations) is (name == "lmdeploy")


@pytest.mark.parametrize("name", ENGINES)
def test_a_chat_template_is_found_where_checkpoints_keep_it(name, tmp_path):
    assert not make(name, tmp_path).has_chat_template
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert make(name, tmp_path).has_chat_template
    assert make(name, tmp_path / "none", args={"chat-template": "x.jinja"}).has_chat_template


def test_lmdeploys_backend_is_found_however_it_is_spelled(tmp_path):
    engine = make("lmdeploy", tmp_path, args={"--backend": "pytorch"})
    assert engine.backend == "pytorch"
    assert engine.arguments() == ["--dtype", "auto"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, True),
        ({"gpu_memory_utilization": 0.5}, False),
        ({"args": {"kv-cache-memory-bytes": 67108864}}, False),
    ],
)
def test_vllm_on_a_cpu_takes_a_cache_of_a_known_size(options, told, tmp_path, monkeypatch):
    monkeypatch.setattr("modelkit.engines.vllm.has_nvidia_gpu", lambda: False)
    assert (str(2 * 1024**3) in make("vllm", tmp_path, **options).arguments()) is told


def test_a_seed_of_zero_is_sent(tmp_path):
    engine = make("sglang", tmp_path)
    assert engine.sampling_fields(SamplingParams(seed=0))["seed"] == 0
