"""What OpenAI's API over HTTP costs: beside a bare aiohttp server that sends the same events, and beside our gRPC.

The model streams chunks of an answer that is known beforehand, so that only the way out is measured. Each server runs
in a process of its own, on one core; the load comes from this process on another. Rounds alternate between the three,
so that a noisy moment hits all; medians and ratios are printed. CPU is that of the server's process.

    python benchmarks/http_openai.py [--json FILE] [--callers 1,16,100] [--rounds 5] [--seconds 2]
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import orjson
import uvloop
from aiohttp import web

from modelkit import Model, __version__, method
from modelkit.codec import encode
from modelkit.inference.v1 import inference_pb2 as pb
from modelkit.inference.v1 import inference_pb2_grpc as pb_grpc
from modelkit.server import Server, ServerOptions

CHUNK = orjson.dumps(
    {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "benchmark",
        "choices": [{"index": 0, "delta": {"content": " token"}, "logprobs": None, "finish_reason": None}],
    }
)
TOKENS_PER_STREAM = 512  # the length of answer that the engines are measured with
PACED_GAP_S = 0.013  # 77 tokens/s a caller: an 8B model on one H200


def body(gap_s: float) -> dict[str, Any]:
    return {
        "model": "benchmark",
        "stream": True,
        "gap_s": gap_s,
        "messages": [{"role": "user", "content": "Go on."}],
    }


class Chat(Model):
    """The model on modelkit's side."""

    @method
    async def openai_stream_transport(self, msg: str) -> AsyncIterator[str]:
        gap_s = orjson.loads(msg)["gap_s"]
        chunk = CHUNK.decode()
        for _ in range(TOKENS_PER_STREAM):
            await asyncio.sleep(gap_s)
            yield chunk


