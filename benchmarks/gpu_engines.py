"""Every engine on a GPU through modelkit: right answers, recovery, and what modelkit's hop costs.

For each back end, one after the other, nothing else on the card:

1. the tiny checkpoint through `modelkit serve` and the real client: all its questions, unary, streamed and through the
   OpenAI transport; a start without enough memory;
2. a 7B checkpoint with random weights, 2,048 tokens in and 512 out, 1 and 100 callers: modelkit's gRPC beside the
   engine's own HTTP, in turns, from the same engine process: tokens/s, TTFT, CPU seconds of server and engine; then half
   of 100 streams cancelled, seen in the engine's own metrics; the engine killed in mid-stream, and back again.

    python benchmarks/gpu_engines.py --back-end vllm --python PYTHON --tiny DIR --big DIR --json FILE

Prompts are text with an exact token count and a random start each, so that no prefix cache helps.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil
import uvloop

from modelkit import AsyncClient, CallError, UnavailableError

ROOT = Path(__file__).resolve().parents[1]
STORY = "Tell me a story."
QUESTION = "What is the capital of France?"

BACK_ENDS: dict[str, dict[str, Any]] = {
    "vllm": {"name": "vllm"},
    "sglang": {"name": "sglang"},
    "turbomind": {"name": "lmdeploy", "args": {"backend": "turbomind"}},
    "pytorch": {"name": "lmdeploy", "args": {"backend": "pytorch"}},
}
# What each engine's own metrics call the number of requests that it is working on.
RUNNING_METRICS = ("vllm:num_requests_running", "sglang:num_running_reqs", "lmdeploy:num_requests_running")


# ------------------------------------------------------------------------------------------------------------ serving


class Served:
    """`modelkit serve` of a folder, as a user would start it."""

    def __init__(self, folder: Path, log: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "modelkit",
            "-v",
            "serve",
            str(folder),
            "--port",
            "0",
            "--http-port",
            "0",
            "--json",
        ]
        self.log = log
        self.started = time.monotonic()
        with log.open("w") as stderr:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)

    def wait_ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"the server did not start (exit code {self.process.wait()}):\n{self.log.read_text()[-4000:]}"
            )
        ready: dict[str, Any] = json.loads(line)
        ready["ready_s"] = round(time.monotonic() - self.started, 1)
        return ready

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            print("the server did not stop in 60 s", flush=True)
            self.process.kill()

    def engine_processes(self) -> list[psutil.Process]:
        """Return the processes of the engine: everything below the server."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds of the server and of the engine so far."""
        own = psutil.Process(self.process.pid).cpu_times()
        engine = 0.0
        for process in self.engine_processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            engine += times.user + times.system
        return own.user + own.system, engine


@contextmanager
def served(folder: Path, log: Path) -> Iterator[tuple[Served, dict[str, Any]]]:
    server = Served(folder, log)
    try:
        yield server, server.wait_ready()
    finally:
        server.stop()


