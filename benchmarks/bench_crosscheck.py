"""`modelkit bench` beside `vllm bench serve`, an independent tool, at the same server, with the same lengths.

    python benchmarks/bench_crosscheck.py --vllm-python PYTHON [--url http://127.0.0.1:8000 --tokenizer DIR] [--json FILE]

Without a URL the server is one that answers at a known pace: first token after 50 ms, then one each 12 ms. They take turns,
so that a busy neighbour meets both, and the median of each figure over the rounds is printed. vLLM's tool sends all callers'
first requests at once, so this one does too (`--burst`); its names are those of `--export vllm`.

That server notes by the same clock when it had each request and wrote its first token, so the mean TTFT of each tool is taken
apart: until the server had the request, in the server, until the tool counted the token. vLLM's tool starts its clock and
then lets aiohttp look for a proxy and for a password in the environment (`trust_env`), in a thread each. So a third row is
the same tool with that left out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from platform import platform, python_version
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from misbehaving_server import http_server, read_truth
from modelkit.benchmark.random_weights import read_config, write_checkpoint
from modelkit.benchmark.record import read_records

# What each tool noted of its requests: when it began to count, and when it counted the first token, in seconds.
Noted = list[tuple[float, float]]
Result = dict[str, Any]

FIGURES = (
    *("output_throughput", "request_throughput"),
    *("mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "median_tpot_ms", "p99_tpot_ms"),
    *("mean_itl_ms", "median_itl_ms", "p99_itl_ms", "mean_e2el_ms", "median_e2el_ms", "p99_e2el_ms"),
)


# `vllm`, whose sessions do not look into the environment before each request.
NO_ENV = """
import aiohttp
init = aiohttp.ClientSession.__init__
def init_without_env(self, *args, **options):
    init(self, *args, **options | {"trust_env": False})
aiohttp.ClientSession.__init__ = init_without_env
from vllm.entrypoints.cli.main import main
main()
"""
PARTS = ("ttft_until_server_ms", "ttft_in_server_ms", "ttft_until_counted_ms")


def ours(options: argparse.Namespace, folder: Path) -> tuple[Result, Noted]:
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
    command += ["--export", "vllm", "--seed", folder.name.rpartition("-")[2], "--warm-up", "2"]
    subprocess.run(
        [*command, "--output", str(folder)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    (path,) = (folder / "vllm").iterdir()
    records = [record for _, record in read_records(folder / "requests.jsonl")]
    return json.loads(path.read_text()), [(one.sent_ns * 1e-9, one.times_ns[0] * 1e-9) for one in records]


def theirs(
    options: argparse.Namespace, folder: Path, program: tuple[str, str] = ("-m", "vllm.entrypoints.cli.main")
) -> tuple[Result, Noted]:
    folder.mkdir()
    command = [options.vllm_python, *program, "bench", "serve", "--backend", "openai"]
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
    command += ["--seed", folder.name.rpartition("-")[2], "--save-result", "--save-detailed"]
    command += ["--result-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    (path,) = folder.glob("*.json")
    result = json.loads(path.read_text())
    # Its clock is time.perf_counter, which on Linux is the server's.
    return result, [(at, at + ttft) for at, ttft in zip(result["start_times"], result["ttfts"], strict=True)]


def theirs_without_env(options: argparse.Namespace, folder: Path) -> tuple[Result, Noted]:
    return theirs(options, folder, ("-c", NO_ENV))


TOOLS = {"modelkit": ours, "vllm": theirs, "vllm, no trust_env": theirs_without_env}


def ttft_parts(noted: Noted, url: str, output_tokens: int) -> dict[str, float]:
    """Take a mean TTFT apart by what the server noted: means need no request matched to its note."""
    begun = min(at for at, _ in noted)
    told = [(truth.received_ns * 1e-9, truth.sent) for truth in read_truth(url).values()]
    told = [
        (at, sent) for at, sent in told if at >= begun and sum(number for _, number in sent) == output_tokens
    ]
    if len(told) != len(noted):
        raise SystemExit(f"the server has notes of {len(told)} requests, the tool of {len(noted)}")
    marks = (
        mean(at for at, _ in noted),
        mean(at for at, _ in told),
        mean(sent[0][0] * 1e-9 for _, sent in told),
        mean(first for _, first in noted),
    )
    return {name: (end - start) * 1e3 for name, (start, end) in zip(PARTS, pairwise(marks), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url")
    parser.add_argument("--model", default="tiny-chat")
    parser.add_argument("--tokenizer", type=Path, help="of the server's model")
    parser.add_argument("--vllm-python", required=True)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--num", type=int, default=80)
    parser.add_argument("--input-tokens", type=int, default=200)
    parser.add_argument("--output-tokens", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="another one for a server that keeps prompts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.url and not options.tokenizer:
        parser.error("--url needs the --tokenizer of its model")
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.tokenizer is None:
            options.tokenizer = work / "tokenizer"
            # Of many ids: vLLM's prompts begin at a random one, and of two that begin alike the server keeps one note.
            write_checkpoint(options.tokenizer, read_config("qwen2-7b"), weights=False)
        is_paced = options.url is None
        if is_paced:
            options.url = stack.enter_context(http_server("--pace", "0.05", "0.012"))
            options.model = "misbehaving"
        rows = run(options, work, is_paced=is_paced)
    if options.json:
        options.json.write_text(json.dumps(record(rows, options), indent=2) + "\n")


def run(options: argparse.Namespace, work: Path, *, is_paced: bool) -> dict[str, dict[str, list[float]]]:
    found: dict[str, list[Result]] = {tool: [] for tool in TOOLS}
    for number in range(options.rounds):
        for tool, measure in TOOLS.items():
            result, noted = measure(options, work / f"{tool}-{options.seed + number}")
            parts = ttft_parts(noted, options.url, options.output_tokens) if is_paced else {}
            found[tool].append(result | parts)
    print(f"{'median, and range':22}" + "".join(f"{tool:>30}" for tool in TOOLS))
    rows = {}
    for name in (*FIGURES, *(PARTS if is_paced else ())):
        rows[name] = {tool: [round(one[name], 3) for one in results] for tool, results in found.items()}
        cells = (f"{median(each):,.2f} ({min(each):,.2f}-{max(each):,.2f})" for each in rows[name].values())
        print(f"{name:22}" + "".join(f"{cell:>30}" for cell in cells))
    return rows


def record(rows: dict[str, dict[str, list[float]]], options: argparse.Namespace) -> dict[str, Any]:
    """Return what is kept of a run."""
    ask = "from importlib.metadata import version as v; print(v('vllm'), v('aiohttp'))"
    asked = subprocess.run([options.vllm_python, "-c", ask], check=True, capture_output=True, text=True)
    vllm, vllm_aiohttp = asked.stdout.split()
    return {
        "what": "modelkit bench and vllm bench serve at the same paced server, a value a round, by benchmarks/bench_crosscheck.py",
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python benchmarks/bench_crosscheck.py --vllm-python PYTHON --rounds {options.rounds} --json FILE",
        "machine": {"cpus": os.cpu_count(), "system": platform()},
        "versions": {
            "python": python_version(),
            "modelkit-sdk": version("modelkit-sdk"),
            "aiohttp": version("aiohttp"),
            "vllm": vllm,
            "vllm's aiohttp": vllm_aiohttp,
        },
        "rows": rows,
    }


if __name__ == "__main__":
    main()
