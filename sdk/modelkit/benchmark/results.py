"""A run on disk: run.json, requests.jsonl and summary.csv in one folder, whole after every level.

A level that is written is finished; the same command with the same folder goes on with the next one. requests.jsonl is
written first: lines of a level that run.json does not know are those of a cut, and are dropped when the run goes on.
docs/bench.md describes the files.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson

from modelkit.benchmark.record import Record, read_records, write_records
from modelkit.config import BENCH_RUN_MARK
from modelkit.errors import UsageError

__all__ = ["SCHEMA_VERSION", "Store", "load_run", "summary_rows"]

SCHEMA_VERSION: Final = 1
RUN, REQUESTS, SUMMARY = "run.json", "requests.jsonl", "summary.csv"
_MARK_TEXT: Final = "A run of `modelkit bench`. Images and versions of a model leave this folder out.\n"
_FULL = ("mean", "p50", "p90", "p95", "p99", "max")


class Store:
    """The folder of one run."""

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder = folder
        self.run = run

    @classmethod
    def open(cls, folder: Path, header: Mapping[str, Any]) -> "Store":
        """Begin a run, or go on with the one that is there.

        Raises UsageError where that one was asked something else, or the folder holds other files: it is marked as a
        run's, which no package has, and they would be missing there.
        """
        path, mark = folder / RUN, folder / BENCH_RUN_MARK
        if path.exists():
            run = load_run(folder)
            if run.get("settings") != header["settings"]:
                raise UsageError(
                    f"{folder} holds a run with other settings",
                    cure="give another --output, or delete the folder",
                )
            store = cls(folder, run)
            store._drop_unfinished()
            return store
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not mark.exists() and any(folder.iterdir()):
                raise UsageError(
                    f"{folder} holds other files, and a run needs a folder of its own",
                    cure="give another --output, such as a folder in it",
                )
            mark.write_text(_MARK_TEXT, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"cannot make {folder}: {error.strerror}",
                cure="give a folder that can be written with --output",
            ) from error
        (folder / REQUESTS).unlink(missing_ok=True)
        store = cls(folder, {**header, "subjects": [], "levels": []})
        store.write()
        return store

    def level(self, level_id: str) -> dict[str, Any] | None:
        """Return a level that is finished."""
        return next((level for level in self.run["levels"] if level["id"] == level_id), None)

    def set_subject(self, subject: Mapping[str, Any]) -> None:
        """Put what is known of a subject into the run; what an earlier part of the run knew stays where it is not.

        Where the folder has changed since that part, the run is of neither content, and names none. What the server warned
        of then still holds for the levels of then.
        """
        known = next((one for one in self.run["subjects"] if one["name"] == subject["name"]), None)
        if known is None:
            self.run["subjects"].append(dict(subject))
        else:
            is_other = "content_digest" in subject and subject["content_digest"] != known.get(
                "content_digest"
            )
            warnings = dict.fromkeys([*known.get("warnings", ()), *subject.get("warnings", ())])
            known.update({key: value for key, value in subject.items() if value is not None})
            if warnings:
                known["warnings"] = list(warnings)
            if is_other and any(level["subject"] == subject["name"] for level in self.run["levels"]):
                known["content_digest"] = None
        self.write()

    def add(self, level: Mapping[str, Any], records: Sequence[Record]) -> None:
        """Keep a finished level."""
        write_records(self.folder / REQUESTS, level["id"], records)
        self.run["levels"].append(dict(level))
        self.write()

    def write(self) -> None:
        """Write run.json and summary.csv, each in one step."""
        _replace(self.folder / RUN, orjson.dumps(self.run, option=orjson.OPT_INDENT_2) + b"\n")
        _replace(self.folder / SUMMARY, _csv(summary_rows(self.run)))

    def _drop_unfinished(self) -> None:
        path = self.folder / REQUESTS
        if not path.exists():
            return
        finished = {level["id"] for level in self.run["levels"]}
        kept = []
        for line in path.read_bytes().splitlines(keepends=True):
            with suppress(ValueError, KeyError, TypeError):  # the last line may be cut off
                if orjson.loads(line)["level"] in finished:
                    kept.append(line)
        _replace(path, b"".join(kept))


def load_run(folder: Path) -> dict[str, Any]:
    """Read the run.json of a folder (or of a path to it). Raises UsageError where there is none that this release reads."""
    path = folder / RUN if folder.is_dir() else folder
    try:
        run: dict[str, Any] = orjson.loads(path.read_bytes())
        version = run["schema_version"]
        _ = run["levels"], run["subjects"]
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}",
            cure="name a folder that `modelkit bench --output` has written",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no run of modelkit bench: {error!r}", cure="name another folder"
        ) from error
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema {version}, and this release reads {SCHEMA_VERSION}",
            cure="use the release that wrote it",
        )
    return run


def load_records(folder: Path) -> dict[str, list[Record]]:
    """Return the requests of each level."""
    path = folder / REQUESTS
    found: dict[str, list[Record]] = {}
    if path.exists():
        for level, record in read_records(path):
            found.setdefault(level, []).append(record)
    return found


def summary_rows(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one flat row a level, with the columns of summary.csv."""
    subjects = {subject["name"]: subject for subject in run["subjects"]}
    return [_row(run, subjects[level["subject"]], level) for level in run["levels"]]


