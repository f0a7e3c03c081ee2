"""What engines reported on GPUs beside what is predicted now: weights and KV cache within 2%."""

import json
from dataclasses import replace

import pytest
from random_checkpoint import write_config

from modelkit.config import EngineConfig
from modelkit.fit import LocalReader, device_by_name, estimate, read_model, settings_of
from paths import ROOT

_RESULTS = ROOT / "benchmarks/results/2026-11-27-fit-accuracy.json"
_MIB, _GIB = 2**20, 2**30
_ENGINES = {
    "vllm": {"name": "vllm"},
    "sglang": {"name": "sglang"},
    "turbomind": {"name": "lmdeploy", "args": {"backend": "turbomind"}},
    "pytorch": {"name": "lmdeploy", "args": {"backend": "pytorch"}},
}
_MEASURED = [
    pytest.param(record, id=f"{record['engine']}-{record['architecture']}-{record['predicted']['device']}")
    for run in json.loads(_RESULTS.read_text(encoding="utf-8"))["runs"]
    for record in run["records"]
    if record["ended"] == "read"
]


@pytest.mark.parametrize("record", _MEASURED)
def test_predictions_are_near_what_engines_report(record, tmp_path):
    write_config(tmp_path, record["architecture"])
    settings = settings_of(EngineConfig(max_model_len=8192, **_ENGINES[record["engine"]]))
    device = device_by_name(record["predicted"]["device"])
    if settings.engine in {"turbomind", "pytorch"}:  # a share of what is free: what others held is missing
        device = replace(device, usable_bytes=device.usable_bytes - record["gpu_used_before_mib"] * _MIB)
    found, reported = estimate(read_model(LocalReader(tmp_path)), settings, device), record["reported"]
    if reported["weights_gib"]:
        assert found.weights.bytes_per_device / _GIB == pytest.approx(reported["weights_gib"], rel=0.02)
    if reported["kv_tokens"]:
        assert found.kv_capacity_tokens == pytest.approx(reported["kv_tokens"], rel=0.02)
    else:
        assert found.kv_room_bytes / _GIB == pytest.approx(reported["kv_gib"], rel=0.02)


def test_every_engine_was_measured_with_at_least_three_architectures():
    for engine in _ENGINES:
        names = {
            param.values[0]["architecture"] for param in _MEASURED if param.values[0]["engine"] == engine
        }
        assert len(names) >= 3, engine
