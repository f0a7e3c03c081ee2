"""What modelkit's server costs beside a bare grpc.aio server that sends the same messages.

Both run an echo model in a process of their own, on one core; the load comes from this process on another. Rounds
alternate between the two, so that a noisy moment hits both; medians and ratios are printed.

    python benchmarks/serving_echo.py [--json FILE] [--callers 1,16,100,1000] [--rounds 5] [--seconds 2]
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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import uvloop

from modelkit import Model, __version__, method
from modelkit.codec import encode
from modelkit.inference.v1 import inference_pb2 as pb
from modelkit.inference.v1 import inference_pb2_grpc as pb_grpc
from modelkit.server import Server, ServerOptions

TEXT = "The capital of France is Paris."
TOKEN = " token"
ITEMS_PER_STREAM = 64
PACED_GAP_S = 0.013  # 77 tokens/s a caller: an 8B model on one H200


class Echo(Model):
    """The model on modelkit's side."""

    @method
    async def predict(self, text: str) -> str:
        return text

    @method
    async def generate(self, num_items: int, gap_s: float = 0.0) -> AsyncIterator[str]:
        for _ in range(num_items):
            if gap_s:
                await asyncio.sleep(gap_s)
            yield TOKEN


class BareServicer(pb_grpc.InferenceServiceServicer):
    """The same answers without modelkit: no checks, no request ids, no admission, one message an item."""

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:  # noqa: ARG002, N802
        return pb.PredictResponse(result=pb.Value(string_value=request.arguments["text"].string_value))

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        gap_s = request.arguments["gap_s"].float_value
        for _ in range(request.arguments["num_items"].int_value):
            if gap_s:
                await asyncio.sleep(gap_s)
            await context.write(pb.GenerateResponse(items=[pb.Value(string_value=TOKEN)]))


