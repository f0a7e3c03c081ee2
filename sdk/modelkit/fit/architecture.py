"""What a checkpoint's config.json says of memory: the shape of its layers and what each keeps of a token it has read.

The names of the keys are those of transformers' configs. A model whose config tells less than is needed is estimated as
a plain transformer, and `notes` says what was assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelkit.errors import LoadError

__all__ = ["Architecture", "LayerCache", "read_architecture"]

Kind = Literal["full", "sliding", "latent", "state"]

_SLIDING = frozenset({"sliding_attention", "sliding", "local", "local_attention", "chunked_attention"})
_FULL = frozenset({"full_attention", "attention", "full", "global", "global_attention", "hybrid"})
# Configs of transformers' own classes do not write what equals the class's default.
_TIED_BY_DEFAULT = ("gemma", "cohere", "t5gemma", "gpt2", "falcon", "opt", "bloom", "recurrent_gemma")
_DEFAULT_PATTERNS = {"gemma2": 2, "gemma3_text": 6, "gemma3": 6, "cohere2": 4, "gemma3n_text": 5}
# The factor is part of the length already, or does not lengthen (vLLM: config/model.py, _get_and_verify_max_len).
_ROPE_WITHOUT_FACTOR = frozenset({"default", "llama3", "longrope", "su", "mrope", "proportional"})
_MAX_LEN_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "n_ctx",
)
_F32_BYTES = 4


# No size of a model is larger.
_MOST = 2**40


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What one layer keeps, on one device without tensor parallelism.

    full, sliding: `num_heads` keys of `key_dim` and values of `value_dim` numbers for each token, sliding ones for the
    last `window` tokens only. latent: `key_dim` numbers a token, for all heads together (MLA), or `expanded_elements`
    where an engine keeps the keys and values of every head after all. state: `state_elements` numbers a sequence,
    however long.
    """

    kind: Kind
    num_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    window: int = 0
    state_elements: int = 0
    expanded_elements: int = 0

    def elements_per_token(self, tensor_parallel_size: int = 1) -> int:
        """Return how many numbers a token takes on each device; heads are split until each device has one."""
        if self.kind == "state":
            return 0
        if self.kind == "latent":
            return self.key_dim
        return max(1, -(-self.num_heads // tensor_parallel_size)) * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The shape of a model. `is_known` is False where something was assumed; `notes` says what."""

    name: str
    model_type: str
    layers: tuple[LayerCache, ...]
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    vocab_size: int
    max_model_len: int
    dtype: str
    is_tied: bool
    quantization: str | None
    num_experts: int
    experts_per_token: int
    is_known: bool
    notes: tuple[str, ...]
    text_config: Mapping[str, Any]

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    @property
    def num_kv_heads(self) -> int:
        """The most heads of keys and values that a layer has."""
        return max((layer.num_heads for layer in self.layers), default=0)

    def spreads_over(self, size: int) -> bool:
        """Tell whether `size` devices can share the layers: by whole heads, those of keys and values split or copied.

        vLLM refuses other sizes (models/qwen2.py, llama.py: total_num_kv_heads), SGLang just so.
        """
        kv_heads = max(1, self.num_kv_heads)
        return not self.num_attention_heads % size and (not kv_heads % size or not size % kv_heads)


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Return what a config.json says. Raises LoadError where it is not the config of a language model."""
    text, notes = _text_config(config), list[str]()
    model_type = str(text.get("model_type") or config.get("model_type") or "")
    names = (
        config.get("architectures") or text.get("architectures") or [model_type or "an unknown architecture"]
    )
    hidden = _number(text, "hidden_size", "n_embd", "d_model", least=1)
    num_layers = _number(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers", least=1)
    heads = _number(text, "num_attention_heads", "n_head", "num_heads", "n_heads", default=1, least=1)
    layers = _layers(text, model_type, num_layers, heads, hidden, notes)
    return Architecture(
        name=str(names[0]),
        model_type=model_type,
        layers=layers,
        hidden_size=hidden,
        intermediate_size=_number(
            text, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", default=4 * hidden
        ),
        num_attention_heads=heads,
        vocab_size=_number(text, "vocab_size", default=_number(config, "vocab_size", default=32_000)),
        max_model_len=_max_model_len(text, model_type, notes),
        dtype=str(
            text.get("dtype")
            or text.get("torch_dtype")
            or config.get("dtype")
            or config.get("torch_dtype")
            or ""
        ).removeprefix("torch.")
        or "bfloat16",
        is_tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", _ties(model_type)))),
        quantization=_quantization(config, text),
        num_experts=_number(text, "n_routed_experts", "num_local_experts", "num_experts", default=0),
        experts_per_token=_number(text, "num_experts_per_tok", "num_experts_per_token", default=1),
        is_known=not notes,
        notes=tuple(notes),
        text_config=text,
    )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a multimodal model's config that is about text."""
    for key in ("text_config", "llm_config", "language_config", "thinker_config", "decoder"):
        inner = config.get(key)
        if isinstance(inner, dict) and inner:
            return _text_config(inner)
    return config


def _number(config: Mapping[str, Any], *names: str, default: int | None = None, least: int = 0) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
            value = max(value)
        if isinstance(value, str) or (
            isinstance(value, int | float) and not isinstance(value, bool) and not least <= value <= _MOST
        ):
            raise LoadError(
                f"the checkpoint's config.json says {name}: {value!r:.40}, which cannot be",
                cure="see whether the file is damaged: compare it with the one that was published",
            )
        if isinstance(value, int | float) and not isinstance(value, bool):
            return int(value)
    if default is None:
        raise LoadError(
            f"the checkpoint's config.json has no '{names[0]}', so its memory cannot be told",
            cure="use the checkpoint of a language model in transformers' format",
        )
    return default


def _layers(
    text: Mapping[str, Any], model_type: str, num_layers: int, heads: int, hidden: int, notes: list[str]
) -> tuple[LayerCache, ...]:
    """Return what each layer keeps, by the layer types that the config names or implies."""
    full = _attention(text, heads, hidden, notes)
    window = _window(text)
    kinds = _kinds(text, model_type, num_layers, window)
    return tuple(_layer(kind, full, window, text, notes) for kind in kinds)


def _attention(text: Mapping[str, Any], heads: int, hidden: int, notes: list[str]) -> LayerCache:
    """Return what a layer with full attention keeps."""
    rank, rope = text.get("kv_lora_rank"), text.get("qk_rope_head_dim")
    if rank and rope:
        nope, value = int(text.get("qk_nope_head_dim") or 128), int(text.get("v_head_dim") or 128)
        expanded = heads * (nope + int(rope) + value)
        return LayerCache("latent", 1, int(rank) + int(rope), expanded_elements=expanded)
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        kv_heads = 1  # Falcon and GPT-BigCode
    else:
        kv_heads = _number(text, "num_key_value_heads", "num_kv_heads", "n_head_kv", default=heads)
    head_dim = text.get("head_dim") or text.get("attention_head_dim") or text.get("kv_channels")
    if not head_dim:
        head_dim = hidden // heads
    if not ({"num_attention_heads", "n_head", "num_heads", "n_heads"} & set(text)):
        notes.append(
            "config.json names no attention heads: the KV cache is counted as wide as the hidden size"
        )
    return LayerCache("full", kv_heads, int(head_dim), int(text.get("v_head_dim") or head_dim))


def _window(text: Mapping[str, Any]) -> int:
    if text.get("use_sliding_window") is False:  # the window that Qwen2 names and does not use
        return 0
    value = text.get("sliding_window") or text.get("attention_chunk_size") or text.get("window_size") or 0
    return max((int(each) for each in value if each), default=0) if isinstance(value, list) else int(value)


def _kinds(text: Mapping[str, Any], model_type: str, num_layers: int, window: int) -> list[str]:
    """Return the name of each layer's type: as listed, as a pattern of mixers implies, or of windows."""
    named = text.get("layer_types") or text.get("layers_block_type") or text.get("layer_block_types")
    if isinstance(named, list) and len(named) >= num_layers:
        return [str(kind) for kind in named[:num_layers]]
    return _mixers(text, model_type, num_layers) or _windows(text, model_type, num_layers, window)


def _mixers(text: Mapping[str, Any], model_type: str, num_layers: int) -> list[str]:
    """Return the types of a model that mixes attention with layers that keep a state; nothing for another."""
    if "hybrid_override_pattern" in text:  # Nemotron-H: M is Mamba, * is attention, - is a feed-forward layer
        names = {"*": "full", "M": "mamba"}
        return [names.get(mark, "none") for mark in text["hybrid_override_pattern"]]
    if every := int(text.get("full_attention_interval") or 0):  # Qwen3-Next
        return ["full" if (i + 1) % every == 0 else "linear_attention" for i in range(num_layers)]
    if every := int(text.get("attn_layer_period") or 0):  # Jamba
        offset = int(text.get("attn_layer_offset") or 0)
        return ["full" if i % every == offset else "mamba" for i in range(num_layers)]
    return ["mamba"] * num_layers if model_type in {"mamba", "mamba2", "falcon_mamba"} else []


def _windows(text: Mapping[str, Any], model_type: str, num_layers: int, window: int) -> list[str]:
    """Return which layers have a window: none, all, or some of them in turn."""
    pattern = text.get("sliding_window_pattern") or _DEFAULT_PATTERNS.get(model_type)
    if window and isinstance(pattern, int) and pattern > 1:
        return ["full" if (i + 1) % pattern == 0 else "sliding" for i in range(num_layers)]
    first = text.get("max_window_layers")
    if window and isinstance(first, int) and text.get("use_sliding_window"):  # Qwen2 with its window on
        return ["full" if i < first else "sliding" for i in range(num_layers)]
    return ["sliding" if window else "full"] * num_layers


def _layer(kind: str, full: LayerCache, window: int, text: Mapping[str, Any], notes: list[str]) -> LayerCache:
    if kind in _SLIDING and window:
        return LayerCache("sliding", full.num_heads, full.key_dim, full.value_dim, window)
    if kind in _FULL or kind in _SLIDING:
        return full
    if kind in {"none", "mlp", "moe"}:
        return LayerCache("state")
    if "linear_num_value_heads" in text:
        return LayerCache("state", state_elements=_delta_net_state(text))
    if elements := _mamba_state(text):
        return LayerCache("state", state_elements=elements)
    _note(notes, f"layers of type '{kind}' are not known here: counted as full attention")
    return full


def _delta_net_state(text: Mapping[str, Any]) -> int:
    """Gated DeltaNet: a matrix a head in float32, and the last inputs of a convolution (vLLM: mamba_utils.py)."""
    key_heads, key_dim = int(text["linear_num_key_heads"]), int(text["linear_key_head_dim"])
    value_heads, value_dim = int(text["linear_num_value_heads"]), int(text["linear_value_head_dim"])
    kernel = int(text.get("linear_conv_kernel_dim") or 4)
    convolution = (2 * key_heads * key_dim + value_heads * value_dim) * (kernel - 1)
    return convolution + value_heads * key_dim * value_dim * _F32_BYTES // 2


def _mamba_state(text: Mapping[str, Any]) -> int:
    """Mamba 1 and 2: the state of each channel, and the last inputs of a convolution (vLLM: mamba_utils.py)."""
    size = int(text.get("mamba_d_state") or text.get("ssm_state_size") or text.get("state_size") or 0)
    kernel = int(text.get("mamba_d_conv") or text.get("conv_kernel") or 4)
    hidden = _number(text, "hidden_size", "d_model", default=0)
    heads = int(text.get("mamba_n_heads") or text.get("mamba_num_heads") or 0)
    head_dim = int(text.get("mamba_d_head") or text.get("mamba_head_dim") or 0)
    expand = int(text.get("mamba_expand") or text.get("expand") or 2)
    inner = heads * head_dim if heads and head_dim else int(text.get("intermediate_size") or expand * hidden)
    groups = int(text.get("mamba_n_groups") or text.get("n_groups") or 0)
    return (inner + 2 * groups * size) * (kernel - 1) + inner * size if size else 0


def _max_model_len(text: Mapping[str, Any], model_type: str, notes: list[str]) -> int:
    length = _number(text, *_MAX_LEN_KEYS, default=0)
    if not length:
        _note(notes, "config.json names no longest sequence: 2,048 tokens are assumed, as vLLM does")
        return 2048
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = (
        str(rope.get("rope_type") or rope.get("type") or "default") if isinstance(rope, dict) else "default"
    )
    if model_type.startswith("gemma3"):  # its length has the factor in it (vLLM: the same function)
        return length
    if kind in _ROPE_WITHOUT_FACTOR or not isinstance(factor := rope.get("factor"), int | float):
        return length
    if kind == "yarn":
        return max(length, int(rope.get("original_max_position_embeddings", length) * factor))
    return int(length * factor)


def _ties(model_type: str) -> bool:
    return model_type.startswith(_TIED_BY_DEFAULT)


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> str | None:
    """Return the method of quantization_config: awq, gptq, fp8, mxfp4, bitsandbytes, compressed-tensors."""
    settings = (
        config.get("quantization_config")
        or text.get("quantization_config")
        or config.get("compression_config")
    )
    if not isinstance(settings, dict):
        return None
    return str(settings.get("quant_method") or settings.get("quant_algo") or "unknown").lower()


def _note(notes: list[str], text: str) -> None:
    if text not in notes:
        notes.append(text)
