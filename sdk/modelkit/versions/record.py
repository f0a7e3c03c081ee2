"""The record of a benchmark that travels with a version: what of it may, of which content it is, and what it says.

It is attached, and no part of the version: measuring again makes no new one. `modelkit bench` notes of what content it
measured, and only figures of exactly that content are attached to a version.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from modelkit.checkpoints.lock import LOCK_NAME
from modelkit.checkpoints.resolve import make_lock
from modelkit.config import BENCH_RECORD, find_config, load_config
from modelkit.errors import Problem, RegistryError
from modelkit.package import Package
from modelkit.package.secrets import find_secrets
from modelkit.registry import Manifest, Store
from modelkit.registry.base import sha256_digest
from modelkit.versions.attachments import CREATED, attach, newest_attached
from modelkit.versions.folder import Folder, collect_folder, secret_values
from modelkit.versions.media_types import RECORD

__all__ = [
    "Figures",
    "attach_record",
    "attached_record",
    "content_digest",
    "figures",
    "headline",
    "measured_at",
    "most_memory",
    "read_record",
    "readable_record",
    "write_record",
]

# What travels, by name: a key that is added to the record stays here until somebody has thought of it. Left out is the
# prompts' file, which is a path on this machine. `engine_args` are of the config that the version has too.
_RUN = ("schema_version", "run_id", "started_at", "tool")
_GPU = ("name", "memory_bytes", "driver")
_WORKLOAD = (
    *("kind", "input_tokens", "output_tokens", "seed", "shared_prefix_tokens", "num_prefixes", "num_turns"),
    *("num_images", "image_size"),
)
_SUBJECT = (
    *("name", "content_digest", "model", "architecture", "revision", "weights", "dtype", "tokenizer_hash"),
    *("engine", "engine_version", "engine_args", "tensor_parallel_size", "ready_s", "protocol", "endpoint"),
    *("exact_length", "running_usage", "token_check", "sweep"),
    *("config_hash", "gpu_used_before_bytes", "warnings"),
)
_LEVEL = (
    *("subject", "load", "concurrency", "rate", "repeat", "ended_at", "output_tok_s", "req_s"),
    *("ttft_ms", "itl_ms", "tpot_ms", "e2e_s", "slo", "gpu_memory_bytes_max", "verdict"),
)
_UNREADABLE = (AttributeError, LookupError, TypeError, ValueError)


# -------------------------------------------------------------------------------------------------------------- identity


def content_digest(path: Path, *, environment: str | None = None, overrides: Sequence[str] = ()) -> str:
    """Return the digest of what a model folder serves now: its files, its config with all settings, its pinned weights.

    Weights on this machine are read through the first time. Raises ModelkitError where the folder cannot be packaged, or
    weights that no lock pins cannot be asked for.
    """
    config = load_config(path, environment=environment, overrides=overrides)
    model_dir = find_config(path).parent
    lock = make_lock(config, model_dir).to_text().encode()
    return _digest(collect_folder(config, model_dir), config.model_dump(mode="json"), lock)


def _digest(package: Package, config: Mapping[str, Any], lock: bytes | None) -> str:
    # The lock counts by what it comes to: an upload writes the file where it is missing or behind.
    files = [file for file in package.manifest()["files"] if file["path"] != LOCK_NAME]
    content = {"files": files, "config": config, "lock": (lock or b"").decode()}
    return sha256_digest(json.dumps(content, sort_keys=True).encode())


# ---------------------------------------------------------------------------------------------------- folder and version


def read_record(folder: Folder) -> dict[str, Any] | Problem | None:
    """Return what of a folder's record may travel with its content; None where there is none.

    A Problem, and no error, where it is damaged, holds a secret, or is of another content than the folder has now.
    """
    path, content = folder.path / BENCH_RECORD, folder.content
    digest = _digest(content.package, content.config, content.lock)
    try:
        data = path.read_bytes()
        secrets = find_secrets([(path.name, path)], secret_values(folder.config))
        record = _of_content(orjson.loads(data), digest)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _doubt(path, f"it cannot be read: {error.strerror}", "see to its permissions")
    except _UNREADABLE:
        return _doubt(path, "it is damaged", "`modelkit bench` writes it anew")
    if secrets:
        return _doubt(path, secrets[0].message, "see where that came from, and delete it")
    if not record["levels"]:
        cure = "`modelkit bench` measures what is uploaded now, with the same --env and --set"
        return _doubt(path, "it is not of this code, config and weights", cure)
    return record


def _doubt(path: Path, reason: str, cure: str) -> Problem:
    return Problem(f"the benchmark's record is not attached: {reason}", cure, path, severity="warning")


def write_record(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write the record of a model folder, in one step."""
    path = folder / BENCH_RECORD
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n")
    draft.replace(path)
    return path


def attach_record(store: Store, version: Manifest, record: Mapping[str, Any]) -> str:
    """Attach a record to a version; the same one is sent once."""
    data = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    return attach(store, version, RECORD, data, {CREATED: measured_at(record)})


