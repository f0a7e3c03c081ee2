"""How exact `modelkit bench` is: its record of each message beside what a server knows of it, by the same clock.

    python benchmarks/bench_accuracy.py [--json FILE]

A server of a process of its own misbehaves in known ways (slow first token, stalls, coalesced writes, several tokens a
chunk) and notes when it wrote each token. The client measures TTFT, TPOT, ITL, chunk gap and E2E; the same are computed
as a perfect client would, which notes a message the moment the server writes it. (What a request takes on its way to the
server, and how long it waits there, is in TTFT and E2E, and no error.) What is printed is the difference: at the median,
and at most.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from misbehaving_server import Misbehaving, Script, Truth, http_server, read_truth
from modelkit.benchmark.load import Conversation, Job
from modelkit.benchmark.metrics import latencies
from modelkit.benchmark.record import OK, Record
from modelkit.benchmark.targets import TargetSpec, Turn
from modelkit.benchmark.worker import run_jobs
from modelkit.testing import run_server

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


def perfect(truth: Truth, sent_ns: int) -> Record:
    """Return what a client would note for which everything that the server sends is there at once."""
    total = sum(number for _, number in truth.sent)
    return Record(
        index=0,
        asked_tokens=total,
        scheduled_ns=sent_ns,
        sent_ns=sent_ns,
        ended_ns=truth.sent[-1][0],
        times_ns=[at for at, _ in truth.sent],
        tokens=[number for _, number in truth.sent],
        status=OK,
        output_tokens=total,
    )


async def measure(spec: TargetSpec, scripts: list[Script], concurrency: int) -> list[Record]:
    conversations = [Conversation((Turn(str(script), script.tokens),)) for script in scripts]
    result = await run_jobs([Job(spec, "closed", conversations, concurrency)])
    return sorted(result.records, key=lambda record: record.index)


def rows(protocol: str, spec: TargetSpec, truth: Any, num: int) -> list[dict[str, Any]]:
    found = []
    for concurrency in (1, 16):
        for behaviour, fields in BEHAVIOURS.items():
            scripts = [
                Script(f"{behaviour} {concurrency} {n}", **fields)
                for n in range(num * max(1, concurrency // 4))
            ]
            records = asyncio.run(measure(spec, scripts, concurrency))
            known = truth()
            differences = [
                {name: abs(mine[name] - theirs[name]) for name in METRICS}
                for mine, theirs in (
                    (figures(record), figures(perfect(known[script.name], record.sent_ns)))
                    for record, script in zip(records, scripts, strict=True)
                )
            ]
            row: dict[str, Any] = {"protocol": protocol, "callers": concurrency, "behaviour": behaviour}
            for name in METRICS:
                values = [one[name] for one in differences]
                row[name] = {"median_ms": round(median(values), 3), "max_ms": round(max(values), 3)}
            found.append(row)
            cells = "  ".join(f"{row[name]['median_ms']:6.3f} {row[name]['max_ms']:8.3f}" for name in METRICS)
            print(f"{protocol:5} {concurrency:3}  {behaviour:18} {cells}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num", type=int, default=6, help="requests of each behaviour with one caller")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("difference in ms: median and max of each")
    print(" " * 30 + "  ".join(f"{name:>15}" for name in METRICS))
    with http_server() as url:
        found = rows("http", TargetSpec(protocol="http", address=url), lambda: read_truth(url), options.num)
    with run_server(Misbehaving) as server:
        spec = TargetSpec(protocol="grpc", address=server.address)
        found += rows("grpc", spec, lambda: server.server.predictor.model.answers.truth, options.num)
    worst = max(row[name]["median_ms"] for row in found for name in METRICS)
    print(f"the worst median is {worst:.3f} ms")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
