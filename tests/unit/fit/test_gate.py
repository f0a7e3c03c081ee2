"""The check before a start: certain faults are errors, likely ones warnings, and what cannot be told is neither."""

import json

import pytest

from modelkit.config import BENCH_RECORD, load_config
from modelkit.fit import (
    Device,
    check_fit,
    config_hash,
    device_by_name,
    device_of_size,
    read_architecture,
)
from modelkit.fit.weights import expected_tensors
from unit.fit import checkpoints as ck


@pytest.fixture
def folder(tmp_path):
    """A model folder for vLLM whose checkpoint is a whole Qwen2-7B, without its data."""

    def make(engine="vllm", options="", config=ck.QWEN2_7B, weights=True):
        (tmp_path / "config.yaml").write_text(
            f"model: {{id: big}}\nengine: {{name: {engine}{options}}}\ncompute: {{num_accelerators: 1}}\n"
            "checkpoints: {type: local, path: checkpoint}\n"
        )
        ck.write_config(tmp_path / "checkpoint", config)
        if weights:
            tensors = {t.name: (t.dtype, t.shape) for t in expected_tensors(read_architecture(config))}
            ck.write_safetensors(tmp_path / "checkpoint" / "model.safetensors", tensors)
        return tmp_path

    return make


def check(folder, device):
    return check_fit(load_config(folder), folder, device)


def test_what_fits_is_no_finding(folder):
    assert check(folder(), device_by_name("H200")) is None
    assert check(folder(options=", max_model_len: 4096"), device_by_name("L4")) is None


def test_weights_that_exceed_the_memory_are_an_error(folder):
    finding = check(folder(), device_of_size(12 * 2**30))
    assert finding.severity == "error"
    assert finding.message == (
        "the weights alone, 14.19 GiB on each device, are more than the 12.00 GiB of a GPU with 12 GiB"
    )
    assert "4-bit" in finding.cure
    assert finding.keys[0][0] == "compute"


def test_a_sequence_that_vllm_would_refuse_is_an_error(folder):
    longest = {**ck.QWEN2_7B, "max_position_embeddings": 1_000_000}
    finding = check(folder(config=longest), device_by_name("L4"))
    assert finding.severity == "error"
    assert "one sequence of 1,000,000 tokens takes 53.41 GiB of KV cache" in finding.message
    assert "--set engine.max_model_len=" in finding.cure
    # SGLang starts all the same, and refuses what is too long
    assert check(folder("sglang", config=longest), device_by_name("L4")).severity == "warning"


def test_what_only_the_estimate_says_is_a_warning(folder):
    # 32,768 tokens take 1.75 GiB; 16.3 GiB have room for that and the weights, but not for the overheads as well
    finding = check(folder(), device_of_size(int(17.5 * 2**30)))
    assert finding.severity == "warning"
    assert "vllm has 0." in finding.message or "vllm has 1." in finding.message


def test_what_bench_saw_and_finds_no_room_is_a_warning(folder):
    path = folder(options=", max_model_len: 4096")
    gpu = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 81559 * 2**20}
    subject = {
        "name": "big",
        "engine": "vllm",
        "engine_version": None,
        "tensor_parallel_size": 1,
        "engine_args": {"max_model_len": 4096},
        "config_hash": config_hash(ck.QWEN2_7B),
    }
    level = {"subject": "big", "load": "c=100", "gpu_memory_bytes_max": 77 * 2**30}
    record = path / BENCH_RECORD
    record.parent.mkdir(parents=True)
    content = {"run_id": "r1", "gpus": [gpu], "subjects": [subject], "levels": [level]}
    record.write_text(json.dumps(content))
    finding = check(path, device_by_name("A10G"))
    assert finding.severity == "warning"
    assert "more in use than it reserves when bench measured it" in finding.message
    assert "--set engine.gpu_memory_utilization=" in finding.cure
    assert finding.keys[0] == ("engine", "gpu_memory_utilization")
    assert check(path, device_by_name("H100")) is None


def test_weights_that_are_not_all_there_are_told_from_the_config_and_only_warned_of(folder):
    finding = check(folder(weights=False), device_of_size(12 * 2**30))
    assert finding.severity == "warning"


def test_a_damaged_file_is_not_this_checks_to_report(folder):
    path = folder()
    (path / "checkpoint" / "model.safetensors").write_bytes(b"nonsense")
    assert check(path, device_by_name("H200")) is None
    (path / "checkpoint" / "config.json").write_text("{")
    assert check(path, device_of_size(2**30)) is None


def test_what_is_not_here_or_loads_nothing_is_not_checked(folder, tmp_path):
    path = folder()
    (path / "checkpoint" / "config.json").unlink()
    assert check(path, device_of_size(2**30)) is None
    (tmp_path / "config.yaml").write_text("model: {id: remote}\nengine: {name: openai}\n")
    assert check(tmp_path, device_of_size(2**30)) is None
    (tmp_path / "config.yaml").write_text("model: {id: plain}\n")
    assert check(tmp_path, device_of_size(2**30)) is None


def test_main_memory_counts_for_engines_that_run_there(folder):
    small = Device("main memory", 2**30, 2**30, "cpu")
    assert check(folder("transformers"), small).severity == "error"
    assert check(folder("sglang"), small) is None
