"""A checkpoint from an architecture's config alone: random weights, a real tokenizer.

So engines compare on a machine without the real one: the answers are nonsense, their cost is the real model's. Nothing of
torch is needed: a checkpoint is a header and numbers, and the numbers are one block of noise, repeated. The block's length
is prime, so that no two rows of a matrix are alike. The tokenizer is a byte-level BPE trained on the sources of Python's
standard library; ids that it does not reach decode to a word each, so that whatever the model writes is text.
"""

import json
import random
import struct
import sysconfig
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from modelkit.benchmark.presets import BLOG_MODELS
from modelkit.errors import UsageError, closest

__all__ = ["ARCHITECTURES", "read_config", "write_checkpoint", "write_tokenizer"]

_COMMON: Final[Mapping[str, Any]] = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
# The config.json of well-known models, as far as it makes their cost.
ARCHITECTURES: Final[Mapping[str, Mapping[str, Any]]] = {
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
        "use_sliding_window": False,
    },
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-05,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "mistral-7b": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 32768,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-05,
        "sliding_window": None,
    },
    # For machines without a GPU, and for tests.
    "tiny": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "use_sliding_window": False,
    },
}
_FAMILIES = ("qwen2", "llama", "mistral")
_NUM_TRAINED = 32000
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_END_ID = 2
# Qwen2's own splitting: transformers 5 puts it in place of any other for this model type.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_BLOCK = 1_048_573  # a prime: the noise comes round at another place of each row
_DEVIATION = 0.02
_SHARD_BYTES = 4 * 2**30
_WRITE_BYTES = 64 * 2**20


def read_config(name: str) -> dict[str, Any]:
    """Return the config of a known architecture, by its name or by that of the model that published presets are of.

    Or that of a config.json, or of a folder that has one. Raises UsageError.
    """
    if (known := BLOG_MODELS.get(name, name)) in ARCHITECTURES:
        return dict(ARCHITECTURES[known])
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        names = [*ARCHITECTURES, *BLOG_MODELS]
        guess = closest(name, names)
        hint = f"; did you mean '{guess}'?" if guess else ""
        raise UsageError(
            f"there is no architecture '{name}'{hint}",
            cure=f"use {', '.join(names)}, or a config.json",
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", cure="name a model's config.json") from error
    if config.get("model_type") not in _FAMILIES:
        raise UsageError(
            f"{path} is a {config.get('model_type')}: random weights are made for {', '.join(_FAMILIES)}",
            cure="name another config.json",
        )
    return config


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    *,
    weights: bool,
    on_stage: Callable[[str], None] = lambda _: None,
) -> None:
    """Write a checkpoint; without `weights` for an engine that makes them up itself (`--load-format dummy`)."""
    folder.mkdir(parents=True, exist_ok=True)
    on_stage("training a tokenizer")
    write_tokenizer(folder, int(config["vocab_size"]))
    # A fresh set: what the original says of quantization or rope scaling belongs to its weights and its tokenizer.
    config = {key: value for key, value in config.items() if key not in {"quantization_config", "auto_map"}}
    config |= {**_COMMON, "bos_token_id": None, "eos_token_id": _END_ID, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    generation = {"eos_token_id": _END_ID, "pad_token_id": 0, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2), encoding="utf-8")
    if weights:
        on_stage("writing random weights")
        _write_weights(folder, config)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Train a byte-level BPE; ids that it does not reach decode to a word each. Raises UsageError without `tokenizers`."""
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    except ModuleNotFoundError:
        raise UsageError(
            "random weights need the library 'tokenizers'", cure="pip install 'modelkit-sdk[bench]'"
        ) from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), "isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(_NUM_TRAINED, vocab_size),
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    tokenizer.train([str(path) for path in sources], trainer)
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    # No merge leads to these, so no text has them; but a model may write any id.
    vocabulary |= {f"Ġid{number}": number for number in range(len(vocabulary), vocab_size)}
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _SPECIAL[2],
        "pad_token": _SPECIAL[0],
        "chat_template": _CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------- weights


def _shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor of the Llama family."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    biased = config["model_type"] == "qwen2" or config.get("attention_bias", False)
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, size in (("q", heads * head_dim), ("k", kv_heads * head_dim), ("v", kv_heads * head_dim)):
            yield f"{at}.self_attn.{name}_proj.weight", (size, hidden)
            if biased:
                yield f"{at}.self_attn.{name}_proj.bias", (size,)
        yield f"{at}.self_attn.o_proj.weight", (hidden, heads * head_dim)
        yield f"{at}.mlp.gate_proj.weight", (intermediate, hidden)
        yield f"{at}.mlp.up_proj.weight", (intermediate, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, intermediate)
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (config["vocab_size"], hidden)


def _write_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the shards and their index, in the format of safetensors.

    Source: https://huggingface.co/docs/safetensors (8 bytes of length, a JSON header, the data).
    """
    noise = _noise()
    weight_map: dict[str, str] = {}
    shard: list[tuple[str, tuple[int, ...]]] = []
    held = total = 0
    everything = list(_shapes(config))
    for index, (name, shape) in enumerate(everything):
        size = _num_bytes(shape)
        shard.append((name, shape))
        held, total = held + size, total + size
        if held >= _SHARD_BYTES or index == len(everything) - 1:
            file = f"model-{len(set(weight_map.values())):05d}.safetensors"
            _write_shard(folder / file, shard, noise)
            weight_map |= dict.fromkeys((one for one, _ in shard), file)
            shard, held = [], 0
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")


def _write_shard(path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], noise: bytes) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors:
        size = _num_bytes(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape in tensors:
            _write_tensor(file, name, _num_bytes(shape), noise)


def _write_tensor(file: BinaryIO, name: str, size: int, noise: bytes) -> None:
    if "norm" in name:
        file.write(struct.pack("<f", 1.0)[2:] * (size // 2))
        return
    # Each tensor begins elsewhere in the noise, so that no layer is like another.
    start = random.Random(name).randrange(_BLOCK) * 2  # noqa: S311
    while size > 0:
        piece = noise[start : start + min(size, len(noise) - start)]
        file.write(piece)
        size -= len(piece)
        start = 0


def _noise() -> bytes:
    """Return a normal distribution in bfloat16 (the upper half of a float32), several blocks long for large writes."""
    generator = random.Random(0)  # noqa: S311
    content = array("f", (generator.gauss(0.0, _DEVIATION) for _ in range(_BLOCK))).tobytes()
    block = bytearray(2 * _BLOCK)
    block[0::2], block[1::2] = content[2::4], content[3::4]
    return bytes(block) * max(1, _WRITE_BYTES // len(block))


def _num_bytes(shape: Sequence[int]) -> int:
    size = 2
    for length in shape:
        size *= length
    return size
