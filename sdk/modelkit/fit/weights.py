"""How many bytes a checkpoint's weights take on each device: which tensors are loaded, split, converted.

The rules are those of the engines' loaders: matrices of a layer are split among the devices of a tensor-parallel group,
norms and routers are copied to each; weights become the engine's dtype, quantized ones stay as they are in the file.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from modelkit.fit.architecture import Architecture
from modelkit.fit.headers import Tensor

__all__ = ["DTYPE_BYTES", "Weights", "expected_tensors", "weights_per_device"]

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Copied to every device: routers, the down-projections of latent attention, and whatever has one dimension.
_COPIED = re.compile(
    r"(mlp|feed_forward|block_sparse_moe|mixer)\.(gate|router)\.|q_a_proj|kv_a_proj|shared_expert_gate|lora_|"
    r"conv1d|norm"
)
_HEADS = re.compile(r"\.(k|v|key|value)_proj\.")
_SCALE = re.compile(r"(scale|scales|zeros|qzeros|g_idx|absmax|scale_inv)$")
# Computed by the engine, or for speculative decoding only.
_UNUSED = re.compile(r"rotary_emb\.inv_freq$|masked_bias$|attn\.bias$|^mtp\.|\.mtp\.|eagle")
_LAYER = re.compile(r"^(?:model\.|language_model\.|transformer\.|text_model\.)*(?:layers|h|blocks)\.(\d+)\.")
_EMBEDDING = re.compile(r"(embed_tokens|wte|word_embeddings|tok_embeddings|lm_head|embed_out)")
# Linear layers, which an engine can quantize as it loads them.
_LINEAR = re.compile(r"_proj|\.(w1|w2|w3|c_fc|c_attn|c_proj|fc1|fc2|dense)\.|experts")

# Bytes a weight in a quantized file, with its scales.
_QUANTIZED_BYTES = {
    "awq": 0.53,
    "gptq": 0.53,
    "mxfp4": 0.5 + 1 / 32,
    "bitsandbytes": 0.5 + 4 / 64,
    "fp8": 1.0,
}

# Bytes a weight when an engine quantizes a plain checkpoint itself. bitsandbytes keeps a float32 maximum for each block
# of 64 four-bit weights (https://huggingface.co/docs/bitsandbytes/reference/nn/linear4bit).
_ONLINE_BYTES = {
    "fp8": 1.0,
    "int8": 1.0,
    "bitsandbytes": 0.5 + 4 / 64,
    "w8a8_fp8": 1.0,
    "w8a8_int8": 1.0,
    "mxfp8": 1.03,
}


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights on each device, in bytes; `is_estimate` where they were told from the architecture alone."""

    bytes_per_device: int
    num_parameters: int
    file_bytes: int
    is_estimate: bool = False


def weights_per_device(
    tensors: Sequence[Tensor],
    architecture: Architecture,
    *,
    dtype: str,
    tensor_parallel_size: int = 1,
    quantization: str | None = None,
) -> Weights:
    """Return what the tensors take on each device. `quantization` is what the engine does to a plain checkpoint."""
    loaded = list(_loaded(tensors, architecture))
    online = None if architecture.quantization else _ONLINE_BYTES.get(quantization or "")
    total = sum(
        _bytes(tensor, dtype, online) / _num_parts(tensor, architecture, tensor_parallel_size)
        for tensor in loaded
    )
    return Weights(
        bytes_per_device=int(total),
        num_parameters=sum(tensor.num_elements for tensor in loaded if not _SCALE.search(tensor.name)),
        file_bytes=sum(tensor.size_bytes for tensor in tensors),
    )


def _loaded(tensors: Iterable[Tensor], architecture: Architecture) -> Iterator[Tensor]:
    """Leave out what an engine skips: buffers it computes, layers beyond the last one, an output that is tied."""
    for tensor in tensors:
        if _UNUSED.search(tensor.name):
            continue
        layer = _LAYER.match(tensor.name)
        if layer and int(layer[1]) >= architecture.num_layers > 0:
            continue
        if architecture.is_tied and tensor.name.endswith("lm_head.weight"):
            continue
        yield tensor


def _bytes(tensor: Tensor, dtype: str, online: float | None) -> float:
    if not tensor.is_float or _SCALE.search(tensor.name):
        return tensor.size_bytes
    if online is not None and len(tensor.shape) > 1 and _LINEAR.search(tensor.name):
        return tensor.num_elements * online
    return tensor.num_elements * DTYPE_BYTES[dtype]


def _num_parts(tensor: Tensor, architecture: Architecture, tensor_parallel_size: int) -> int:
    """Return among how many devices a tensor is split; 1 where each has all of it."""
    if tensor_parallel_size == 1 or len(tensor.shape) < 2 or _COPIED.search(tensor.name):  # noqa: PLR2004 - a matrix
        return 1
    if _HEADS.search(tensor.name) and architecture.num_kv_heads:
        return min(tensor_parallel_size, architecture.num_kv_heads)
    return tensor_parallel_size


