"""What a config.json says of memory, against the numbers that are published for the models."""

import pytest

from modelkit.errors import LoadError
from modelkit.fit import Settings, read_architecture
from modelkit.fit.cache import bytes_per_token
from unit.fit import checkpoints as ck

VLLM = Settings(engine="vllm")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ck.QWEN2_7B, 57_344),  # 28 layers x 2 x 4 heads x 128 x 2 bytes
        (ck.LLAMA_31_8B, 131_072),  # 128 KiB
        (ck.MISTRAL_7B_01, 131_072),
        (ck.DEEPSEEK_V2, 576 * 2 * 60),  # DeepSeek-V2's paper: (512 + 64) numbers a layer
        (ck.GPT_OSS_20B, 24 * 2 * 8 * 64 * 2),
        (ck.GEMMA_3_27B, 62 * 2 * 16 * 128 * 2),
        (ck.QWEN3_NEXT, 12 * 2 * 2 * 256 * 2),  # 12 of 48 layers keep tokens
    ],
)
def test_bytes_of_a_token(config, expected):
    architecture = read_architecture(config)
    assert architecture.is_known, architecture.notes
    assert bytes_per_token(architecture, VLLM, "bfloat16") == expected


@pytest.mark.parametrize(
    ("kv_heads", "size", "factor"), [(4, 1, 1), (4, 2, 2), (4, 4, 4), (4, 8, 4), (1, 2, 1), (28, 4, 4)]
)
def test_heads_are_split_until_each_device_has_one(kv_heads, size, factor):
    architecture = read_architecture({**ck.QWEN2_7B, "num_key_value_heads": kv_heads})
    alone = bytes_per_token(architecture, VLLM, "bfloat16")
    assert (
        bytes_per_token(architecture, Settings(engine="vllm", tensor_parallel_size=size), "bfloat16")
        == alone / factor
    )


def test_latent_attention_is_copied_to_every_device():
    architecture = read_architecture(ck.DEEPSEEK_V2)
    assert (
        bytes_per_token(architecture, Settings(engine="vllm", tensor_parallel_size=8), "bfloat16")
        == 576 * 2 * 60
    )
    # transformers keeps the keys and values of every head
    expanded = 128 * (128 + 64 + 128) * 2 * 60
    assert bytes_per_token(architecture, Settings(engine="transformers"), "bfloat16") == expanded


@pytest.mark.parametrize(
    ("dtype", "share"),
    [("auto", 1), ("fp8", 0.5), ("fp8_e5m2", 0.5), ("int8", 0.5), ("bfloat16", 1), ("nonsense", 1)],
)
def test_the_cache_has_a_dtype_of_its_own(dtype, share):
    architecture = read_architecture(ck.QWEN2_7B)
    assert (
        bytes_per_token(architecture, Settings(engine="vllm", kv_cache_dtype=dtype), "bfloat16")
        == 57_344 * share
    )


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (ck.QWEN2_7B, ["full"] * 28),
        (ck.MISTRAL_7B_01, ["sliding"] * 32),
        (ck.GEMMA_2_2B, ["sliding", "full"] * 13),
        (ck.GEMMA_3_27B, (["sliding"] * 5 + ["full"]) * 10 + ["sliding"] * 2),
        (ck.GPT_OSS_20B, ["sliding", "full"] * 12),
        (ck.QWEN3_NEXT, (["state"] * 3 + ["full"]) * 12),
        ({**ck.QWEN2_7B, "use_sliding_window": True, "max_window_layers": 20}, ["full"] * 20 + ["sliding"] * 8),
        ({**ck.LLAMA_31_8B, "attn_layer_period": 8, "attn_layer_offset": 4, "mamba_d_state": 16},
         (["state"] * 4 + ["full"] + ["state"] * 3) * 4),
        ({**ck.LLAMA_31_8B, "num_hidden_layers": 4, "hybrid_override_pattern": "M-*M", "ssm_state_size": 128},
         ["state", "state", "full", "state"]),
    ],
)  # fmt: skip
def test_each_layer_by_its_kind(config, kinds):
    assert [layer.kind for layer in read_architecture(config).layers] == kinds


@pytest.mark.parametrize(
    ("change", "length"),
    [
        ({}, 131_072),
        ({"rope_scaling": None}, 131_072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16_384),
        ({"max_position_embeddings": 32_768,
          "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}}, 131_072),
        ({"max_position_embeddings": None}, 2048),
    ],
)  # fmt: skip
def test_the_longest_sequence(change, length):
    assert read_architecture({**ck.LLAMA_31_8B, **change}).max_model_len == length


def test_a_multimodal_model_is_read_by_its_text_part():
    architecture = read_architecture(ck.GEMMA_3_27B)
    assert (architecture.hidden_size, architecture.num_layers, architecture.max_model_len) == (
        5376,
        62,
        131_072,
    )
    assert architecture.is_tied
    assert architecture.name == "Gemma3ForConditionalGeneration"


def test_what_is_assumed_is_said():
    config = {**ck.LLAMA_31_8B, "layer_types": ["full_attention", "perplexing"] * 16}
    architecture = read_architecture(config)
    assert not architecture.is_known
    assert architecture.notes == (
        "layers of type 'perplexing' are not known here: counted as full attention",
    )
    assert bytes_per_token(architecture, VLLM, "bfloat16") == 131_072


def test_older_spellings_and_one_head_for_all():
    gpt2 = {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
    }
    architecture = read_architecture(gpt2)
    assert (architecture.max_model_len, architecture.is_tied, architecture.intermediate_size) == (
        1024,
        True,
        3072,
    )
    assert bytes_per_token(architecture, VLLM, "float16") == 12 * 2 * 768 * 2
    falcon = {"model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
              "multi_query": True, "vocab_size": 65024, "max_position_embeddings": 2048}  # fmt: skip
    assert bytes_per_token(read_architecture(falcon), VLLM, "bfloat16") == 32 * 2 * 64 * 2


def test_a_config_without_a_size_is_refused():
    with pytest.raises(LoadError, match="no 'hidden_size'"):
        read_architecture({"model_type": "llama"})
