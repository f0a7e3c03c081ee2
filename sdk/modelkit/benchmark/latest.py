"""The short record beside the model: `.modelkit/bench/latest.json`, for what wants to know how fast a folder is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from modelkit.benchmark.results import SCHEMA_VERSION
from modelkit.benchmark.sweep import throughput
from modelkit.config import BENCH_RECORD

__all__ = ["record_of", "write_latest"]

_TIMES = ("ttft_ms", "itl_ms", "tpot_ms", "e2e_s")


def record_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is worth keeping with a version of the model: who was measured, and the figures of each level."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run["run_id"],
        "started_at": run["started_at"],
        "tool": run["tool"],
        "git": run["git"],
        "gpus": run["host"]["gpus"],
        "workload": run["settings"]["workload"],
        "subjects": run["subjects"],
        "levels": [_level(level) for level in run["levels"]],
        "gpu_memory_bytes_max": max(
            (
                level["machine"]["gpu"]["memory_bytes_max"]
                for level in run["levels"]
                if "gpu" in level["machine"]
            ),
            default=None,
        ),
    }


def write_latest(model_dir: Path, run: Mapping[str, Any]) -> Path:
    """Write the record, in one step."""
    path = model_dir / BENCH_RECORD
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(orjson.dumps(record_of(run), option=orjson.OPT_INDENT_2) + b"\n")
    draft.replace(path)
    return path


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
        "repeat": level["repeat"],
        "output_tok_s": throughput(metrics),
        "req_s": metrics["req_s"],
        **times,
        "slo": metrics["slo"],
        "gpu_memory_bytes_max": memory,
        "verdict": metrics["verdict"],
    }
