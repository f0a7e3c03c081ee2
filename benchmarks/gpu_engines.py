"""Every engine on a GPU through modelkit: right answers, recovery, and what modelkit's hop costs.

    python benchmarks/gpu_engines.py --back-end vllm --python PYTHON --tiny DIR --big DIR [--checks answers,key,...]

One back end, nothing else on the card. The checks, in the order in which they run:

- answers: the tiny checkpoint's questions, unary, streamed and through the OpenAI transport
- key: the engine's own port refuses who has no key
- speed: 2,048 tokens in and 512 out, 1 and 100 callers: modelkit's gRPC beside the engine's own HTTP, in turns, from the
  same engine process: tokens/s, TTFT, CPU seconds of server and engine
- cancel: half of 100 streams cancelled, seen in the engine's own metrics
- kill: the engine killed in mid-stream, and back again
- oom: a start beside a process that holds the GPU's memory ends with the cure

The last four run on the big checkpoint (`random_checkpoint.py` makes one), on the tiny one where there is none. Each
check has a limit, and all of them together `--limit-s`; what was started is ended in any case. The last lines of
standard output are one JSON object a check. Without a GPU, `oom` is left out; for vLLM on a CPU:

    --engine-options '{"max_model_len": 1024, "dtype": "float32"}' --streams 16
    --engine-args '{"enforce-eager": true, "kv-cache-memory-bytes": 67108864}'

Prompts are text with an exact token count and a random start each, so that no prefix cache helps.
"""

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import uvloop
from engine_checks import (
    BACK_ENDS,
    Served,
    check_answers,
    check_cancellation,
    check_key,
    check_kill,
    check_out_of_memory,
    has_gpu,
    memory_holder,
    served,
    write_folder,
)

from modelkit import AsyncClient

# Most seconds of each check, and of a start.
LIMITS_S = {"answers": 60, "key": 10, "speed": 400, "cancel": 80, "kill": 150, "oom": 130}
START_LIMIT_S = 150
STOP_S = 10  # kept back for the end of whatever runs


# -------------------------------------------------------------------------------------------------------------- speed


