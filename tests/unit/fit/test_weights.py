"""Weights on each device, against the sizes that are published and by the rules of the engines' loaders."""

import pytest

from modelkit.fit import LocalReader, Tensor, read_architecture, read_model
from modelkit.fit.weights import expected_tensors, weights_per_device
from unit.fit import checkpoints as ck

GIB = 2**30


def weigh(config, tensors=None, **options):
    architecture = read_architecture(config)
    return weights_per_device(
        tensors or expected_tensors(architecture), architecture, **{"dtype": "bfloat16", **options}
    )


@pytest.mark.parametrize(
    ("config", "num_parameters"),
    [
        (ck.QWEN2_7B, 7_615_616_512),  # the model cards' total, as the Hub shows it
        (ck.LLAMA_31_8B, 8_030_261_248),
        (ck.MISTRAL_7B_01, 7_241_732_096),
        (ck.GEMMA_2_2B, 2_614_341_888),
        (ck.DEEPSEEK_V2, 235_741_434_880),
    ],
)
def test_parameters_told_from_the_config(config, num_parameters):
    assert weigh(config).num_parameters == num_parameters


def test_gpt_oss_20b_takes_what_its_card_says():
    # 13.76 GB of files, of which the experts are in four bits
    assert weigh(ck.GPT_OSS_20B).bytes_per_device == pytest.approx(13.76e9, rel=0.01)


def test_qwen2_7b_takes_what_its_card_says():
    assert round(weigh(ck.QWEN2_7B).bytes_per_device / GIB, 2) == 14.19


@pytest.mark.parametrize(
    ("stored", "dtype", "factor"),
    [("F32", "bfloat16", 0.5), ("BF16", "float32", 2), ("F16", "bfloat16", 1), ("F64", "float16", 0.25)],
)
def test_weights_become_the_engines_dtype(stored, dtype, factor):
    size = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}[stored] * 1000 * 1000
    tensors = [Tensor("model.layers.0.mlp.up_proj.weight", stored, (1000, 1000), size)]
    assert weigh(ck.QWEN2_7B, tensors, dtype=dtype).bytes_per_device == size * factor


def test_quantized_weights_stay_as_they_are_in_the_file():
    config = {**ck.QWEN2_7B, "quantization_config": {"quant_method": "awq", "bits": 4}}
    tensors = [
        Tensor("model.layers.0.mlp.up_proj.qweight", "I32", (3584, 2368), 3584 * 2368 * 4),
        Tensor("model.layers.0.mlp.up_proj.scales", "F16", (28, 18944), 28 * 18944 * 2),
        Tensor("model.layers.0.mlp.up_proj.weight_scale_inv", "F32", (28, 148), 28 * 148 * 4),
        Tensor("model.embed_tokens.weight", "F32", (100, 100), 40_000),
    ]
    size = sum(tensor.size_bytes for tensor in tensors[:3]) + 20_000
    assert weigh(config, tensors).bytes_per_device == size
    # an engine that is told the method once more does not quantize twice
    assert weigh(config, tensors, quantization="fp8").bytes_per_device == size


@pytest.mark.parametrize(("method", "least", "most"), [("fp8", 7.6, 8.2), ("bitsandbytes", 5.0, 5.6)])
def test_a_plain_checkpoint_can_be_quantized_by_the_engine(method, least, most):
    # Qwen2-7B has 1.09 B parameters in embeddings, which stay in 16 bits: 2.03 GiB
    assert least < weigh(ck.QWEN2_7B, quantization=method).bytes_per_device / GIB < most


def test_what_is_split_among_devices_and_what_is_copied():
    tensors = [
        Tensor("model.layers.0.self_attn.q_proj.weight", "BF16", (3584, 3584), 3584 * 3584 * 2),
        Tensor("model.layers.0.self_attn.k_proj.weight", "BF16", (512, 3584), 512 * 3584 * 2),
        Tensor("model.layers.0.input_layernorm.weight", "BF16", (3584,), 3584 * 2),
        Tensor("model.layers.0.mlp.gate.weight", "BF16", (60, 3584), 60 * 3584 * 2),
        Tensor("model.embed_tokens.weight", "BF16", (152064, 3584), 152064 * 3584 * 2),
    ]
    q, k, norm, router, embeddings = (tensor.size_bytes for tensor in tensors)
    assert weigh(ck.QWEN2_7B, tensors, tensor_parallel_size=2).bytes_per_device == (
        q / 2 + k / 2 + norm + router + embeddings / 2
    )
    # four heads of keys on eight devices: each has one
    assert weigh(ck.QWEN2_7B, tensors, tensor_parallel_size=8).bytes_per_device == (
        q / 8 + k / 4 + norm + router + embeddings / 8
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_output_is_counted_once(tied):
    config = {**ck.QWEN2_7B, "tie_word_embeddings": tied}
    both = [
        Tensor("model.embed_tokens.weight", "BF16", (10, 10), 200),
        Tensor("lm_head.weight", "BF16", (10, 10), 200),
    ]
    assert weigh(config, both).bytes_per_device == (200 if tied else 400)
    assert weigh(config, both[:1]).bytes_per_device == 200


def test_what_an_engine_does_not_load_does_not_count():
    tensors = [
        Tensor("model.layers.27.mlp.up_proj.weight", "BF16", (10, 10), 200),
        Tensor("model.layers.28.mlp.up_proj.weight", "BF16", (10, 10), 200),  # multi-token prediction
        Tensor("mtp.fc.weight", "BF16", (10, 10), 200),
        Tensor("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", (64,), 256),
    ]
    assert weigh(ck.QWEN2_7B, tensors).bytes_per_device == 200


def test_files_and_config_agree(tmp_path):
    architecture = read_architecture(ck.QWEN2_7B)
    ck.write_config(tmp_path, ck.QWEN2_7B)
    tensors = {tensor.name: (tensor.dtype, tensor.shape) for tensor in expected_tensors(architecture)}
    ck.write_safetensors(tmp_path / "model.safetensors", tensors)
    read = read_model(LocalReader(tmp_path)).weights("bfloat16", None, 4)
    (tmp_path / "model.safetensors").unlink()
    told = read_model(LocalReader(tmp_path)).weights("bfloat16", None, 4)
    assert (read.is_estimate, told.is_estimate) == (False, True)
    assert read.bytes_per_device == told.bytes_per_device
