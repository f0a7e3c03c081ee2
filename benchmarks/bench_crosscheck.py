"""`modelkit bench` beside `vllm bench serve`, an independent tool, at the same server, with the same lengths.

    python benchmarks/bench_crosscheck.py --tokenizer DIR --vllm-python PYTHON [--url http://127.0.0.1:8000]

Without a URL the server is one that answers at a known pace: first token after 50 ms, then one each 12 ms. They take turns, so that a busy neighbour meets both, and the median of each figure over the rounds is printed. vLLM's tool
sends all callers' first requests at once, so this one does too (`--burst`); its names are those of `--export vllm`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from misbehaving_server import http_server

FIGURES = (
    *("output_throughput", "request_throughput"),
    *("mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "median_tpot_ms", "p99_tpot_ms"),
    *("mean_itl_ms", "median_itl_ms", "p99_itl_ms", "mean_e2el_ms", "median_e2el_ms", "p99_e2el_ms"),
)


def ours(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "modelkit",
        "-q",
        "bench",
        options.url,
        "--tokenizer",
        str(options.tokenizer),
    ]
    command += ["--input-tokens", str(options.input_tokens), "--output-tokens", str(options.output_tokens)]
    command += ["--concurrency", str(options.concurrency), "--num-requests", str(options.num), "--burst"]
    command += ["--export", "vllm", "--seed", str(abs(hash(folder)) % 10**6), "--warm-up", "2"]
    subprocess.run(
        [*command, "--output", str(folder)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    (path,) = (folder / "vllm").iterdir()
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def theirs(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    command = [
        options.vllm_python,
        "-m",
        "vllm.entrypoints.cli.main",
        "bench",
        "serve",
        "--backend",
        "openai",
    ]
    command += ["--base-url", options.url, "--endpoint", "/v1/completions", "--model", options.model]
    command += ["--tokenizer", str(options.tokenizer), "--dataset-name", "random", "--ignore-eos"]
    command += [
        "--random-input-len",
        str(options.input_tokens),
        "--random-output-len",
        str(options.output_tokens),
    ]
    command += ["--num-prompts", str(options.num), "--max-concurrency", str(options.concurrency)]
    command += ["--num-warmups", str(options.concurrency), "--temperature", "0", "--disable-tqdm"]
    command += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,90,95,99"]
    command += ["--seed", str(abs(hash(folder)) % 10**6), "--save-result", "--result-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    (path,) = folder.glob("*.json")
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url")
    parser.add_argument("--model", default="tiny-chat")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--vllm-python", required=True)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--num", type=int, default=80)
    parser.add_argument("--input-tokens", type=int, default=200)
    parser.add_argument("--output-tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with ExitStack() as stack:
        if options.url is None:
            options.url = stack.enter_context(http_server("--pace", "0.05", "0.012"))
            options.model = "misbehaving"
        run(options)


def run(options: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, Any]]] = {"modelkit": [], "vllm": []}
    with tempfile.TemporaryDirectory() as work:
        for number in range(options.rounds):
            found["modelkit"].append(ours(options, Path(work) / f"ours-{number}"))
            found["vllm"].append(theirs(options, Path(work) / f"theirs-{number}"))
    print(f"{'':20} {'modelkit bench':>15} {'vllm bench serve':>17} {'difference':>11}   range of each")
    rows = {}
    for name in FIGURES:
        values = {tool: [result[name] for result in results] for tool, results in found.items()}
        mine, its = (median(values[tool]) for tool in ("modelkit", "vllm"))
        ranges = "   ".join(f"{min(each):,.2f}-{max(each):,.2f}" for each in values.values())
        print(f"{name:20} {mine:>15,.2f} {its:>17,.2f} {mine / its - 1:>+11.1%}   {ranges}")
        rows[name] = values
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
