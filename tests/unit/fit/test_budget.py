"""The sum, and each engine's own way to divide memory: against formulae and figures of the engines' sources."""

from dataclasses import replace

import pytest

from modelkit.config import ComputeConfig, EngineConfig
from modelkit.errors import UsageError
from modelkit.fit import (
    Device,
    LocalReader,
    Settings,
    device_by_name,
    device_of_compute,
    device_of_size,
    estimate,
    kind_of,
    read_architecture,
    read_model,
    rows,
    settings_of,
    this_machine,
)
from modelkit.fit.budget import resolved_dtype
from modelkit.fit.cache import layout_of
from unit.fit import checkpoints as ck

GIB = 2**30
ENGINES = ("vllm", "sglang", "turbomind", "pytorch", "tgi", "transformers")


@pytest.fixture
def model_of(tmp_path):
    def make(config):
        return read_model(LocalReader(ck.write_config(tmp_path / config["model_type"], config)))

    return make


@pytest.fixture
def qwen2(model_of):
    return model_of(ck.QWEN2_7B)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("gpu", ["H200", "A10G"])
def test_the_rows_come_to_what_the_device_has(qwen2, engine, gpu):
    device = device_by_name(gpu)
    found = estimate(qwen2, Settings(engine=engine, max_model_len=2048), device, concurrency=3)
    assert found.fits
    assert sum(size for _, size in rows(found)) == device.usable_bytes
    assert all(size > 0 for _, size in rows(found)), rows(found)


@pytest.mark.parametrize("engine", ENGINES)
def test_more_sequences_and_longer_ones_take_more(qwen2, engine):
    settings, device = Settings(engine=engine), device_by_name("H100")
    base = estimate(qwen2, settings, device, max_model_len=4096, concurrency=4)
    assert estimate(qwen2, settings, device, max_model_len=8192, concurrency=4).kv_bytes == 2 * base.kv_bytes
    assert estimate(qwen2, settings, device, max_model_len=4096, concurrency=8).kv_bytes == 2 * base.kv_bytes
    assert base.sequence_bytes == 57_344 * 4096 * (1.5 if engine == "transformers" else 1)


def test_vllm_takes_its_share_of_all_memory(qwen2):
    device = device_by_name("H200")
    settings = Settings(engine="vllm", utilization=0.5)
    more = estimate(qwen2, replace(settings, utilization=0.6), device).kv_room_bytes
    assert more - estimate(qwen2, settings, device).kv_room_bytes == pytest.approx(
        device.usable_bytes * 0.1, abs=2
    )


@pytest.mark.parametrize(
    ("gpu", "size", "fraction"),
    [
        # (81559 - (512 + 8192 * 1.5 + 128 + 256 * 2 + 58 * 8)) / 81559, and so on: server_args.py by hand
        ("H100", 1, 0.830),
        ("H200", 1, 0.903),
        ("A10G", 1, 0.822),
        ("H100", 4, 0.819),
    ],
)
def test_sglang_keeps_what_its_source_says(qwen2, gpu, size, fraction):
    device = device_by_name(gpu)
    default = estimate(qwen2, Settings(engine="sglang", tensor_parallel_size=size), device)
    given = estimate(
        qwen2, Settings(engine="sglang", tensor_parallel_size=size, utilization=fraction), device
    )
    assert default.kv_room_bytes == pytest.approx(given.kv_room_bytes, abs=0.0011 * device.usable_bytes)


def test_sglang_keeps_nothing_for_graphs_of_prefills_with_latent_attention(model_of):
    model, device = model_of({**ck.DEEPSEEK_V2, "num_hidden_layers": 3}), device_by_name("H100")
    default = estimate(model, Settings(engine="sglang"), device)
    given = estimate(model, Settings(engine="sglang", utilization=0.835), device)  # what SGLang 0.5.16 said
    assert default.kv_room_bytes == pytest.approx(given.kv_room_bytes, abs=0.0006 * device.usable_bytes)


@pytest.mark.parametrize("engine", ["turbomind", "pytorch"])
def test_lmdeploy_takes_its_share_of_what_the_weights_leave(qwen2, engine):
    device = device_by_name("H200")
    half = estimate(qwen2, Settings(engine=engine, utilization=0.4), device).kv_room_bytes
    assert estimate(qwen2, Settings(engine=engine), device).kv_room_bytes == pytest.approx(2 * half, abs=2)


