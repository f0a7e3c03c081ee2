"""What a folder's last benchmark teaches the sum, by records as `modelkit bench` writes them."""

import json

import pytest

from modelkit.config import BENCH_RECORD
from modelkit.fit import (
    LocalReader,
    Settings,
    device_by_name,
    estimate,
    learn,
    read_measured,
    read_model,
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

    def put(peak_bytes, *, gpus=1, engine="vllm", args=None, size=1, **other):
        subject = {
            "name": "chat",
            "engine": engine,
            "engine_version": "0.26.0",
            "engine_args": args or {"max_model_len": 4160, "start_timeout_s": 480.0},
            "tensor_parallel_size": size,
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
    # vLLM's share of memory is one of all; what lies outside of it takes room only where there is none left outside.
    assert after.kv_room_bytes == before.kv_room_bytes
    full = Settings(engine="vllm", utilization=1.0)
    assert (
        estimate(learned, full, other).kv_room_bytes == estimate(qwen2, full, other).kv_room_bytes - 2 * GIB
    )


def test_an_engine_that_takes_a_share_of_what_is_free_has_less(qwen2, write):
    settings, device = Settings(engine="pytorch", max_model_len=4160), device_by_name("H100")
    expected = estimate(qwen2, settings, device).reserved_bytes
    args = {"max_model_len": 4160, "args": {"backend": "pytorch"}}
    learned = learn(qwen2, write(expected + GIB, engine="lmdeploy", args=args))
    assert estimate(learned, settings, device).kv_room_bytes == pytest.approx(
        estimate(qwen2, settings, device).kv_room_bytes - 0.8 * GIB, abs=2
    )
    other = Settings(engine="turbomind")  # another engine learns nothing of it
    assert estimate(learned, other, device) == estimate(qwen2, other, device)


def test_suggestions_count_it_too(qwen2, write):
    settings, device = Settings(engine="sglang", max_model_len=4160), device_by_name("H100")
    expected = estimate(qwen2, settings, device).reserved_bytes
    learned = learn(qwen2, write(expected + 8 * GIB, engine="sglang"))
    small = device_by_name("A10G")
    found = suggestions(learned, settings, small, concurrency=4)
    assert found
    assert all(change.estimate.beyond_bytes == 8 * GIB for change in found)
    assert not estimate(learned, settings, small).fits
    assert estimate(qwen2, settings, small).fits


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


def test_no_record_and_a_damaged_one(qwen2, tmp_path):
    assert learn(qwen2, tmp_path) is qwen2
    path = tmp_path / BENCH_RECORD
    path.parent.mkdir(parents=True)
    for content in (b"{", b"[]", b"\xff"):
        path.write_bytes(content)
        assert read_measured(qwen2, tmp_path) == ()