def expected_tensors(architecture: Architecture) -> tuple[Tensor, ...]:
    """Return the tensors that a config.json implies, for a checkpoint whose files are not there yet.

    Written for models in the shape of Llama, with experts and latent attention; others come out near.
    """
    hidden = architecture.hidden_size
    tensors = [_plain("model.embed_tokens.weight", architecture, architecture.vocab_size, hidden)]
    if not architecture.is_tied:
        tensors.append(_plain("lm_head.weight", architecture, architecture.vocab_size, hidden))
    tensors.append(_plain("model.norm.weight", architecture, hidden))
    num_norms = 4 if architecture.model_type.startswith(("gemma2", "gemma3")) else 2
    for index in range(architecture.num_layers):
        prefix = f"model.layers.{index}"
        shapes = {**_attention_shapes(architecture, index), **_mlp_shapes(architecture, index)}
        shapes |= {f"norm_{number}.weight": (hidden,) for number in range(num_norms)}
        tensors += [_plain(f"{prefix}.{name}", architecture, *shape) for name, shape in shapes.items()]
    return tuple(tensors)


def _attention_shapes(architecture: Architecture, index: int) -> dict[str, tuple[int, ...]]:
    text, hidden, heads = architecture.text_config, architecture.hidden_size, architecture.num_attention_heads
    layer = architecture.layers[index]
    if layer.kind == "latent":
        return _latent_shapes(architecture)
    if layer.kind == "state":
        inner = int(text.get("mamba_expand") or text.get("expand") or 2) * hidden
        return {"mixer.in_proj.weight": (2 * inner, hidden), "mixer.out_proj.weight": (hidden, inner)}
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (heads * layer.key_dim, hidden),
        "self_attn.k_proj.weight": (layer.num_heads * layer.key_dim, hidden),
        "self_attn.v_proj.weight": (layer.num_heads * layer.value_dim, hidden),
        "self_attn.o_proj.weight": (hidden, heads * layer.value_dim),
    }
    if text.get("attention_bias") or architecture.model_type.startswith("qwen2"):
        shapes |= {
            name.replace("weight", "bias"): shape[:1]
            for name, shape in shapes.items()
            if "o_proj" not in name
        }
    return shapes


def _latent_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    text, hidden, heads = architecture.text_config, architecture.hidden_size, architecture.num_attention_heads
    rank, rope = int(text["kv_lora_rank"]), int(text["qk_rope_head_dim"])
    nope, value = int(text.get("qk_nope_head_dim") or 128), int(text.get("v_head_dim") or 128)
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.kv_a_proj_with_mqa.weight": (rank + rope, hidden),
        "self_attn.kv_a_layernorm.weight": (rank,),
        "self_attn.kv_b_proj.weight": (heads * (nope + value), rank),
        "self_attn.o_proj.weight": (hidden, heads * value),
    }
    if query_rank := text.get("q_lora_rank"):
        return shapes | {
            "self_attn.q_a_proj.weight": (int(query_rank), hidden),
            "self_attn.q_a_layernorm.weight": (int(query_rank),),
            "self_attn.q_b_proj.weight": (heads * (nope + rope), int(query_rank)),
        }
    return shapes | {"self_attn.q_proj.weight": (heads * (nope + rope), hidden)}


def _mlp_shapes(architecture: Architecture, index: int) -> dict[str, tuple[int, ...]]:
    text, hidden = architecture.text_config, architecture.hidden_size
    is_dense = architecture.num_experts < 2 or index < int(text.get("first_k_dense_replace") or 0)  # noqa: PLR2004
    if is_dense:
        return _gated("mlp", hidden, architecture.intermediate_size)
    width = int(text.get("moe_intermediate_size") or architecture.intermediate_size)
    shapes: dict[str, tuple[int, ...]] = {
        "mlp.gate.weight": (architecture.num_experts, hidden),
        "mlp.experts.gate_proj.weight": (architecture.num_experts, width, hidden),
        "mlp.experts.up_proj.weight": (architecture.num_experts, width, hidden),
        "mlp.experts.down_proj.weight": (architecture.num_experts, hidden, width),
    }
    shared = (
        int(text.get("shared_expert_intermediate_size") or 0)
        or int(text.get("n_shared_experts") or 0) * width
    )
    return shapes | (_gated("mlp.shared_experts", hidden, shared) if shared else {})


def _gated(prefix: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj.weight": (width, hidden),
        f"{prefix}.up_proj.weight": (width, hidden),
        f"{prefix}.down_proj.weight": (hidden, width),
    }


def _plain(name: str, architecture: Architecture, *shape: int) -> Tensor:
    """Return a tensor as the checkpoint would have it: quantized where its method quantizes it."""
    num, method = prod(shape), architecture.quantization
    is_quantized = len(shape) > 1 and not _EMBEDDING.search(name) and (method != "mxfp4" or "experts" in name)
    if method and is_quantized:
        return Tensor(name, "U8", shape, int(num * _QUANTIZED_BYTES.get(method, 1.0)))
    size = DTYPE_BYTES.get(architecture.dtype, 2)
    return Tensor(name, "F32" if size == DTYPE_BYTES["float32"] else "BF16", shape, num * size)
