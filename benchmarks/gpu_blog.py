"""The blog's comparison on one engine: three architectures with random weights, 1 and 100 callers, by `modelkit bench`.

    python benchmarks/gpu_blog.py --back-end vllm --python /opt/vllm/bin/python --output out

Each architecture is a run of its own with what is left of the time; one that runs out of it keeps the levels it has. At the
end every level is a line of JSON, and the runs are in one small archive: `modelkit bench report` draws them together.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from sigterm import leave_on_sigterm

from modelkit.benchmark.random_weights import read_config

BACK_ENDS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "turbomind": "lmdeploy:turbomind",
    "pytorch": "lmdeploy:pytorch",
}
ARCHITECTURES = "qwen2-7b,llama-3.1-8b,mistral-7b"
# TurboMind (LMDeploy 0.18) has no Mistral, and LMDeploy would take PyTorch in its place. Mistral-7B v0.3 has no windows any
# more and with that Llama's layers, so TurboMind runs it under Llama's name.
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
KEPT = ("run.json", "requests.jsonl", "summary.csv", "report.html")
LOG_BYTES = 200_000
STOP_S = 40  # what the end of a server may take


def bench(architecture: str, folder: Path, options: argparse.Namespace, timeout_s: float) -> int | None:
    """Measure one architecture; returns None where the time was over."""
    command = [sys.executable, "-m", "modelkit", "bench"]
    weights = random_weights(architecture, options)
    command += ["--random-weights", weights, "--engines", BACK_ENDS[options.back_end]]
    command += ["--input-tokens", options.input_tokens, "--output-tokens", options.output_tokens]
    command += ["--concurrency", options.concurrency, "--repeats", str(options.repeats)]
    command += ["--warm-up", str(options.warm_up), "--output", str(folder), "--protocol", options.protocol]
    command += ["--num-requests", options.num_requests]
    overrides = [f"engine.python={options.python}"] if options.python else []
    for override in [*overrides, "engine.start_timeout=8m", *options.set]:
        command += ["--set", override]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        print(f"{architecture}: {timeout_s:.0f} s are over", flush=True)
        return None
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a bench that still runs; on SIGINT it ends its server, and keeps what is finished."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def random_weights(architecture: str, options: argparse.Namespace) -> str:
    """Return what `--random-weights` gets: the architecture, or a config.json of its sizes under another name."""
    if (architecture, options.back_end) != ("mistral-7b", "turbomind"):
        return architecture
    path: Path = options.output / "configs" / architecture / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(read_config(architecture) | LLAMA, indent=2))
    return str(path)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each level that is finished."""
    try:
        run = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return []
    subjects = {subject["name"]: subject for subject in run["subjects"]}
    rows = []
    for level in run["levels"]:
        metrics, subject = level["metrics"], subjects[level["subject"]]
        row = {
            key: subject.get(key) for key in ("model", "engine", "engine_version", "engine_args", "ready_s")
        }
        row |= {
            key: level[key] for key in ("subject", "concurrency", "repeat", "input_tokens", "output_tokens")
        }
        names = (
            "n_ok",
            "n_err",
            "n_short",
            "out_tok_s_steady",
            "out_tok_s_whole",
            "req_s",
            "inflight_mean",
            "verdict",
        )
        row |= {name: metrics[name] for name in names}
        for name in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_s", "req_tok_s_decode"):
            row[name] = {key: metrics[name][key] for key in ("p50", "p99")} if metrics[name] else None
        row |= {"roofline": level["roofline"], "machine": level["machine"], "errors": metrics["errors"]}
        rows.append(row)
    return rows


def pack(folders: list[Path], archive: Path) -> None:
    """Put what the runs consist of into one archive, with the end of each server's log."""
    with tarfile.open(archive, "w:gz") as tar:
        for folder in folders:
            for path in sorted(folder.glob("*")):
                if path.name in KEPT:
                    tar.add(path, f"{folder.name}/{path.name}")
                elif path.suffix == ".log":
                    end = path.with_suffix(".tail")
                    end.write_bytes(path.read_bytes()[-LOG_BYTES:])
                    tar.add(end, f"{folder.name}/{path.name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--back-end", choices=BACK_ENDS, required=True)
    parser.add_argument("--python", help="the interpreter that has the engine")
    parser.add_argument("--architectures", default=ARCHITECTURES)
    parser.add_argument("--input-tokens", default="2048")
    parser.add_argument("--output-tokens", default="512")
    parser.add_argument("--concurrency", default="1,100")
    parser.add_argument("--num-requests", default="6,200", help="of each level")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--protocol", default="grpc")
    parser.add_argument(
        "--set", action="append", default=[], help="more keys of config.yaml: engine.args.x=y"
    )
    parser.add_argument("--time-limit-s", type=float, default=460, help="for all architectures together")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    leave_on_sigterm()
    started = time.monotonic()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folders = []
    for architecture in options.architectures.split(","):
        left_s = options.time_limit_s - STOP_S - (time.monotonic() - started)
        if left_s < 30:
            print(f"{architecture}: no time left", flush=True)
            continue
        folder = options.output / f"{architecture}-{options.back_end}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        folders.append(folder)
        code = bench(architecture, folder, options, left_s)
        print(f"{architecture}: exit code {code} after {time.monotonic() - started:.0f} s", flush=True)
    archive = options.output / f"{options.back_end}.tar.gz"
    pack(folders, archive)
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB", flush=True)
    for folder in folders:
        for row in lines(folder):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