def make_prompts(checkpoint: Path, num: int, num_tokens: int, seed: int) -> list[str]:
    """Return texts of exactly `num_tokens` tokens, each with a random start."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    words = [
        word
        for word in tokenizer.get_vocab()
        if word.startswith("Ġ") and word[1:].isalpha() and word[1:].isascii()
    ]
    generator = random.Random(seed)
    prompts = []
    while len(prompts) < num:
        text = "".join(" " + word[1:] for word in generator.choices(words, k=num_tokens))
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:num_tokens]
        text = tokenizer.decode(ids)
        if len(tokenizer.encode(text, add_special_tokens=False).ids) == num_tokens:
            prompts.append(text)
    return prompts


async def one_grpc(client: AsyncClient, body: str) -> tuple[float, int]:
    started, first, num = time.perf_counter(), 0.0, 0
    stream = client.generate(body, method="openai_stream_transport")
    async for _ in stream:
        first = first or time.perf_counter() - started
        num += 1
    return first, stream.usage.output_tokens


async def one_http(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[float, int]:
    started, first, usage = time.perf_counter(), 0.0, b""
    async with session.post(f"{url}/v1/completions", data=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - started
                if b'"usage":{' in line or b'"usage": {' in line:
                    usage = line
    return first, int(orjson.loads(usage[6:])["usage"]["completion_tokens"])


async def load(kind: str, server: Served, prompts: list[str], concurrency: int, out: int) -> dict[str, float]:
    """Send all prompts, `concurrency` at a time; returns the totals."""
    gate = asyncio.Semaphore(concurrency)
    fields = {"model": "bench", "max_tokens": out, "ignore_eos": True, "temperature": 0, "stream": True}
    bodies = [{**fields, "prompt": prompt, "stream_options": {"include_usage": True}} for prompt in prompts]
    url = server.engine_url()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.engine_key()}"}
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=600)
    async with (
        AsyncClient(server.address, timeout_s=600) as client,
        aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session,
    ):

        async def send(body: dict[str, Any]) -> tuple[float, int]:
            async with gate:
                if kind == "grpc":
                    return await one_grpc(client, json.dumps({**body, "openai_endpoint": "/completions"}))
                return await one_http(session, url, orjson.dumps(body))

        started = time.perf_counter()
        answers = await asyncio.gather(*(send(body) for body in bodies))
        elapsed = time.perf_counter() - started
    tokens = sum(num for _, num in answers)
    return {
        "tokens_s": tokens / elapsed,
        "output_tokens": tokens,
        "ttft_p50_ms": statistics.median(first for first, _ in answers) * 1000,
    }


def measure(server: Served, checkpoint: Path, options: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """Send the same load through modelkit and to the engine itself, in turns."""
    ends = time.monotonic() + limit_s
    seed = 0
    rows = []
    for concurrency in (int(text) for text in options.concurrency.split(",")):
        num = 3 if concurrency == 1 else concurrency
        samples: dict[str, list[dict[str, float]]] = {"grpc": [], "http": []}
        for round_index in range(-1, options.rounds):  # the first round warms up
            for kind, found in samples.items():
                seed += 1
                prompts = make_prompts(checkpoint, num, options.input_tokens, seed)
                out = 16 if round_index < 0 else options.output_tokens
                server_before, engine_before = server.cpu_s()
                sending = load(kind, server, prompts, concurrency, out)
                result = uvloop.run(_limited(sending, max(1.0, ends - time.monotonic())))
                server_after, engine_after = server.cpu_s()
                per_1k = 1000 / result["output_tokens"]
                result["server_cpu_s_per_1k"] = (server_after - server_before) * per_1k
                result["engine_cpu_s_per_1k"] = (engine_after - engine_before) * per_1k
                if round_index >= 0:
                    found.append(result)
        row: dict[str, Any] = {
            "concurrency": concurrency,
            "input_tokens": options.input_tokens,
            "output_tokens": options.output_tokens,
        }
        for kind, found in samples.items():
            for key in found[0]:
                row[f"{kind}_{key}"] = round(statistics.median(sample[key] for sample in found), 4)
        row["ratio_grpc_to_http"] = round(row["grpc_tokens_s"] / row["http_tokens_s"], 4)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {"ok": True, "rows": rows}


# --------------------------------------------------------------------------------------------------------------- main


class Run:
    """The checks of one back end: which are asked for, how much time is left, what was found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work: Path = options.work or Path(tempfile.mkdtemp(prefix="gpu-engines-"))
        self.work.mkdir(parents=True, exist_ok=True)
        self.results: list[dict[str, Any]] = []
        self._wanted = options.checks.split(",")
        self._ends = time.monotonic() + options.limit_s
        # The engines' logs lie beside the servers'.
        self._environment = {"HF_HUB_OFFLINE": "1", "XDG_STATE_HOME": str(self.work / "state")}

    def left_s(self, limit_s: float) -> float:
        """Return how long something may take that may take `limit_s` at most. Raises TimeoutError where nothing is left."""
        left = min(limit_s, self._ends - time.monotonic() - STOP_S)
        if left <= 0:
            raise TimeoutError("the time of all checks is over (--limit-s)")
        return left

    def everything(self) -> None:
        """Run what is asked for: one server a checkpoint, then the start that must fail."""
        options = self.options
        heavy = [name for name in ("speed", "cancel", "kill") if name in self._wanted]
        light = [name for name in ("answers", "key") if name in self._wanted]
        if options.big:
            self.on_one_server(options.tiny, light, max_model_len=2048, gpu_memory_utilization=0.3)
            self.on_one_server(options.big, heavy, max_model_len=4096, gpu_memory_utilization=0.8)
        else:
            self.on_one_server(options.tiny, light + heavy, max_model_len=2048, gpu_memory_utilization=0.3)
        if "oom" in self._wanted:
            self.record("oom", self.out_of_memory)

    def on_one_server(self, checkpoint: Path, checks: list[str], **settings: Any) -> None:
        """Serve a checkpoint and make some checks on it; where it does not start, each of them has failed."""
        if not checks:
            return
        folder = self.folder(checkpoint, **settings)
        try:
            with served(
                folder, self.work / f"{folder.name}.log", self.left_s(START_LIMIT_S), self._environment
            ) as server:
                print(
                    f"{self.options.back_end}: {checkpoint.name} is ready after {server.ready_s} s",
                    flush=True,
                )
                for name in checks:
                    self.record(name, lambda name=name: self.check(name, server, checkpoint))
        except Exception as error:  # noqa: BLE001 - the start is part of each check
            done = {result["check"] for result in self.results}
            for name in checks:
                if name not in done:
                    self.results.append({"check": name, "ok": False, "failed": _told(error)})

    def check(self, name: str, server: Served, checkpoint: Path) -> dict[str, Any]:
        """Make one check on a running server."""
        limit_s = self.left_s(LIMITS_S[name])
        num, max_tokens = self.options.streams, 3500 if self.options.big else 900
        if name == "speed":
            return {**measure(server, checkpoint, self.options, limit_s), "ready_s": server.ready_s}
        coroutine: Coroutine[Any, Any, dict[str, Any]]
        if name == "answers":
            coroutine = check_answers(server, json.loads((checkpoint / "qa.json").read_text()))
        elif name == "key":
            coroutine = check_key(server)
        elif name == "cancel":
            coroutine = check_cancellation(server, num=num, max_tokens=max_tokens)
        else:
            coroutine = check_kill(server, max_tokens=max_tokens, timeout_s=limit_s)
        return {**uvloop.run(_limited(coroutine, limit_s)), "ready_s": server.ready_s}

    def out_of_memory(self) -> dict[str, Any]:
        """Start beside a process that leaves too little of the card's memory."""
        if not has_gpu():
            return {"ok": None, "skipped": "no NVIDIA GPU"}
        options = self.options
        leave_gib = options.leave_gib or (8.0 if options.big else 0.3)
        folder = self.folder(
            options.big or options.tiny, max_model_len=2048, gpu_memory_utilization=0.9, start_timeout="100s"
        )
        with memory_holder(options.python, leave_gib):
            limit_s = self.left_s(LIMITS_S["oom"])
            result = check_out_of_memory(folder, self.work / "oom.log", limit_s, self._environment)
        return {**result, "left_gib": leave_gib}

    def record(self, name: str, check: Callable[[], dict[str, Any]]) -> None:
        """Run one check; what goes wrong is part of the record, and the next check runs."""
        began = time.monotonic()
        try:
            result = check()
        except Exception as error:  # noqa: BLE001 - recorded
            result = {"ok": False, "failed": _told(error)}
        took_s = round(time.monotonic() - began, 1)
        self.results.append({"check": name, "back_end": self.options.back_end, **result, "took_s": took_s})
        print(f"  {name}: {'ok' if result['ok'] else json.dumps(result)} ({took_s} s)", flush=True)

    def folder(self, checkpoint: Path, **settings: Any) -> Path:
        """Write the model folder of a checkpoint for this back end."""
        options, base = self.options, BACK_ENDS[self.options.back_end]
        engine = {
            "python": options.python,
            "start_timeout": "8m",
            **settings,
            **json.loads(options.engine_options),
        }
        engine |= {"name": base["name"], "args": {**base.get("args", {}), **json.loads(options.engine_args)}}
        if options.tensor_parallel_size > 1:
            engine["tensor_parallel_size"] = options.tensor_parallel_size
        name = f"{options.back_end}-{checkpoint.name}-{len(self.results)}"
        return write_folder(self.work / name, checkpoint, engine, options.tensor_parallel_size)


