"""Every engine on a real GPU behind `modelkit serve`: right answers, cancellation, death, and a card that is full.

MODELKIT_TEST_VLLM_PYTHON, MODELKIT_TEST_SGLANG_PYTHON and MODELKIT_TEST_LMDEPLOY_PYTHON name the interpreters that have
the engines; MODELKIT_TEST_BIG_CHECKPOINT a checkpoint of some billion weights (benchmarks/random_checkpoint.py makes
one), whose streams last long enough to be counted. With MODELKIT_TEST_WITHOUT_GPU=1 what makes sense runs on a CPU, by
vLLM's build for it.
"""

import os
from pathlib import Path

import pytest
from engine_checks import (
    BACK_ENDS,
    check_answers,
    check_cancellation,
    check_key,
    check_kill,
    check_out_of_memory,
    has_gpu,
    memory_holder,
    served,
    write_folder,
)

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

HAS_GPU = has_gpu()
BIG_CHECKPOINT = os.environ.get("MODELKIT_TEST_BIG_CHECKPOINT", "")
START_S = 300.0
# vLLM's own defaults on a CPU are for bigger machines.
ON_CPU = {"max_model_len": 1024, "dtype": "float32"}
ARGS_ON_CPU = {"enforce-eager": True, "kv-cache-memory-bytes": 67108864}
ENVIRONMENT = {} if HAS_GPU else {"VLLM_CPU_OMP_THREADS_BIND": "0", "OMP_NUM_THREADS": "1"}


def python_of(back_end):
    """The interpreter of a back end's engine; skips where there is none, or no GPU for it."""
    variable = f"MODELKIT_TEST_{BACK_ENDS[back_end]['name'].upper()}_PYTHON"
    runs_without = back_end == "vllm" and os.environ.get("MODELKIT_TEST_WITHOUT_GPU") == "1"
    if not HAS_GPU and not runs_without:
        pytest.skip("there is no NVIDIA GPU (nvidia-smi lists none)")
    if not os.environ.get(variable):
        pytest.skip(f"{variable} names no Python with the engine")
    return os.environ[variable]


def folder_of(back_end, parent, checkpoint, **settings):
    """A model folder for a checkpoint and a back end."""
    base = BACK_ENDS[back_end]
    engine = {"python": python_of(back_end), "start_timeout": "5m", **base, **settings}
    if not HAS_GPU:
        engine = {**engine, **ON_CPU, "args": ARGS_ON_CPU}
        engine.pop("gpu_memory_utilization")
    return write_folder(parent / back_end, checkpoint, engine)


@pytest.fixture(scope="module", params=["vllm", "sglang", "turbomind", "pytorch"])
def back_end(request):
    python_of(request.param)
    return request.param


@pytest.fixture(scope="module")
def server(back_end, tmp_path_factory, tiny_chat_checkpoint):
    parent = tmp_path_factory.mktemp("tiny")
    folder = folder_of(back_end, parent, tiny_chat_checkpoint, max_model_len=2048, gpu_memory_utilization=0.3)
    with served(folder, parent / "serve.log", START_S, ENVIRONMENT) as running:
        yield running


async def test_every_answer_is_exact_unary_streamed_and_through_the_openai_transport(
    server, tiny_chat_answers
):
    result = await check_answers(server, tiny_chat_answers)
    assert result["ok"], result
    assert result["unary"] == result["streamed"] == result["openai"] == len(tiny_chat_answers) > 100


async def test_the_engines_own_port_is_closed_to_others(server):
    result = await check_key(server)
    assert result["ok"], result


@pytest.fixture
def busy_server(request, back_end, tmp_path):
    """A server whose streams last: of the big checkpoint, beside the tiny one's; else the tiny one's."""
    if not HAS_GPU:
        pytest.skip(
            "on a CPU tests/integration/test_vllm.py counts, whose engine answers its metrics in time"
        )
    if not BIG_CHECKPOINT:
        if BACK_ENDS[back_end]["name"] == "lmdeploy":
            pytest.skip(
                "LMDeploy counts every 10 s, MODELKIT_TEST_BIG_CHECKPOINT names no checkpoint that is slow enough"
            )
        yield request.getfixturevalue("server")
        return
    settings = {"max_model_len": 4096, "gpu_memory_utilization": 0.5}
    folder = folder_of(back_end, tmp_path, Path(BIG_CHECKPOINT), **settings)
    with served(folder, tmp_path / "serve.log", START_S, ENVIRONMENT) as running:
        yield running


async def test_half_of_the_streams_cancelled_end_in_the_engine(busy_server):
    max_tokens = 3500 if BIG_CHECKPOINT else 1500
    result = await check_cancellation(busy_server, num=100, max_tokens=max_tokens)
    assert result["ok"], result


async def test_a_killed_engine_fails_its_streams_and_comes_back_with_the_same_answer(server):
    result = await check_kill(server, max_tokens=1500 if HAS_GPU else 900, timeout_s=START_S)
    assert result["ok"], result


def test_a_start_beside_a_memory_holder_tells_the_cure(back_end, tmp_path, tiny_chat_checkpoint):
    if not HAS_GPU:
        pytest.skip("there is no NVIDIA GPU whose memory could be held")
    checkpoint = Path(BIG_CHECKPOINT) if BIG_CHECKPOINT else tiny_chat_checkpoint
    folder = folder_of(
        back_end, tmp_path, checkpoint, max_model_len=2048, gpu_memory_utilization=0.9, start_timeout="100s"
    )
    with memory_holder(python_of(back_end), 8.0 if BIG_CHECKPOINT else 0.3):
        result = check_out_of_memory(folder, tmp_path / "serve.log", 130)
    assert result["ok"], result