def _row(run: Mapping[str, Any], subject: Mapping[str, Any], level: Mapping[str, Any]) -> dict[str, Any]:
    metrics = level["metrics"]
    gpus = run["host"].get("gpus") or []
    row: dict[str, Any] = {
        "run_id": run["run_id"],
        "ts": level["started_at"],
        "subject": subject["name"],
        "engine": subject.get("engine"),
        "engine_version": subject.get("engine_version"),
        "model": subject.get("model"),
        "revision": subject.get("revision"),
        "dtype": subject.get("dtype"),
        "gpu": gpus[0]["name"] if gpus else None,
        "tp": subject.get("tensor_parallel_size"),
        "protocol": subject.get("protocol"),
        "mode": level["mode"],
        "concurrency": level["concurrency"],
        "rate": level["rate"],
        "repeat": level["repeat"],
        "isl": level["input_tokens"],
        "osl": level["output_tokens"],
    }
    row |= {
        name: metrics[name]
        for name in ("n_ok", "n_err", "n_short", "duration_s", "window_s", "inflight_mean")
    }
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_s"):
        row |= {f"{name}_{which}": _at(metrics, name, which) for which in _FULL}
    row |= {
        "ttft_sched_ms_p99": _at(metrics, "ttft_sched_ms", "p99"),
        "chunk_gap_ms_p99": _at(metrics, "chunk_gap_ms", "p99"),
        "tokens_per_msg_mean": _at(metrics, "tokens_per_msg", "mean"),
        "req_tok_s_decode_p50": _at(metrics, "req_tok_s_decode", "p50"),
        "req_tok_s_e2e_p50": _at(metrics, "req_tok_s_e2e", "p50"),
    }
    names = ("out_tok_s_steady", "out_tok_s_whole", "in_tok_s", "req_s", "goodput_req_s", "slo_attainment")
    row |= {name: metrics[name] for name in (*names, "cached_tokens", "client_cpu_pct", "loop_lag_ms_p99")}
    return row | {"verdict": "; ".join(metrics["verdict"]) or "ok"}


def _at(metrics: Mapping[str, Any], name: str, which: str) -> float | None:
    values = metrics.get(name)
    return values[which] if values else None


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    if not rows:
        return b""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue().encode()


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}", cure="free some space, or give another --output"
        ) from error


def as_vllm(run: Mapping[str, Any], level: Mapping[str, Any]) -> dict[str, Any]:
    """Return a level with the names that `vllm bench serve --save-result` gives them, for dashboards that read those.

    Source: vllm/benchmarks/serve.py. Its ITL is the gap between chunks and its throughputs are over the whole run.
    """
    metrics = level["metrics"]
    subject = next(one for one in run["subjects"] if one["name"] == level["subject"])
    n_ok, duration_s = metrics["n_ok"], metrics["duration_s"]
    output_tokens = round((metrics["out_tok_s_whole"] or 0) * duration_s)
    input_tokens = round((metrics["in_tok_s"] or 0) * duration_s)
    result: dict[str, Any] = {
        "date": level["started_at"],
        "endpoint_type": subject.get("protocol"),
        "label": subject["name"],
        "model_id": subject.get("model"),
        "num_prompts": n_ok + metrics["n_err"],
        "request_rate": level["rate"] if level["rate"] is not None else "inf",
        "max_concurrency": level["concurrency"],
        "duration": duration_s,
        "completed": n_ok,
        "failed": metrics["n_err"],
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": metrics["req_s"],
        "request_goodput": metrics["goodput_req_s"],
        "output_throughput": metrics["out_tok_s_whole"],
        "total_token_throughput": (metrics["out_tok_s_whole"] or 0) + (metrics["in_tok_s"] or 0),
    }
    for name, ours, scale in (
        ("ttft", "ttft_ms", 1.0),
        ("tpot", "tpot_ms", 1.0),
        ("itl", "chunk_gap_ms", 1.0),
        ("e2el", "e2e_s", 1e3),
    ):
        for theirs, which in (
            ("mean", "mean"),
            ("median", "p50"),
            ("p90", "p90"),
            ("p95", "p95"),
            ("p99", "p99"),
        ):
            value = _at(metrics, ours, which)
            result[f"{theirs}_{name}_ms"] = (
                value * scale if value is not None and math.isfinite(value) else None
            )
    return result