def test_lmdeploy_runs_on_pytorch_what_turbomind_cannot(model_of):
    device = device_by_name("H200")
    gemma, turbomind = model_of(ck.GEMMA_2_2B), Settings(engine="turbomind")
    assert estimate(gemma, turbomind, device) == estimate(gemma, replace(turbomind, engine="pytorch"), device)
    assert estimate(model_of(ck.QWEN2_7B), turbomind, device).settings.engine == "turbomind"


def test_vllm_shares_one_pool_between_layers_with_windows_and_without():
    architecture = read_architecture(ck.GEMMA_2_2B)
    layout = layout_of(architecture, Settings(engine="vllm"), "bfloat16", 2048)
    page = 16 * 4 * 2 * 256 * 2
    assert layout.unit_bytes == 13 * page
    # 13 layers in each of two groups; a window of 4,096 and two batches of 2,048 in flight hold 8,191 tokens
    assert layout.units(8192) == 8192 // 16 + (8192 // 16 + 1)
    assert layout.units(100_000) == 100_000 // 16 + (8192 // 16 + 1)
    # five of six layers have a window: six groups, the sixth part full
    gemma3 = layout_of(read_architecture(ck.GEMMA_3_27B), Settings(engine="vllm"), "bfloat16", 2048)
    assert gemma3.unit_bytes == 10 * 16 * 16 * 2 * 128 * 2
    assert gemma3.units(131_072) == 131_072 // 16 + 6 * (-(-(1023 + 4096) // 16) + 1)


def test_vllm_on_a_cpu_reports_these_capacities():
    """What vLLM 0.32 logged for 256 MiB of float32 cache, sequences of 4,096 and steps of 512 tokens."""
    small = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "hidden_size": 256}
    settings = Settings(engine="vllm")
    gemma2 = read_architecture({**ck.GEMMA_2_2B, **small, "num_hidden_layers": 6, "sliding_window": 512})
    layout = layout_of(gemma2, settings, "float32", 512, on_cpu=True)
    assert layout.num_tokens(2**28, 4096) == 68_133
    text = {**ck.GEMMA_3_27B["text_config"], **small, "num_hidden_layers": 13, "sliding_window": 256}
    gemma3 = layout_of(read_architecture(text), settings, "float32", 512, on_cpu=True)
    assert gemma3.num_tokens(2**28, 4096) == 56_679
    mistral = read_architecture({**ck.MISTRAL_7B_01, **small, "num_hidden_layers": 4, "sliding_window": 512})
    assert layout_of(mistral, settings, "float32", 512, on_cpu=True).num_tokens(2**28, 4096) == 233_016
    latent = read_architecture({**ck.DEEPSEEK_V2, "num_hidden_layers": 3})
    assert layout_of(latent, settings, "float32", 512, on_cpu=True).num_tokens(2**28, 4096) == 38_832


def test_sglang_has_two_pools_for_some_models_and_none_for_others():
    oss = layout_of(read_architecture(ck.GPT_OSS_20B), Settings(engine="sglang"), "bfloat16", 8192)
    layer = 8 * 2 * 64 * 2
    assert oss.unit_bytes == int(12 * layer + 0.8 * 12 * layer)
    gemma = layout_of(read_architecture(ck.GEMMA_2_2B), Settings(engine="sglang"), "bfloat16", 8192)
    assert gemma.unit_bytes == 26 * 4 * 2 * 256 * 2


def test_the_embedded_engine_makes_room_for_half_as_much_again_and_rows_by_powers_of_two():
    layout = layout_of(read_architecture(ck.GEMMA_2_2B), Settings(engine="transformers"), "bfloat16", 8192)
    column = 26 * 4 * 2 * 256 * 2
    assert layout.sequence_bytes(8192) == column * 8192 * 3 // 2
    assert layout.sequence_bytes(1) == column * 128
    assert [layout.rows(num) for num in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]
    assert layout.num_sequences(7 * layout.sequence_bytes(100), 100) == 4


def test_layers_that_keep_a_state_take_the_same_for_every_length():
    architecture = read_architecture(ck.QWEN3_NEXT)
    layout = layout_of(architecture, Settings(engine="vllm"), "bfloat16", 2048)
    tokens = 12 * 2 * 2 * 256 * 2
    state = layout.sequence_bytes(1) - tokens
    assert layout.sequence_bytes(10_001) - tokens * 10_001 == state
    # a matrix of 128 x 128 for each of 32 heads in float32, and three inputs of a convolution over 8,192 channels
    assert state == 36 * (32 * 128 * 128 * 4 + 3 * 8192 * 2)


