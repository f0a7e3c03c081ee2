"""What `modelkit fit` predicts beside what each engine reports of itself on this machine: weights and KV cache.

    python benchmarks/fit_accuracy.py --engine vllm=PYTHON --engine turbomind=PYTHON [--architecture qwen2-7b ...] \
        [--args 'sglang={"disable-cuda-graph": true}'] [--pythonpath vllm=DIR] --json FILE

A checkpoint of each architecture is written with random weights (benchmarks/random_checkpoint.py), every engine is
started on it as modelkit would start it, its log is read until it has said what it measured, and its processes are
ended. With --dummy vLLM and SGLang make up their weights themselves, and only config.json is written for them. A start
that fails or takes too long is recorded with the end of its log, and the next one follows. The JSON is written anew
after every start, so that a cut loses nothing.

Engines: vllm, sglang, turbomind and pytorch (LMDeploy's two back ends). The prediction is for the card that nvidia-smi
names, or for main memory where there is none.
"""

import argparse
import atexit
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from random_checkpoint import ARCHITECTURES, write_config, write_tokenizer
from sigterm import leave_on_sigterm

from modelkit.config import EngineConfig
from modelkit.engines.catalog import create
from modelkit.engines.machine import nvidia_gpus
from modelkit.fit import (
    Device,
    LocalReader,
    Settings,
    device_by_name,
    estimate,
    read_model,
    settings_of,
    this_machine,
)
from modelkit.fit.cache import bytes_per_token
from modelkit.fit.overheads import OVERHEADS

GIB = 2**30
DEFAULT_ARCHITECTURES = (
    "qwen2-7b",
    "llama-3.1-8b",
    "mistral-7b",
    "gemma-2-2b",
    "deepseek-v2-lite-6l",
    "qwen2.5-0.5b",
)
ENGINES = ("vllm", "sglang", "turbomind", "pytorch")
DUMMY = ("vllm", "sglang")
LOG_TAIL_LINES = 60


# --------------------------------------------------------------------------------------------- what engines say of it


@dataclass
class Reported:
    """What an engine's log says, in GiB and tokens; None where it says nothing."""

    weights_gib: float | None = None
    kv_gib: float | None = None
    kv_tokens: int | None = None
    free_after_weights_gib: float | None = None
    activation_gib: float | None = None
    graphs_gib: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_enough(self) -> bool:
        return self.kv_gib is not None or self.kv_tokens is not None


def number(pattern: str, log: str, *, last: bool = True) -> float | None:
    """Return the first group of the last match as a number."""
    found = re.findall(pattern, log)
    return float(found[-1 if last else 0].replace(",", "")) if found else None


def whole(pattern: str, log: str) -> int | None:
    value = number(pattern, log)
    return None if value is None else int(value)