def measured_at(record: Mapping[str, Any]) -> str:
    """Return when the last level ended: a run that was cut and goes on keeps its beginning."""
    began: str = record["started_at"]
    return max((each.get("ended_at", began) for each in record["levels"]), default=began)


def attached_record(store: Store, digest: str) -> dict[str, Any] | None:
    """Return the last record that is attached to a version, None without any. Raises RegistryError where it cannot be read."""
    try:
        data = newest_attached(store, digest, RECORD)
        return None if data is None else _kept(orjson.loads(data))
    except _UNREADABLE as error:  # who may push may attach anything
        raise RegistryError(
            "the benchmark's record is not written as it should be",
            cure="measure with `modelkit bench`, and upload again",
        ) from error


def readable_record(store: Store, digest: str) -> dict[str, Any] | None:
    """Return the same where only figures are asked for: of what cannot be read, `verify` and `pull` tell."""
    try:
        return attached_record(store, digest)
    except RegistryError:
        return None


def _of_content(record: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """Return what was measured of one content: a run may have had other folders, and servers that it only knew by name."""
    kept = _kept(record)
    kept["subjects"] = [each for each in kept["subjects"] if each.get("content_digest") == digest]
    names = {each["name"] for each in kept["subjects"]}
    kept["levels"] = [each for each in kept["levels"] if each["subject"] in names]
    return kept | {"gpu_memory_bytes_max": most_memory(kept["levels"])}


def _kept(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a record may travel. Raises one of _UNREADABLE where it is none."""
    kept: dict[str, Any] = _pick(record, _RUN)
    kept["gpus"] = [_pick(each, _GPU) for each in record["gpus"]]
    kept["workload"] = _pick(record["workload"], _WORKLOAD)
    kept["subjects"] = [_pick(each, _SUBJECT) for each in record["subjects"]]
    kept["levels"] = [_pick(each, _LEVEL) for each in record["levels"]]
    kept["gpu_memory_bytes_max"] = most_memory(kept["levels"])
    for moment in (kept["started_at"], measured_at(kept)):
        datetime.fromisoformat(moment)
    _check_texts(kept)
    figures(kept)
    return kept


def _check_texts(kept: Mapping[str, Any]) -> None:
    """Raise ValueError where what is shown of a record is no line of text: a terminal would obey it."""
    texts = [kept["run_id"], kept["started_at"], measured_at(kept)]
    texts += [each[key] for each in kept["subjects"] for key in ("name", "engine", "protocol") if key in each]
    texts += [each[key] for each in kept["levels"] for key in ("subject", "load")]
    texts += [each["name"] for each in kept["gpus"] if "name" in each]
    shown = [text for text in texts if text is not None]
    # Numbers and lists of them are text enough; a dict in it would be shown by its keys.
    shown += [value if isinstance(value, str | dict) else repr(value) for value in kept["workload"].values()]
    if not all(isinstance(text, str) and text.isprintable() for text in shown):
        raise ValueError(shown)


def _pick(value: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value[name] for name in names if name in value}


def most_memory(levels: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the most GPU memory that was seen in use during any of some levels; None where none was seen."""
    return max(
        (each["gpu_memory_bytes_max"] for each in levels if each["gpu_memory_bytes_max"]), default=None
    )


# --------------------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a load came to: the median over its repeats. `load` is such as "c=100"; a time that nobody saw is None."""

    subject: str
    engine: str | None
    protocol: str | None
    load: str
    order: tuple[float, float]
    output_tok_s: float
    ttft_p50_ms: float | None
    tpot_p50_ms: float | None


def figures(record: Mapping[str, Any]) -> list[Figures]:
    """Return the figures of each subject at each load, in the record's order."""
    subjects = {each["name"]: each for each in record["subjects"]}
    repeats: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for level in record["levels"]:
        repeats.setdefault((level["subject"], level["load"]), []).append(level)
    return [
        Figures(
            subject=subject,
            engine=subjects[subject].get("engine"),
            protocol=subjects[subject].get("protocol"),
            load=load,
            order=(float(levels[0].get("concurrency") or 0), float(levels[0].get("rate") or 0)),
            output_tok_s=median(float(each["output_tok_s"]) for each in levels),
            ttft_p50_ms=_median_p50(levels, "ttft_ms"),
            tpot_p50_ms=_median_p50(levels, "tpot_ms"),
        )
        for (subject, load), levels in repeats.items()
    ]


def _median_p50(levels: Sequence[Mapping[str, Any]], name: str) -> float | None:
    seen = [each[name]["p50"] for each in levels if name in each]
    return median(map(float, seen)) if seen and None not in seen else None


def headline(record: Mapping[str, Any], engine: str | None) -> dict[str, Any] | None:
    """Return what fits into a line: the highest load, of the engine that the version is served with if it was measured."""
    found = figures(record)
    if not found:
        return None
    best = max(found, key=lambda each: (each.engine == engine, each.order))
    return {
        "measured_at": measured_at(record),
        "engine": best.engine,
        "gpu": record["gpus"][0].get("name") if record["gpus"] else None,
        "load": best.load,
        "output_tok_s": best.output_tok_s,
        "ttft_p50_ms": best.ttft_p50_ms,
    }
