"""How exact `modelkit bench` is: its record of each message beside what passed the wire, by the same clock.

    python benchmarks/bench_accuracy.py [--limit-ms 2] [--json FILE]

A server misbehaves in known ways (slow first token, stalls, coalesced writes, several tokens a chunk). Between it and the
client a relay notes when the bytes of each request came, and when those of each token and of the answer's end went on
(tests/wire_tap.py): the truth is what a client would note that takes no time at all. The server's own work is before
that, and is latency; the client's is after it, and is the error. TTFT, TPOT, ITL, chunk gap and E2E are computed of both,
and the difference is printed: at the median, and at most. With a limit the exit code is 1 where a median is above it.

With 16 callers the answers march in step, 16 messages at a time: the worst case. Each behaviour is a number of such waves,
for one that the machine disturbs disturbs 16 requests. Server, relay and client are processes of their own, and nothing
keeps them from each other's cores.
"""

import argparse
import asyncio
import json
import os
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from misbehaving_server import Script, Truth, server_process
from modelkit.benchmark.load import Conversation, Job
from modelkit.benchmark.metrics import latencies
from modelkit.benchmark.record import OK, Record
from modelkit.benchmark.targets import Protocol, TargetSpec, Turn
from modelkit.benchmark.worker import run_jobs
from wire_tap import Tap, wire_tap

BEHAVIOURS: dict[str, dict[str, Any]] = {
    "steady": {"tokens": 64, "first_s": 0.05, "gap_s": 0.012},
    "slow first token": {"tokens": 32, "first_s": 0.8, "gap_s": 0.012},
    "stalls": {"tokens": 32, "first_s": 0.05, "gap_s": 0.012, "stall_before": 16, "stall_s": 0.5},
    "coalesced": {"tokens": 64, "first_s": 0.05, "gap_s": 0.012, "coalesce": 8},
    "4 tokens a chunk": {"tokens": 64, "first_s": 0.05, "gap_s": 0.012, "per_chunk": 4},
}
METRICS = ("ttft", "tpot", "itl p50", "itl max", "chunk gap max", "e2e")


def figures(record: Record) -> dict[str, float]:
    """Return the metrics of one request, in ms."""
    found = latencies(record, "closed")
    gaps = sorted(gap for gap, number in found.itl for _ in range(number))
    values = (found.ttft, found.tpot or 0.0, median(gaps), gaps[-1], max(found.gaps), found.e2e)
    return {name: value * 1e3 for name, value in zip(METRICS, values, strict=True)}


def perfect(truth: Truth) -> Record:
    """Return what a client would note that sends and reads at the moment when the bytes pass."""
    total = sum(number for _, number in truth.sent)
    return Record(
        index=0,
        asked_tokens=total,
        scheduled_ns=truth.received_ns,
        sent_ns=truth.received_ns,
        ended_ns=truth.ended_ns,
        times_ns=[at for at, _ in truth.sent],
        tokens=[number for _, number in truth.sent],
        status=OK,
        output_tokens=total,
    )


async def measure(spec: TargetSpec, scripts: list[Script], concurrency: int) -> list[Record]:
    conversations = [Conversation((Turn(str(script), script.tokens),)) for script in scripts]
    result = await run_jobs([Job(spec, "closed", conversations, concurrency)])
    return sorted(result.records, key=lambda record: record.index)


def rows(protocol: Protocol, tap: Tap, num: int) -> list[dict[str, Any]]:
    spec = TargetSpec(
        protocol=protocol, address=f"http://{tap.address}" if protocol == "http" else tap.address
    )
    found = []
    for callers in (1, 16):
        for behaviour, fields in BEHAVIOURS.items():
            scripts = [Script(f"{behaviour} {callers} {n}", **fields) for n in range(num * callers)]
            records = asyncio.run(measure(spec, scripts, callers))
            truth = tap.truth()
            differences = [
                {name: abs(mine[name] - theirs[name]) for name in METRICS}
                for mine, theirs in (
                    (figures(record), figures(perfect(truth[script.name])))
                    for record, script in zip(records, scripts, strict=True)
                )
            ]
            row: dict[str, Any] = {"protocol": protocol, "callers": callers, "behaviour": behaviour}
            for name in METRICS:
                values = [one[name] for one in differences]
                row[name] = {"median_ms": round(median(values), 3), "max_ms": round(max(values), 3)}
            found.append(row)
            cells = "  ".join(f"{row[name]['median_ms']:6.3f} {row[name]['max_ms']:8.3f}" for name in METRICS)
            print(f"{protocol:5} {callers:3}  {behaviour:18} {cells}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num", type=int, default=6, help="requests of each behaviour and caller")
    parser.add_argument("--limit-ms", type=float, default=float("inf"), help="of each median")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    with ExitStack() as stack:
        taps: dict[Protocol, Tap] = {
            protocol: stack.enter_context(wire_tap(stack.enter_context(server_process(*arguments)), protocol))
            for protocol, arguments in (("http", ()), ("grpc", ("--grpc",)))
        }
        print("difference in ms: median and max of each")
        print(" " * 30 + "  ".join(f"{name:>15}" for name in METRICS))
        for protocol, tap in taps.items():
            found += rows(protocol, tap, options.num)
    worst = max(row[name]["median_ms"] for row in found for name in METRICS)
    print(f"the worst median is {worst:.3f} ms")
    if options.json:
        options.json.write_text(json.dumps(record(found, worst, options.num), indent=2) + "\n")
    return int(worst > options.limit_ms)


def record(found: list[dict[str, Any]], worst: float, num: int) -> dict[str, Any]:
    """Return what is kept of a run."""
    return {
        "what": "modelkit bench against the wire: |client - truth| of each request, by benchmarks/bench_accuracy.py",
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python benchmarks/bench_accuracy.py --num {num} --json FILE",
        "num_cpus": os.cpu_count(),
        "versions": {"python": python_version()}
        | {name: version(name) for name in ("modelkit-sdk", "grpcio", "aiohttp", "uvloop")},
        "worst_median_ms": worst,
        "rows": found,
    }


if __name__ == "__main__":
    sys.exit(main())
