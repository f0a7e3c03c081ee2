"""A record as `modelkit bench` writes it, for tests of what becomes of it."""

from datetime import datetime, timedelta

STARTED = datetime.fromisoformat("2026-01-01T00:00:00+00:00")


def level(subject, concurrency, speed, repeat=0, ended=STARTED):
    return {
        "subject": subject,
        "load": f"c={concurrency}",
        "concurrency": concurrency,
        "rate": None,
        "repeat": repeat,
        "ended_at": ended.isoformat(),
        "output_tok_s": speed,
        "req_s": 1.0,
        "ttft_ms": {"p50": 20.0, "p95": 30.0, "p99": None},
        "tpot_ms": {"p50": 5.0, "p95": 6.0, "p99": 7.0},
        "slo": {},
        "gpu_memory_bytes_max": 1000 * concurrency,
        "verdict": [],
    }


def measured(digest, speed=100.0, minutes=0):
    """A record of two engines with the folder, and of a server somewhere else, that ended after so many minutes."""
    ended = STARTED + timedelta(minutes=minutes)
    subjects = [
        {"name": "vllm", "engine": "vllm", "protocol": "grpc", "content_digest": digest, "engine_args": {}},
        {"name": "sglang", "engine": "sglang", "protocol": "grpc", "content_digest": digest},
        {"name": "http://10.1.2.3:8000", "engine": None, "protocol": "http"},
    ]
    subjects[0] |= {"config_hash": "c0de", "gpu_used_before_bytes": 7, "warnings": ["it has no fast kernels"]}
    return {
        "schema_version": 1,
        "run_id": f"run-{minutes}",
        "started_at": STARTED.isoformat(),
        "tool": {"name": "modelkit bench", "version": "0"},
        "git": {"commit": "c0ffee", "dirty": True},  # a key that nobody has thought of
        "gpus": [{"name": "NVIDIA H200", "memory_bytes": 1, "driver": "570", "uuid": "GPU-of-mine"}],
        "workload": {"kind": "file", "output_tokens": "9", "prompts": "/home/ada/prompts.jsonl"},
        "subjects": subjects,
        "levels": [
            level("vllm", 1, speed, ended=ended),
            *(level("vllm", 100, speed * factor, repeat) for repeat, factor in enumerate((9, 10, 11))),
            level("sglang", 100, speed * 20),
            level("http://10.1.2.3:8000", 200, 9.9),
        ],
        "gpu_memory_bytes_max": 200_000,
        "command": ["modelkit", "bench", "--api-key", "correct-horse"],
    }
