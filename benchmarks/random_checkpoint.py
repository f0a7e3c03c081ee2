"""Write a checkpoint of a well-known architecture with random weights and a real tokenizer: speed without downloads.

    python benchmarks/random_checkpoint.py OUT_DIR [--architecture qwen2-7b] [--device cuda]

`modelkit bench --random-weights` does the same for plain architectures, without torch; this one asks transformers for the
names and shapes, and so knows all architectures that it knows. The answers are nonsense; their cost is the real model's.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelkit.benchmark import random_weights

_COMMON = {
    "initializer_range": 0.02,
    "use_cache": True,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _qwen2(**sizes: Any) -> dict[str, Any]:
    base = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "use_sliding_window": False,
    }
    return {**_COMMON, **base, **sizes}


# The sizes of the models' own config.json; a suffix such as -6l says that there are fewer layers.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **random_weights.ARCHITECTURES,
    "gemma-2-2b": {  # windows in every other layer, tied embeddings
        **_COMMON,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "tie_word_embeddings": True,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-06,
        "hidden_act": "gelu_pytorch_tanh",  # SGLang reads this one, transformers the other
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "1b": _qwen2(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=20,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=40000,
    ),
    "gemma-3-1b": {  # windows in five of six layers, one head of keys and values
        **_COMMON,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "tie_word_embeddings": True,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262144,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 256,
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rms_norm_eps": 1e-06,
        "hidden_act": "gelu_pytorch_tanh",  # SGLang reads this one, transformers the other
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "deepseek-v2-lite-6l": {  # latent attention, 64 experts
        **_COMMON,
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 6,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "vocab_size": 102400,
        "max_position_embeddings": 32768,
        "rope_theta": 10000,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "attention_bias": False,
    },
    "qwen2.5-0.5b": _qwen2(  # tied embeddings
        tie_word_embeddings=True,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
    ),
}
SHARD_BYTES = 4 * 2**30


def write_weights(out_dir: Path, device: str) -> int:
    """Write the shards and their index; returns the bytes of all weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out_dir))
    shard: dict[str, torch.Tensor] = {}
    weight_map: dict[str, str] = {}
    total = held = index = 0

    def flush() -> None:
        nonlocal held, index
        if shard:
            name = f"model-{index:05d}.safetensors"
            save_file(shard, out_dir / name, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(shard, name))
            shard.clear()
            held, index = 0, index + 1

    for name, shape in published_names(model):
        value = torch.empty(shape, dtype=torch.bfloat16, device=device)
        if "norm" in name:
            value.fill_(1.0)
        else:
            value.normal_(0.0, 0.02)
        shard[name] = value.cpu().contiguous()
        total += value.numel() * 2
        held += value.numel() * 2
        if held >= SHARD_BYTES:
            flush()
    flush()
    (out_dir / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    return total


def published_names(model: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Iterate over the weights as models publish them: experts one by one, and a tied output left out."""
    for name, parameter in model.state_dict().items():
        shape = tuple(parameter.shape)
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.endswith("experts.gate_up_proj"):  # transformers 5 fuses them
            for expert in range(shape[0]):
                for half in ("gate_proj", "up_proj"):
                    part = name.replace("gate_up_proj", f"{expert}.{half}.weight")
                    yield part, (shape[1] // 2, shape[2])
        elif name.endswith("experts.down_proj"):
            for expert in range(shape[0]):
                yield name.replace("down_proj", f"{expert}.down_proj.weight"), shape[1:]
        else:
            yield name, shape


def write_config(out_dir: Path, architecture: str) -> None:
    """Write config.json and generation_config.json."""
    config = {**_COMMON, **ARCHITECTURES[architecture], "torch_dtype": "bfloat16"}
    (out_dir / "config.json").write_text(json.dumps(config, indent=2))
    generation = {"eos_token_id": 2, "pad_token_id": 0, "do_sample": False}
    (out_dir / "generation_config.json").write_text(json.dumps(generation, indent=2))


def write_checkpoint(out_dir: Path, architecture: str, device: str) -> int:
    """Write all of a checkpoint; returns the bytes of its weights."""
    write_tokenizer(out_dir, architecture)
    write_config(out_dir, architecture)
    return write_weights(out_dir, device)


def write_tokenizer(out_dir: Path, architecture: str) -> None:
    """Train a tokenizer that decodes every id of the architecture."""
    out_dir.mkdir(parents=True, exist_ok=True)
    random_weights.write_tokenizer(out_dir, ARCHITECTURES[architecture]["vocab_size"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="qwen2-7b")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    started = time.monotonic()
    total = write_checkpoint(options.out_dir, options.architecture, options.device)
    print(f"{total / 2**30:.2f} GiB of weights, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