def make_folder(
    parent: Path, checkpoint: Path, back_end: str, options: argparse.Namespace, **engine: Any
) -> Path:
    """Write a model folder for a checkpoint and a back end."""
    folder = parent / f"{checkpoint.name}-{back_end}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "model.py").write_text("from modelkit import LLM\n\n\nclass Served(LLM):\n    pass\n")
    base = BACK_ENDS[back_end]
    args = {**base.get("args", {}), **json.loads(options.engine_args), **engine.pop("args", {})}
    settings = {"name": base["name"], "python": options.python, "start_timeout": "8m", "args": args, **engine}
    if options.tensor_parallel_size > 1:
        settings["tensor_parallel_size"] = options.tensor_parallel_size
    settings |= json.loads(options.engine_options)
    config = {
        "model": {"id": "bench"},
        "engine": settings,
        "compute": {"num_accelerators": options.tensor_parallel_size},
        "checkpoints": {"type": "local", "path": str(checkpoint)},
        "server": {"max_concurrency": 256},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


# -------------------------------------------------------------------------------------------------------- correctness


async def check_answers(address: str, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask every question in three ways, 64 at a time."""
    gate = asyncio.Semaphore(64)
    async with AsyncClient(address, timeout_s=300) as client:

        async def unary(messages: Any) -> str:
            return str(await client.predict(messages=messages, max_tokens=400, temperature=0.0))

        async def streamed(messages: Any) -> str:
            stream = client.generate(messages=messages, max_tokens=400, temperature=0.0)
            return "".join([str(item) async for item in stream])

        async def openai(messages: Any) -> str:
            body = json.dumps({"messages": messages, "max_tokens": 400, "temperature": 0})
            response = json.loads(str(await client.predict(body, method="openai_transport")))
            return str(response["choices"][0]["message"]["content"])

        async def ask(way: Callable[[Any], Awaitable[str]], question: dict[str, Any]) -> bool:
            async with gate:
                answer = await way(question["messages"])
            if answer != question["answer"]:
                print(f"  {way.__name__}: {question['messages'][-1]['content']!r} -> {answer!r}", flush=True)
            return answer == question["answer"]

        result: dict[str, Any] = {"num_questions": len(questions)}
        for way in (unary, streamed, openai):
            result[way.__name__] = sum(await asyncio.gather(*(ask(way, question) for question in questions)))
    return result


async def engine_running(http_url: str) -> float | None:
    async with aiohttp.ClientSession() as session, session.get(f"{http_url}/metrics/engine") as response:
        text = await response.text()
    found = [line for line in text.splitlines() if line.startswith(RUNNING_METRICS)]
    return sum(float(line.rpartition(" ")[2]) for line in found) if found else None


async def check_cancellation(ready: dict[str, Any]) -> dict[str, Any]:
    """Cancel 50 of 100 endless streams and watch the engine's count of running requests."""
    body = {"messages": [{"role": "user", "content": STORY}], "max_tokens": 1500, "ignore_eos": True}
    async with AsyncClient(ready["address"], timeout_s=300) as client:
        streams = [client.generate(json.dumps(body), method="openai_stream_transport") for _ in range(100)]
        await asyncio.gather(*(anext(aiter(stream)) for stream in streams))
        await asyncio.sleep(0.5)
        before = await engine_running(ready["http_url"])
        cancelled = time.monotonic()
        for stream in streams[:50]:
            stream.cancel()
        after, took = before, 0.0
        while after is not None and after > 55 and took < 10:
            await asyncio.sleep(0.1)
            after, took = await engine_running(ready["http_url"]), time.monotonic() - cancelled
        for stream in streams[50:]:
            stream.cancel()
    return {"running_before": before, "running_after": after, "seen_after_s": round(took, 2)}


async def check_kill(server: Served, ready: dict[str, Any]) -> dict[str, Any]:
    """Kill the engine's main process in mid-stream: UNAVAILABLE, not ready, then ready again with the same answer."""
    body = {"messages": [{"role": "user", "content": STORY}], "max_tokens": 1500, "ignore_eos": True}
    async with AsyncClient(ready["address"], timeout_s=600) as client:
        before = await client.predict(QUESTION, max_tokens=20, temperature=0.0)
        streams = [client.generate(json.dumps(body), method="openai_stream_transport") for _ in range(8)]
        await asyncio.gather(*(anext(aiter(stream)) for stream in streams))
        guard = next(
            process for process in server.engine_processes() if "_guard.py" in " ".join(process.cmdline())
        )
        guard.children()[0].kill()
        killed = time.monotonic()
        codes = await asyncio.gather(*(drain(stream) for stream in streams))
        ended_s = time.monotonic() - killed
        await asyncio.sleep(1)
        await client.wait_ready(timeout_s=400)
        back_s = time.monotonic() - killed
        after = await client.predict(QUESTION, max_tokens=20, temperature=0.0)
    return {
        "streams_ended_with": sorted(set(codes)),
        "streams_ended_after_s": round(ended_s, 2),
        "ready_again_after_s": round(back_s, 1),
        "same_answer_after": after == before,
    }


async def drain(stream: Any) -> str:
    try:
        async for _ in stream:
            pass
    except UnavailableError:
        return "UNAVAILABLE"
    except CallError as error:
        return error.grpc_status
    return "OK"


HOLDER = """
import sys, time, torch
free, _ = torch.cuda.mem_get_info()
block = torch.empty(free - int(float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
print("held", flush=True)
time.sleep(600)
"""


def check_out_of_memory(folder: Path, log: Path, leave_gib: float) -> dict[str, Any]:
    """Start beside a process that holds almost all of the card's memory."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(leave_gib)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        server = Served(folder, log)
        try:
            code: int | None = server.process.wait(240)
        except subprocess.TimeoutExpired:
            code = None
            server.stop()
    finally:
        holder.kill()
        holder.wait()
    text = log.read_text()
    told = [line for line in text.splitlines() if line.startswith(("error:", "  help:"))]
    return {
        "exit_code": code,
        "names_memory": "memory is not enough" in text,
        "told": [line[:300] for line in told],
    }


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
    async with session.post(
        f"{url}/v1/completions", data=body, headers={"Content-Type": "application/json"}
    ) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - started
                if b'"usage":{' in line or b'"usage": {' in line:
                    usage = line
    return first, int(orjson.loads(usage[6:])["usage"]["completion_tokens"])


async def load(
    kind: str, ready: dict[str, Any], engine_url: str, prompts: list[str], concurrency: int, out: int
) -> dict[str, float]:
    """Send all prompts, `concurrency` at a time; returns the totals."""
    gate = asyncio.Semaphore(concurrency)
    fields = {"model": "bench", "max_tokens": out, "ignore_eos": True, "temperature": 0, "stream": True}
    bodies = [{**fields, "prompt": prompt, "stream_options": {"include_usage": True}} for prompt in prompts]
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        AsyncClient(ready["address"], timeout_s=600) as client,
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session,
    ):

        async def send(body: dict[str, Any]) -> tuple[float, int]:
            async with gate:
                if kind == "grpc":
                    return await one_grpc(client, json.dumps({**body, "openai_endpoint": "/completions"}))
                return await one_http(session, engine_url, orjson.dumps(body))

        started = time.perf_counter()
        answers = await asyncio.gather(*(send(body) for body in bodies))
        elapsed = time.perf_counter() - started
    tokens = sum(num for _, num in answers)
    return {
        "tokens_s": tokens / elapsed,
        "output_tokens": tokens,
        "ttft_p50_ms": statistics.median(first for first, _ in answers) * 1000,
    }


def engine_url(server: Served) -> str:
    """Find the engine's own address in its command line."""
    for process in server.engine_processes():
        line = process.cmdline()
        for flag in ("--port", "--server-port"):
            if flag in line:
                return f"http://127.0.0.1:{line[line.index(flag) + 1]}"
    raise SystemExit("the engine's port was not found")


def measure(
    server: Served, ready: dict[str, Any], checkpoint: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    url = engine_url(server)
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
                result = uvloop.run(load(kind, ready, url, prompts, concurrency, out))
                server_after, engine_after = server.cpu_s()
                result["server_cpu_s_per_1k"] = (
                    (server_after - server_before) / result["output_tokens"] * 1000
                )
                result["engine_cpu_s_per_1k"] = (
                    (engine_after - engine_before) / result["output_tokens"] * 1000
                )
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
    return rows


# --------------------------------------------------------------------------------------------------------------- main


def run(options: argparse.Namespace) -> dict[str, Any]:
    work = Path(tempfile.mkdtemp(prefix="gpu-engines-"))
    record: dict[str, Any] = {"back_end": options.back_end, "command": " ".join(sys.argv[1:])}
    if options.tiny:
        folder = make_folder(
            work, options.tiny, options.back_end, options, max_model_len=2048, gpu_memory_utilization=0.3
        )
        questions = json.loads((options.tiny / "qa.json").read_text())
        with served(folder, work / "tiny.log") as (_, ready):
            record["tiny_ready_s"] = ready["ready_s"]
            print(f"{options.back_end}: the tiny checkpoint is ready after {ready['ready_s']} s", flush=True)
            record["answers"] = attempt(
                "answers", lambda: uvloop.run(check_answers(ready["address"], questions))
            )
    if options.leave_gib:
        folder = make_folder(
            work, options.tiny, options.back_end, options, max_model_len=2048, gpu_memory_utilization=0.9
        )
        record["out_of_memory"] = attempt(
            "out_of_memory", lambda: check_out_of_memory(folder, work / "oom.log", options.leave_gib)
        )
    if options.big:
        folder = make_folder(
            work, options.big, options.back_end, options, max_model_len=4096, gpu_memory_utilization=0.8
        )
        with served(folder, work / "big.log") as (server, ready):
            record["big_ready_s"] = ready["ready_s"]
            print(f"{options.back_end}: the 7B checkpoint is ready after {ready['ready_s']} s", flush=True)
            if options.rounds:
                record["speed"] = attempt("speed", lambda: measure(server, ready, options.big, options))
            record["cancellation"] = attempt("cancellation", lambda: uvloop.run(check_cancellation(ready)))
            record["kill"] = attempt("kill", lambda: uvloop.run(check_kill(server, ready)))
    return record


def attempt(name: str, check: Callable[[], Any]) -> Any:
    """Run one check; what goes wrong is part of the record, and the next check runs."""
    try:
        result = check()
    except Exception as error:  # noqa: BLE001 - recorded
        result = {"failed": f"{type(error).__name__}: {error}"[:500]}
    if name != "speed":
        print(f"  {name}: {json.dumps(result)}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--back-end", choices=BACK_ENDS, required=True)
    parser.add_argument("--python", required=True, help="the interpreter that has the engine")
    parser.add_argument("--engine-args", default="{}", help="JSON")
    parser.add_argument(
        "--engine-options", default="{}", help="JSON: more keys of config.yaml's engine section"
    )
    parser.add_argument("--tiny", type=Path)
    parser.add_argument("--big", type=Path)
    parser.add_argument(
        "--leave-gib", type=float, default=0.0, help="memory left by the holder of the out-of-memory check"
    )
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--concurrency", default="1,100")
    parser.add_argument("--input-tokens", type=int, default=2048)
    parser.add_argument("--output-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.python = str(Path(options.python).expanduser())
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    record = run(options)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