async def _limited(coroutine: Coroutine[Any, Any, dict[str, Any]], limit_s: float) -> dict[str, Any]:
    async with asyncio.timeout(limit_s):
        return await coroutine


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[-3000:]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--back-end", choices=BACK_ENDS, required=True)
    add("--python", required=True, help="the interpreter that has the engine")
    add("--checks", default="answers,key,speed,cancel,kill,oom", help="which, with commas between them")
    add("--engine-args", default="{}", help="JSON: engine.args of config.yaml, beside those of the back end")
    add("--engine-options", default="{}", help="JSON: more keys of config.yaml's engine section")
    add("--tiny", type=Path, required=True, help="examples/tiny-chat/checkpoint, which its train.py makes")
    add("--big", type=Path, help="what random_checkpoint.py has made")
    add("--leave-gib", type=float, help="memory left by the holder of the check 'oom'")
    add("--limit-s", type=float, help="of all checks together; 230 without 'speed', 590 with it")
    add("--streams", type=int, default=100, help="of the check 'cancel'")
    add("--tensor-parallel-size", type=int, default=1)
    add("--concurrency", default="1,100")
    add("--input-tokens", type=int, default=2048)
    add("--output-tokens", type=int, default=512)
    add("--rounds", type=int, default=2)
    add("--work", type=Path, help="where folders and logs are kept; a temporary folder otherwise")
    add("--json", type=Path, help="a file for the whole record")
    options = parser.parse_args()
    unknown = set(options.checks.split(",")) - set(LIMITS_S)
    if unknown:
        parser.error(f"there is no check {', '.join(sorted(unknown))}: choose from {', '.join(LIMITS_S)}")
    options.python = str(Path(options.python).expanduser())
    options.tiny = options.tiny.resolve()
    options.big = options.big and options.big.resolve()
    options.limit_s = options.limit_s or (590 if "speed" in options.checks else 230)
    return options


def main() -> None:
    options = parse_options()
    # SIGTERM ends the program like Ctrl-C does: what it has started is ended first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run = Run(options)
    began = time.monotonic()
    try:
        run.everything()
    finally:
        record = {
            "back_end": options.back_end,
            "command": " ".join(sys.argv[1:]),
            "took_s": round(time.monotonic() - began, 1),
            "checks": {result["check"]: result for result in run.results},
        }
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(record, indent=2) + "\n")
        print(f"{options.back_end}: {record['took_s']} s, logs in {run.work}", flush=True)
        for result in run.results:
            print(json.dumps({"back_end": options.back_end, **result}), flush=True)
    sys.exit(0 if all(result["ok"] is not False for result in run.results) else 1)


if __name__ == "__main__":
    main()
