"""What a folder's last benchmark teaches the sum, by records as `modelkit bench` writes them."""

import json
from dataclasses import replace

import pytest

from modelkit.config import BENCH_RECORD
from modelkit.fit import (
    LocalReader,
    Settings,
    config_hash,
    device_by_name,
    estimate,
    learn,
    read_measured,
    read_model,
    rows,
    suggestions,
)
from unit.fit import checkpoints as ck

GIB = 2**30
H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 81559 * 2**20, "driver": "580.159.04"}


@pytest.fixture
def qwen2(tmp_path):
    return read_model(LocalReader(ck.write_config(tmp_path / "checkpoint", ck.QWEN2_7B)))


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a record, and returns its folder."""

    def put(peak_bytes, *, gpus=1, engine="vllm", args=None, size=1, used_before=None, **other):
        subject = {
            "name": "chat",
            "engine": engine,
            "engine_version": "0.26.0",
            "engine_args": args or {"max_model_len": 4160, "start_timeout_s": 480.0},
            "tensor_parallel_size": size,
            "config_hash": config_hash(ck.QWEN2_7B),
            "gpu_used_before_bytes": used_before,
        }
        levels = [
            {"subject": "chat", "load": "c=1", "gpu_memory_bytes_max": peak_bytes - GIB},
            {"subject": "chat", "load": "c=100", "gpu_memory_bytes_max": peak_bytes},
        ]
        record = {"run_id": "r1", "gpus": [H100] * gpus, "subjects": [subject], "levels": levels} | other
        path = tmp_path / BENCH_RECORD
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record))
        return tmp_path

    return put


def test_what_was_seen_beyond_the_sum_counts_on_every_card(qwen2, write):
    settings, device = Settings(engine="vllm", max_model_len=4160), device_by_name("H100")
    expected = estimate(qwen2, settings, device).reserved_bytes
    folder = write(expected + 2 * GIB)
    (seen,) = read_measured(qwen2, folder)
    assert (seen.engine, seen.device, seen.load) == ("vllm 0.26.0", "NVIDIA-H100", "c=100")
    assert (seen.peak_bytes, seen.expected_bytes) == (expected + 2 * GIB, expected)
    learned = learn(qwen2, folder)
    other = device_by_name("H200")
    before, after = (estimate(model, Settings(engine="vllm"), other) for model in (qwen2, learned))
    assert (after.beyond_bytes, before.beyond_bytes) == (2 * GIB, 0)
    assert after.used_bytes == before.used_bytes + 2 * GIB
    assert sum(size for _, size in rows(after)) == sum(size for _, size in rows(before)) == other.usable_bytes
    other_engine = Settings(engine="sglang")
    assert estimate(learned, other_engine, device) == estimate(qwen2, other_engine, device)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "turbomind", "pytorch"])
def test_the_cache_is_laid_out_before_and_gets_no_smaller(qwen2, engine):
    device, settings = device_by_name("H100"), Settings(engine=engine)
    learned = replace(qwen2, beyond={engine: 2 * GIB})
    before, after = estimate(qwen2, settings, device), estimate(learned, settings, device)
    assert (after.kv_room_bytes, after.kv_capacity_tokens) == (
        before.kv_room_bytes,
        before.kv_capacity_tokens,
    )
    assert after.fits


def test_what_finds_no_room_beside_the_engines_share_does_not_fit(qwen2):
    device, settings = device_by_name("A10G"), Settings(engine="vllm", max_model_len=4096)
    model = replace(qwen2, beyond={"vllm": 2 * GIB})
    assert estimate(qwen2, settings, device).fits
    found = estimate(model, settings, device)
    left_alone = device.usable_bytes - found.reserved_bytes
    assert found.spilling_bytes == found.missing_bytes == 2 * GIB - left_alone > 0
    assert not found.fits
    assert rows(found)[-1] == ("more than there is", -found.spilling_bytes)
    share = next(
        change for change in suggestions(model, settings, device) if "leave the engine" in change.text
    )
    assert share.estimate.fits
    assert share.options == (f"engine.gpu_memory_utilization={share.estimate.settings.utilization}",)


def test_another_models_record_teaches_nothing(qwen2, write, tmp_path):
    folder = write(78 * GIB)
    other = read_model(LocalReader(ck.write_config(tmp_path / "other", ck.LLAMA_31_8B)))
    assert learn(other, folder) is other
    assert read_measured(qwen2, folder)


def test_what_others_held_before_is_not_the_engines(qwen2, write):
    (seen,) = read_measured(qwen2, write(80 * GIB, used_before=5 * GIB))
    assert seen.peak_bytes == 75 * GIB


def test_of_two_runs_of_an_engine_the_higher_counts(qwen2, write):
    folder = write(78 * GIB)
    path = folder / BENCH_RECORD
    record = json.loads(path.read_bytes())
    record["subjects"].append(record["subjects"][0] | {"name": "chat http"})
    record["levels"].append({"subject": "chat http", "load": "c=1", "gpu_memory_bytes_max": 70 * GIB})
    path.write_text(json.dumps(record))
    (seen,) = read_measured(qwen2, folder)
    assert (seen.peak_bytes, seen.load) == (78 * GIB, "c=100")


def test_less_than_the_sum_teaches_nothing(qwen2, write):
    folder = write(20 * GIB)
    (seen,) = read_measured(qwen2, folder)
    assert seen.beyond_bytes == 0
    device = device_by_name("H100")
    settings = Settings(engine="vllm")
    assert estimate(learn(qwen2, folder), settings, device) == estimate(qwen2, settings, device)


def test_each_device_counts_its_part(qwen2, write):
    (seen,) = read_measured(qwen2, write(150 * GIB, gpus=2, size=2, args={"tensor_parallel_size": 2}))
    assert seen.peak_bytes == 75 * GIB


@pytest.mark.parametrize(
    "record",
    [
        {"gpus": 2},  # nobody knows which of them was the engine's
        {"gpus": 0},
        {"engine": "transformers"},  # its cache grows with the load
        {"engine": "nothing-we-know"},
        {"subjects": None},
        {"levels": [{"subject": "chat", "load": "c=1", "gpu_memory_bytes_max": None}]},
        {"gpus": 1, "run_id": "r1", "levels": [{}]},
    ],
)
def test_what_tells_nothing_is_left_alone(qwen2, write, record):
    folder = write(80 * GIB, **record)
    assert read_measured(qwen2, folder) == ()
    assert learn(qwen2, folder) is qwen2


@pytest.mark.parametrize("peak", ["1e999", "-1", str(10**18), '"much"'])
def test_a_peak_that_no_card_has_is_left_alone(qwen2, write, peak):
    path = write(78 * GIB) / BENCH_RECORD
    path.write_text(path.read_text().replace(f": {78 * GIB}", f": {peak}").replace(f": {77 * GIB}", ": 0"))
    assert read_measured(qwen2, path.parents[2]) == ()


def test_no_record_and_a_damaged_one(qwen2, tmp_path):
    assert learn(qwen2, tmp_path) is qwen2
    path = tmp_path / BENCH_RECORD
    path.parent.mkdir(parents=True)
    for content in (b"{", b"[]", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        assert read_measured(qwen2, tmp_path) == ()