async def bare_chat(request: web.Request) -> web.StreamResponse:
    """The same answer without modelkit: no checks, no ids, no admission, no metrics, one write an event."""
    gap_s = orjson.loads(await request.read())["gap_s"]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(TOKENS_PER_STREAM):
        await asyncio.sleep(gap_s)
        await response.write(b"data: " + CHUNK + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


async def serve_bare() -> None:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", bare_chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


async def serve_modelkit(*, http: bool) -> None:
    server = Server(Chat(), ServerOptions(port=0, http_port=0 if http else None))
    await server.startup()
    await server.load()
    print(server.http_url or server.address, flush=True)
    await asyncio.Event().wait()


SERVERS: dict[str, Callable[[], Any]] = {
    "bare": serve_bare,
    "http": lambda: serve_modelkit(http=True),
    "grpc": lambda: serve_modelkit(http=False),
}


class Process:
    """A server process: where it listens, and CPU seconds used so far."""

    def __init__(self, kind: str) -> None:
        command = [sys.executable, __file__, "--serve", kind, "--core", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextmanager
def all_servers() -> Iterator[dict[str, Process]]:
    servers = {kind: Process(kind) for kind in SERVERS}
    try:
        yield servers
    finally:
        for server in servers.values():
            server.stop()


async def http_load(address: str, gap_s: float, run: Callable[..., Awaitable[None]]) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call() -> tuple[float, int]:
            started, first, num_ends = time.perf_counter(), 0.0, 0
            async with session.post(f"{address}/v1/chat/completions", json=body(gap_s)) as response:
                async for block in response.content.iter_any():
                    first = first or time.perf_counter() - started
                    num_ends += block.count(b"\n\n")
            assert num_ends == TOKENS_PER_STREAM + 1, num_ends
            return first, num_ends - 1

        await run(call)


async def grpc_load(address: str, gap_s: float, run: Callable[..., Awaitable[None]]) -> None:
    request = pb.GenerateRequest(
        method="openai_stream_transport", arguments={"msg": encode(orjson.dumps(body(gap_s)).decode())}
    )
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)

        async def call() -> tuple[float, int]:
            started, first, num = time.perf_counter(), 0.0, 0
            async for message in stub.Generate(request):
                first = first or time.perf_counter() - started
                num += len(message.items)
            assert num == TOKENS_PER_STREAM, num
            return first, num

        await run(call)


def measure(kind: str, server: Process, num_callers: int, seconds: float, gap_s: float) -> dict[str, float]:
    """Call in a closed loop for a while; return tokens a second, CPU a token, and TTFT."""
    firsts: list[float] = []
    num_tokens = 0
    elapsed = cpu_s = 0.0

    async def run(call: Callable[[], Awaitable[tuple[float, int]]]) -> None:
        nonlocal num_tokens, elapsed, cpu_s
        await call()
        cpu_before, started = server.cpu_s(), time.perf_counter()
        end = started + seconds

        async def caller() -> None:
            nonlocal num_tokens
            while time.perf_counter() < end:
                first, num = await call()
                firsts.append(first)
                num_tokens += num

        await asyncio.gather(*[caller() for _ in range(num_callers)])
        elapsed, cpu_s = time.perf_counter() - started, server.cpu_s() - cpu_before

    load = grpc_load if kind == "grpc" else http_load
    uvloop.run(load(server.address, gap_s, run))
    return {
        "tokens_s": num_tokens / elapsed,
        "cpu_us": cpu_s / num_tokens * 1e6,
        "ttft_p50_ms": statistics.median(firsts) * 1e3,
        "ttft_p99_ms": sorted(firsts)[int(len(firsts) * 0.99)] * 1e3,
    }


def compare(name: str, callers: int, gap_s: float, rounds: int, seconds: float) -> dict[str, Any]:
    samples: dict[str, list[dict[str, float]]] = {kind: [] for kind in SERVERS}
    with all_servers() as servers:
        for _ in range(rounds):
            for kind, server in servers.items():
                samples[kind].append(measure(kind, server, callers, seconds, gap_s))
    row: dict[str, Any] = {"test": name, "callers": callers}
    for kind, found in samples.items():
        for key in found[0]:
            row[f"{kind}_{key}"] = round(statistics.median(sample[key] for sample in found), 2)
    row["http_to_bare"] = round(row["http_tokens_s"] / row["bare_tokens_s"], 2)
    row["http_to_grpc"] = round(row["http_tokens_s"] / row["grpc_tokens_s"], 2)
    row["cpu_bare_to_http"] = round(row["bare_cpu_us"] / row["http_cpu_us"], 2)
    row["cpu_grpc_to_http"] = round(row["grpc_cpu_us"] / row["http_cpu_us"], 2)
    return row


COLUMNS = {
    "test": ("", "<16"),
    "callers": ("callers", ">8"),
    "bare_tokens_s": ("bare/s", ">10,.0f"),
    "http_tokens_s": ("http/s", ">10,.0f"),
    "grpc_tokens_s": ("grpc/s", ">10,.0f"),
    "http_to_bare": ("http:bare", ">11.2f"),
    "http_to_grpc": ("http:grpc", ">11.2f"),
    "bare_cpu_us": ("bare µs", ">9.1f"),
    "http_cpu_us": ("http µs", ">9.1f"),
    "grpc_cpu_us": ("grpc µs", ">9.1f"),
    "http_ttft_p50_ms": ("TTFT p50", ">10.1f"),
    "http_ttft_p99_ms": ("p99 ms", ">9.1f"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--callers", default="1,16,100")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core % (os.cpu_count() or 1)})
    if options.serve:
        uvloop.run(SERVERS[options.serve]())
        return
    print("".join(f"{title:{spec.partition('.')[0].replace(',', '')}}" for title, spec in COLUMNS.values()))
    rows = []
    for name, gap_s in (("stream", 0.0), ("stream, paced", PACED_GAP_S)):
        for callers in map(int, options.callers.split(",")):
            rows.append(compare(name, callers, gap_s, options.rounds, options.seconds))
            print("".join(f"{rows[-1][key]:{spec}}" for key, (_, spec) in COLUMNS.items()), flush=True)
    if options.json:
        versions = {
            "python": platform.python_version(),
            "aiohttp": aiohttp.__version__,
            "grpcio": grpc.__version__,
        }
        record = {
            "command": " ".join(sys.argv),
            "versions": {**versions, "modelkit": __version__},
            "rows": rows,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
