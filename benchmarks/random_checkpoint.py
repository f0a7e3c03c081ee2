"""Write a checkpoint of a well-known architecture with random weights and a real tokenizer: speed without downloads.

    python benchmarks/random_checkpoint.py OUT_DIR [--architecture qwen2-7b] [--device cuda]

The weights are normal with the architecture's own initializer_range, in bfloat16. The tokenizer is a byte-level BPE
trained on the Python standard library's sources; rows of the output matrix beyond its vocabulary are zero, so that every
token the model writes can be decoded. The answers are nonsense; their cost is the real model's.
"""

import argparse
import json
import sysconfig
import time
from pathlib import Path
from typing import Any

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2-7b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "attention_dropout": 0.0,
    },
    "1b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 20,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 40000,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "attention_dropout": 0.0,
    },
    "tiny": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 40000,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "attention_dropout": 0.0,
    },
}
TOKENIZER_VOCABULARY = 32000
SHARD_BYTES = 4 * 2**30
# Qwen2's own splitting: transformers 5 puts it in place of any other for this model type.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(out_dir: Path) -> int:
    """Train and save the tokenizer; returns how many ids it uses."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in sources], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out_dir)
    path = out_dir / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
    for key in ("backend", "extra_special_tokens"):
        settings.pop(key, None)  # transformers 4 reads these differently
    path.write_text(json.dumps(settings, indent=2))
    (out_dir / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return tokenizer.get_vocab_size()


def write_weights(out_dir: Path, num_ids: int, device: str) -> int:
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

    for name, parameter in model.state_dict().items():
        value = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
        if "norm" in name:
            value.fill_(1.0)
        else:
            value.normal_(0.0, 0.02)
        if name == "lm_head.weight":
            value[num_ids:] = 0
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="qwen2-7b")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    started = time.monotonic()
    options.out_dir.mkdir(parents=True, exist_ok=True)
    num_ids = train_tokenizer(options.out_dir)
    config = {
        **ARCHITECTURES[options.architecture],
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    (options.out_dir / "config.json").write_text(json.dumps(config, indent=2))
    generation = {"eos_token_id": 2, "pad_token_id": 0, "do_sample": False}
    (options.out_dir / "generation_config.json").write_text(json.dumps(generation, indent=2))
    total = write_weights(options.out_dir, num_ids, options.device)
    print(f"{total / 2**30:.2f} GiB of weights, {num_ids} tokens, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
