"""The short record beside the model: `.modelkit/bench/latest.json`, for what wants to know how fast a folder is."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from modelkit.benchmark.results import SCHEMA_VERSION
from modelkit.benchmark.sweep import throughput
from modelkit.versions.record import most_memory, write_record

__all__ = ["record_of", "write_latest"]

_TIMES = ("ttft_ms", "itl_ms", "tpot_ms", "e2e_s")


def record_of(run: Mapping[str, Any], names: Container[str]) -> dict[str, Any]:
    """Return what is worth keeping beside a model: its subjects, by name, and the figures of each of their levels.

    Not all of it travels with a version: `versions.record` says what does, by name.
    """
    levels = [_level(level) for level in run["levels"] if level["subject"] in names]
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run["run_id"],
        "started_at": run["started_at"],
        "tool": run["tool"],
        "gpus": run["host"]["gpus"],
        "workload": run["settings"]["workload"],
        "subjects": [subject for subject in run["subjects"] if subject["name"] in names],
        "levels": levels,
        "gpu_memory_bytes_max": most_memory(levels),
    }


def write_latest(model_dir: Path, run: Mapping[str, Any], names: Container[str]) -> None:
    """Write what a run has measured of a model, under these names; the record before stays where that is nothing."""
    record = record_of(run, names)
    if record["levels"]:
        write_record(model_dir, record)


def _level(level: Mapping[str, Any]) -> dict[str, Any]:
    metrics = level["metrics"]
    times = {
        name: {which: metrics[name][which] for which in ("p50", "p95", "p99")}
        for name in _TIMES
        if metrics[name]
    }
    memory = level["machine"].get("gpu", {}).get("memory_bytes_max")
    return {
        "subject": level["subject"],
        "load": level["load"],
        "concurrency": level["concurrency"],
        "rate": level["rate"],
        "repeat": level["repeat"],
        "ended_at": level.get("ended_at", level["started_at"]),
        "output_tok_s": throughput(metrics),
        "req_s": metrics["req_s"],
        **times,
        "slo": metrics["slo"],
        "gpu_memory_bytes_max": memory,
        "verdict": metrics["verdict"],
    }