async def serve_bare() -> None:
    server = grpc.aio.server()
    pb_grpc.add_InferenceServiceServicer_to_server(BareServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


async def serve_modelkit() -> None:
    server = Server(Echo(), ServerOptions(port=0))
    await server.startup()
    await server.load()
    print(server.address, flush=True)
    await asyncio.Event().wait()


SERVERS = {"bare": serve_bare, "modelkit": serve_modelkit}


class Process:
    """A server process: its address, CPU seconds used so far, and resident memory."""

    def __init__(self, kind: str, core: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", kind, "--core", str(core)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextmanager
def both_servers() -> Any:
    servers = {kind: Process(kind, core=0) for kind in SERVERS}
    try:
        yield servers
    finally:
        for server in servers.values():
            server.stop()


async def unary_call(stub: Any) -> int:
    request = pb.PredictRequest(arguments={"text": encode(TEXT)})
    response = await stub.Predict(request)
    assert response.result.string_value == TEXT
    return 1


def stream_call(gap_s: float) -> Callable[[Any], Awaitable[int]]:
    arguments = {"num_items": encode(ITEMS_PER_STREAM), "gap_s": encode(gap_s)}

    async def call(stub: Any) -> int:
        num = 0
        async for message in stub.Generate(pb.GenerateRequest(arguments=arguments)):
            num += len(message.items)
        assert num == ITEMS_PER_STREAM
        return num

    return call


async def load(
    address: str, call: Callable[[Any], Awaitable[int]], num_callers: int, seconds: float
) -> dict[str, float]:
    """Call in a closed loop for a while; returns units a second and the number of failed calls."""
    num_units = num_failed = 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        await call(stub)
        end = time.perf_counter() + seconds

        async def caller() -> None:
            nonlocal num_units, num_failed
            while time.perf_counter() < end:
                try:
                    done = await call(stub)
                except grpc.aio.AioRpcError:
                    num_failed += 1
                else:
                    num_units += done

        started = time.perf_counter()
        await asyncio.gather(*[caller() for _ in range(num_callers)])
        return {"units_s": num_units / (time.perf_counter() - started), "num_failed": num_failed}


def measure(
    server: Process, call: Callable[[Any], Awaitable[int]], num_callers: int, seconds: float
) -> dict[str, float]:
    cpu_before = server.cpu_s()
    started = time.perf_counter()
    result = uvloop.run(load(server.address, call, num_callers, seconds))
    elapsed = time.perf_counter() - started
    cpu_s = server.cpu_s() - cpu_before
    return {**result, "cpu_us_per_unit": cpu_s / max(result["units_s"] * elapsed, 1) * 1e6}


def compare(name: str, call: Any, callers: list[int], rounds: int, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for num_callers in callers:
        with both_servers() as servers:
            samples: dict[str, list[dict[str, float]]] = {kind: [] for kind in servers}
            for _ in range(rounds):
                for kind, server in servers.items():
                    samples[kind].append(measure(server, call, num_callers, seconds))
        row: dict[str, Any] = {"test": name, "callers": num_callers}
        for kind, found in samples.items():
            row[f"{kind}_units_s"] = round(statistics.median(sample["units_s"] for sample in found))
            row[f"{kind}_cpu_us"] = round(statistics.median(sample["cpu_us_per_unit"] for sample in found), 1)
            row[f"{kind}_failed"] = int(sum(sample["num_failed"] for sample in found))
        row["ratio_units_s"] = round(row["modelkit_units_s"] / row["bare_units_s"], 2)
        row["ratio_cpu"] = round(row["bare_cpu_us"] / row["modelkit_cpu_us"], 2)
        rows.append(row)
        print_row(row)
    return rows


def print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['test']:<22}{row['callers']:>8}{row['bare_units_s']:>11,}{row['modelkit_units_s']:>11,}"
        f"{row['ratio_units_s']:>8.2f}{row['bare_cpu_us']:>9.1f}{row['modelkit_cpu_us']:>9.1f}{row['ratio_cpu']:>7.2f}"
        f"{row['bare_failed'] + row['modelkit_failed']:>8}",
        flush=True,
    )


def measure_memory(num_streams: int) -> dict[str, Any]:
    with both_servers() as servers:
        result: dict[str, Any] = {}
        for kind, server in servers.items():
            idle = server.memory_mib()
            uvloop.run(run_streams(server.address, num_streams // 2))
            half = server.memory_mib()
            uvloop.run(run_streams(server.address, num_streams // 2))
            result[kind] = {
                "idle_mib": round(idle, 1),
                f"after_{num_streams // 2}_streams_mib": round(half, 1),
                f"after_{num_streams}_streams_mib": round(server.memory_mib(), 1),
            }
            print(
                f"resident memory, {kind}: "
                + ", ".join(f"{key} {value}" for key, value in result[kind].items())
            )
    return result


async def run_streams(address: str, num_streams: int) -> None:
    call = stream_call(0.0)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        for _ in range(num_streams // 100):
            await asyncio.gather(*[call(stub) for _ in range(100)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--callers", default="1,16,100,1000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--streams", type=int, default=10_000, help="for the memory test; 0 leaves it out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core % (os.cpu_count() or 1)})
    if options.serve:
        uvloop.run(SERVERS[options.serve]())
        return
    callers = [int(text) for text in options.callers.split(",")]
    print(
        f"{'':22}{'callers':>8}{'bare/s':>11}{'modelkit/s':>11}{'ratio':>8}{'bare µs':>9}{'ours µs':>9}{'CPU':>7}{'failed':>8}"
    )
    rows = compare("unary", unary_call, callers, options.rounds, options.seconds)
    rows += compare("stream", stream_call(0.0), callers, options.rounds, options.seconds)
    paced = [num for num in callers if num in (1, 100)]
    rows += compare("stream, paced 13 ms", stream_call(PACED_GAP_S), paced, options.rounds, options.seconds)
    memory = measure_memory(options.streams) if options.streams else {}
    if options.json:
        versions = {"python": platform.python_version(), "grpcio": grpc.__version__, "modelkit": __version__}
        record = {"command": " ".join(sys.argv), "versions": versions, "rows": rows, "memory": memory}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