def test_on_a_cpu_vllm_is_given_its_cache(qwen2):
    device = Device("main memory", 64 * GIB, 64 * GIB, "cpu")
    found = estimate(qwen2, Settings(engine="vllm"), device, max_model_len=2048)
    assert (found.dtype, found.kv_room_bytes, found.graph_bytes) == ("float32", 2 * GIB, 0)
    given = Settings(engine="vllm", kv_cache_bytes=GIB, dtype="bfloat16")
    assert estimate(qwen2, given, device, max_model_len=2048).kv_room_bytes == GIB


@pytest.mark.parametrize(
    ("written", "engine", "asked", "dtype"),
    [
        ("bfloat16", "vllm", "auto", "bfloat16"),
        ("float32", "vllm", "auto", "bfloat16"),
        ("float32", "turbomind", "auto", "float16"),
        ("float32", "transformers", "auto", "float32"),
        ("bfloat16", "vllm", "float16", "float16"),
        ("float8", "vllm", "auto", "bfloat16"),
    ],
)
def test_the_dtype_an_engine_runs_in(written, engine, asked, dtype):
    architecture = read_architecture({**ck.QWEN2_7B, "torch_dtype": written})
    assert resolved_dtype(architecture, Settings(engine=engine, dtype=asked), device_by_name("H200")) == dtype


def test_without_overheads_there_is_more_room(qwen2):
    settings, device = Settings(engine="vllm", max_model_len=2048), device_by_name("A10G")
    bare = estimate(qwen2, settings, device, with_overheads=False)
    assert bare.kv_room_bytes == int(device.usable_bytes * 0.92) - bare.weights.bytes_per_device
    assert bare.kv_room_bytes > estimate(qwen2, settings, device).kv_room_bytes


# ------------------------------------------------------------------------------------------------ settings and devices


def test_options_are_read_as_each_engine_spells_them():
    config = EngineConfig(
        name="vllm",
        gpu_memory_utilization=0.8,
        max_num_seqs=64,
        kv_cache_dtype="fp8",
        args={"--max-num-batched-tokens": "8k", "enforce_eager": True, "kv-cache-memory-bytes": "2G"},
    )
    assert settings_of(config, 2) == Settings(
        engine="vllm",
        tensor_parallel_size=2,
        utilization=0.8,
        max_num_seqs=64,
        kv_cache_dtype="fp8",
        max_num_batched_tokens=8000,
        kv_cache_bytes=2 * GIB,
        eager=True,
    )
    assert settings_of(EngineConfig(name="lmdeploy")).engine == "turbomind"
    assert settings_of(EngineConfig(name="lmdeploy", args={"backend": "pytorch"})).engine == "pytorch"
    assert settings_of(EngineConfig(name="transformers"), 4).tensor_parallel_size == 1
    assert settings_of(EngineConfig(name="echo")) is None
    with pytest.raises(UsageError, match="'vlm' is no engine"):
        kind_of("vlm")


def test_devices_by_name_by_size_and_by_what_compute_asks_for():
    assert device_by_name("h200").name == "NVIDIA-H200"
    assert device_by_name("NVIDIA H100 80GB HBM3").name == "NVIDIA-H100"
    assert (device_by_name("g5.12xlarge").name, device_by_name("g5.12xlarge").count) == ("NVIDIA-A10G", 4)
    with pytest.raises(UsageError, match="did you mean 'H200'"):
        device_by_name("H2000")
    assert device_of_size(24 * GIB).name == "a GPU with 24 GiB"
    assert device_of_compute(ComputeConfig()) is None
    assert device_of_compute(ComputeConfig(num_accelerators=1, accelerator_type=("NVIDIA-*",))) is None
    several = ComputeConfig(num_accelerators=2, accelerator_type=("NVIDIA-H200", "NVIDIA-L4"))
    assert (device_of_compute(several).name, device_of_compute(several).count) == ("NVIDIA-L4", 2)
    large = ComputeConfig(
        num_accelerators=1, accelerator_type=("NVIDIA-H200", "NVIDIA-L4"), accelerator_memory="40Gi"
    )
    assert device_of_compute(large).name == "NVIDIA-H200"
    unnamed = ComputeConfig(num_accelerators=1, accelerator_memory="40Gi")
    assert device_of_compute(unnamed).usable_bytes == 40 * GIB


def test_this_machine_has_memory():
    assert this_machine().usable_bytes > GIB