def read_vllm(log: str) -> Reported:
    return Reported(
        weights_gib=number(r"Model loading took ([\d.]+) GiB", log),
        kv_gib=number(r"Available KV cache memory: (-?[\d.]+) GiB", log),
        kv_tokens=whole(r"KV cache size: ([\d,]+) tokens", log),
        activation_gib=number(r"torch peak memory increase: (-?[\d.]+)GiB", log),
        graphs_gib=number(r"Graph capturing finished in [\d.]+ secs?, took (-?[\d.]+) GiB", log),
        details={
            "non_torch_gib": number(r"non-torch forward increase memory: (-?[\d.]+)GiB", log),
            "initial_free_gib": number(r"Initial free memory: ([\d.]+) GiB", log),
            "requested_gib": number(r"Requested memory: [\d.]+ \(util\), ([\d.]+) GiB", log),
            "concurrency": number(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x", log),
            "graph_estimate_gib": number(r"CUDA graph pool memory: [\d.]+ GiB \(actual\), ([\d.]+) GiB", log),
        },
    )


def read_sglang(log: str) -> Reported:
    keys = [float(size) for size in re.findall(r"\bK size: ([\d.]+) GB", log)]
    values = [float(size) for size in re.findall(r"\bV size: ([\d.]+) GB", log)]
    latent = [float(size) for size in re.findall(r"\bKV size: ([\d.]+) GB", log)]
    pools = number(r"SWAKVPool mem usage: ([\d.]+) GB", log)
    graphs = re.findall(r"Capture [^\n]* end\. [^\n]*mem usage=(-?[\d.]+) GB", log)
    return Reported(
        weights_gib=number(r"Load weight end\.[^\n]*mem usage=([\d.]+) GB", log),
        kv_gib=pools if pools is not None else (sum(keys + values + latent) or None),
        kv_tokens=whole(r"max_total_num_tokens=(\d+)", log),
        free_after_weights_gib=number(r"Load weight end\.[^\n]*avail mem=([\d.]+) GB", log),
        graphs_gib=sum(map(float, graphs)) if graphs else None,
        details={
            "free_before_weights_gib": number(r"Load weight begin\. avail mem=([\d.]+) GB", log),
            "mem_fraction_static": number(r"mem_fraction_static=([\d.]+)", log, last=False),
            "free_at_the_end_gib": number(r"available_gpu_mem=([\d.]+) GB", log),
        },
    )


def read_turbomind(log: str) -> Reported:
    budget = number(r"Object cache budget: ([\d.]+) MB", log)
    free = number(r"Object cache budget: [\d.]+ MB from free ([\d.]+) MB", log)
    return Reported(
        kv_gib=None if budget is None else budget / 1024,
        free_after_weights_gib=None if free is None else free / 1024,
        details={"ratio": number(r"and ratio ([\d.]+)", log)},
    )


def read_pytorch(log: str) -> Reported:
    blocks, size = whole(r"num_gpu_blocks=(\d+)", log), whole(r"\bblock_size=(\d+)", log)
    free = number(r"minimal free gpu memory: ([\d.]+) mb", log)
    runtime = number(r"estimated max runtime memory: ([\d.]+) mb", log)
    return Reported(
        kv_tokens=blocks * size if blocks and size else None,
        free_after_weights_gib=None if free is None else free / 1024,
        activation_gib=None if runtime is None else runtime / 1024,
        details={"num_gpu_blocks": blocks, "block_size": size},
    )


@dataclass(frozen=True)
class Reading:
    """How one engine's log is read, and after which line there is nothing more to wait for."""

    read: Callable[[str], Reported]
    finished: str
    config: dict[str, Any]


READINGS = {
    "vllm": Reading(
        read_vllm, r"Graph capturing finished|Starting vLLM API server|Application startup", {"name": "vllm"}
    ),
    "sglang": Reading(read_sglang, r"max_total_num_tokens=\d+, chunked_prefill_size", {"name": "sglang"}),
    "turbomind": Reading(
        read_turbomind,
        r"Object cache budget",
        {"name": "lmdeploy", "args": {"backend": "turbomind", "log-level": "INFO"}},
    ),
    "pytorch": Reading(
        read_pytorch,
        r"num_gpu_blocks=[1-9]",
        {"name": "lmdeploy", "args": {"backend": "pytorch", "log-level": "DEBUG"}},
    ),
}


# ------------------------------------------------------------------------------------------------- starting an engine


def start_and_read(
    engine: str, command: list[str], env: dict[str, str], log_path: Path, timeout_s: float
) -> str:
    """Run an engine until its log has all that is wanted; returns why the wait ended. Nothing of it is left running."""
    reading = READINGS[engine]
    log_path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
    try:
        while time.monotonic() < deadline:
            text = log_path.read_text(errors="replace")
            if re.search(reading.finished, text) and reading.read(text).is_enough:
                return "read"
            if process.poll() is not None:
                return f"exit code {process.returncode}"
            time.sleep(0.5)
        return f"over {timeout_s:.0f} s"
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End an engine and all it has started; it has a session, and so a process group, of its own."""
    for number_, wait_s in ((signal.SIGTERM, 8.0), (signal.SIGKILL, 8.0)):
        try:
            os.killpg(process.pid, number_)
        except ProcessLookupError:
            break
        until = time.monotonic() + wait_s
        while time.monotonic() < until and group_is_alive(process):
            time.sleep(0.1)
    process.wait(10)


def group_is_alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # a child that has ended is a zombie, and counts, until it is asked after
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def gpu_used_mib() -> int | None:
    gpus = nvidia_gpus()
    return gpus[0].used_bytes // 2**20 if gpus else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def wait_until_free(limit_mib: int, timeout_s: float = 30) -> int | None:
    """Wait until what an engine held is given back; returns what is in use then."""
    until = time.monotonic() + timeout_s
    while (used := gpu_used_mib()) is not None and used > limit_mib and time.monotonic() < until:
        time.sleep(1)
    return used


def probe(python: str, env: dict[str, str]) -> dict[str, Any]:
    """Ask torch what there is of the card, and what its context takes."""
    code = (
        "import json, torch\n"
        "torch.empty(1, device='cuda')\n"
        "free, total = torch.cuda.mem_get_info()\n"
        "print(json.dumps({'name': torch.cuda.get_device_name(), 'usable_mib': total / 2**20,"
        " 'context_mib': (total - free) / 2**20, 'torch': torch.__version__}))\n"
    )
    try:
        done = subprocess.run(
            [python, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return {"failed": repr(error)}
    return answer


# ------------------------------------------------------------------------------------------------------- one comparison


def compare(engine: str, architecture: str, checkpoint: Path, options: argparse.Namespace) -> dict[str, Any]:
    reading = READINGS[engine]
    python = options.engines[engine]
    args = {**reading.config.get("args", {}), **options.args.get(engine, {})}
    if options.dummy and engine in DUMMY:
        args |= {"load-format": "dummy", "skip-tokenizer-init": True}
    config = EngineConfig(
        name=reading.config["name"],
        max_model_len=options.max_model_len,
        gpu_memory_utilization=options.share.get(engine),
        tensor_parallel_size=options.tensor_parallel_size,
        args=args,
    )
    adapter = create(config, checkpoint, "fit")
    command = [*adapter.command(python, free_port()), *adapter.arguments()]
    env = environment(engine, python, {**adapter.environment(), adapter.key_variable: "fit"}, options)
    settings = settings_of(config)
    assert settings is not None
    predicted = predict(checkpoint, settings, options.card)
    if predicted["engine"] != engine:  # LMDeploy would run its other back end, which has a row of its own
        raise ValueError(f"{engine} does not run {architecture}")
    record: dict[str, Any] = {"engine": engine, "architecture": architecture, "predicted": predicted}
    started = time.monotonic()
    log_path = options.logs / f"{architecture}-{engine}.log"
    print(f"{architecture} on {engine} ...", flush=True)
    before = wait_until_free(100)
    ended = start_and_read(engine, command, env, log_path, options.timeout)
    log = log_path.read_text(errors="replace")
    reported = reading.read(log)
    record |= {
        "command": " ".join(command[1:]),
        "ended": ended,
        "took_s": round(time.monotonic() - started, 1),
        "gpu_used_before_mib": before,
        "reported": asdict(reported),
        "errors": errors(predicted, reported),
    }
    if not reported.is_enough:
        record["log_tail"] = log.splitlines()[-LOG_TAIL_LINES:]
    return record


def environment(engine: str, python: str, own: Any, options: argparse.Namespace) -> dict[str, str]:
    path = options.pythonpath.get(engine)
    return {
        **os.environ,
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "VLLM_LOGGING_LEVEL": "DEBUG",  # says what the profile is made of
        **dict(own),
        **({"PYTHONPATH": path} if path else {}),
        **options.env,
    }


def predict(checkpoint: Path, settings: Settings, device: Device) -> dict[str, Any]:
    model = read_model(LocalReader(checkpoint))
    found = estimate(model, settings, device)
    overheads = OVERHEADS[settings.engine]
    free = (
        device.usable_bytes
        - overheads.context_bytes
        - overheads.runtime_bytes
        - found.weights.bytes_per_device
    )
    return {
        "device": device.name,
        "engine": found.settings.engine,
        "usable_gib": device.usable_bytes / GIB,
        "weights_gib": found.weights.bytes_per_device / GIB,
        "weights_are_an_estimate": found.weights.is_estimate,
        "kv_gib": found.kv_room_bytes / GIB,
        "kv_tokens": found.kv_capacity_tokens,
        "kv_bytes_per_token": bytes_per_token(model.architecture, settings, found.dtype),
        "activation_gib": found.activation_bytes / GIB,
        "graphs_gib": found.graph_bytes / GIB,
        "overhead_gib": found.overhead_bytes / GIB,
        "free_after_weights_gib": free / GIB,
        "max_model_len": found.max_model_len,
        "dtype": found.dtype,
    }


def errors(predicted: dict[str, Any], reported: Reported) -> dict[str, float | None]:
    """Return the relative errors, positive where the prediction is too high."""

    def error(name: str) -> float | None:
        measured = getattr(reported, name)
        return round(predicted[name] / measured - 1, 4) if measured else None

    found = {name: error(name) for name in ("weights_gib", "kv_gib", "kv_tokens")}
    if found["weights_gib"] is None and reported.free_after_weights_gib is not None:
        # LMDeploy says what is free afterwards: weights and context together.
        taken = predicted["usable_gib"] - reported.free_after_weights_gib
        expected = predicted["usable_gib"] - predicted["free_after_weights_gib"]
        found["weights_and_context"] = round(expected / taken - 1, 4)
    return found


# ---------------------------------------------------------------------------------------------------------------- main


def row(record: dict[str, Any]) -> str:
    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    predicted, reported, wrong = record["predicted"], record["reported"], record["errors"]
    weights = reported["weights_gib"]
    if weights is None and reported["free_after_weights_gib"] is not None:
        weights = predicted["usable_gib"] - reported["free_after_weights_gib"]
    cells = [
        f"{record['architecture']:<20}{record['engine']:<10}",
        f"{predicted['weights_gib']:>8.2f}{cell(weights, '.2f'):>8}",
        f"{cell(wrong.get('weights_gib', None) or wrong.get('weights_and_context'), '+.1%'):>8}",
        f"{predicted['kv_gib']:>9.2f}{cell(reported['kv_gib'], '.2f'):>8}{cell(wrong['kv_gib'], '+.1%'):>8}",
        f"{predicted['kv_tokens']:>12,}{cell(reported['kv_tokens'], ','):>12}{cell(wrong['kv_tokens'], '+.1%'):>8}",
        f"   {record['ended']}, {record['took_s']} s",
    ]
    return "".join(cells)


HEAD = (
    f"{'architecture':<20}{'engine':<10}{'weights':>8}{'real':>8}{'error':>8}{'KV GiB':>9}{'real':>8}{'error':>8}"
    f"{'KV tokens':>12}{'real':>12}{'error':>8}"
)


def pairs(texts: list[str], parse: Callable[[str], Any]) -> dict[str, Any]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise SystemExit(f"write NAME=VALUE, not {text!r}")
        found[name] = parse(value)
    return found


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", action="append", default=[], metavar="NAME=PYTHON", required=True)
    parser.add_argument("--architecture", action="append", choices=ARCHITECTURES)
    parser.add_argument(
        "--args", action="append", default=[], metavar="NAME=JSON", help="further engine.args"
    )
    parser.add_argument("--pythonpath", action="append", default=[], metavar="NAME=DIR[:DIR]")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for every engine")
    parser.add_argument(
        "--share", action="append", default=[], metavar="NAME=0.9", help="gpu_memory_utilization"
    )
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--dummy", action="store_true", help="no weights on disk for vLLM and SGLang")
    parser.add_argument("--device", default="cuda", help="where random weights are made")
    parser.add_argument(
        "--checkpoints", type=Path, help="where checkpoints are written; default: a temporary folder"
    )
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints")
    parser.add_argument("--timeout", type=float, default=150.0, help="seconds for each start")
    parser.add_argument("--logs", type=Path, default=Path("fit-logs"))
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    options.engines = pairs(options.engine, str)
    unknown = set(options.engines) - set(ENGINES)
    if unknown:
        parser.error(f"no such engine: {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    options.args = pairs(options.args, json.loads)
    options.pythonpath = pairs(options.pythonpath, str)
    options.env = pairs(options.env, str)
    options.share = pairs(options.share, float)
    options.architecture = options.architecture or list(DEFAULT_ARCHITECTURES)
    return options


def prepare(folder: Path, architecture: str, options: argparse.Namespace) -> None:
    """Write the checkpoint, or only its config where every engine makes up the weights itself."""
    if (folder / "model.safetensors.index.json").exists():
        return
    started = time.monotonic()
    if options.dummy and set(options.engines) <= set(DUMMY):
        write_tokenizer(folder, architecture)
        write_config(folder, architecture)
    else:  # in a process of its own: what torch holds here would be missing in the engine's account
        script = Path(__file__).with_name("random_checkpoint.py")
        asked = ["--architecture", architecture, "--device", options.device]
        subprocess.run([sys.executable, str(script), str(folder), *asked], check=True)
        print(f"wrote {architecture} in {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    options = parse_options()
    leave_on_sigterm()
    parent = options.checkpoints or Path(tempfile.mkdtemp(prefix="fit-"))
    if options.checkpoints is None and not options.keep:
        atexit.register(
            shutil.rmtree, parent, ignore_errors=True
        )  # whatever cuts the run off: a 7B model is 15 GB
    first = next(iter(options.engines))
    seen = probe(options.engines[first], environment(first, options.engines[first], {}, options))
    options.card = this_machine()
    if options.card.is_cpu and "name" in seen:  # a container without nvidia-smi
        options.card = device_by_name(seen["name"])
    result: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "device": asdict(options.card) | {"accelerator": None},
        "probe": seen,
        "records": [],
    }
    print(json.dumps(result["probe"]), flush=True)
    for architecture in options.architecture:
        folder = parent / architecture
        try:
            prepare(folder, architecture, options)
        except Exception as error:  # noqa: BLE001 - the next architecture may work
            print(f"{architecture}: no checkpoint: {error!r}", flush=True)
            result["records"].append({"architecture": architecture, "failed": repr(error)})
            continue
        for engine in options.engines:
            try:
                record = compare(engine, architecture, folder, options)
                print(f"{HEAD}\n{row(record)}", flush=True)
            except Exception as error:  # noqa: BLE001 - the next engine may work
                record = {"engine": engine, "architecture": architecture, "failed": repr(error)}
                print(f"{architecture} on {engine}: {error!r}", flush=True)
            result["records"].append(record)
            options.json.write_text(json.dumps(result, indent=2) + "\n")
        if not options.keep and options.checkpoints is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{HEAD}")
    for record in result["records"]:
        print(row(record) if "predicted" in record else f"{record['architecture']}: {record['failed']}")


if __name__ == "__main__":
    main()
