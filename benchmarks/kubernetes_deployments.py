"""Deployments on a real Kubernetes: calls lost in updates and with killed replicas, and what the way there costs.

    python benchmarks/kubernetes_deployments.py [--seconds 5] [--json FILE]

One node, of the project's own build (`make kubernetes`), on this machine: root, dockerd and the tests' base image
(`make test-base`). The calls are unary, of a method that returns its argument, by clients that know nothing but
modelkit://COMPUTE/NAME; the plain server is the same folder served here, measured in the same run. Ratios matter: the
cluster itself takes its share of the same cores.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from fixtures_docker import BASE, write_folder
from kubernetes_cluster import MODEL, deliver, missing_part, running_cluster, running_registry
from modelkit import AsyncClient, Client, ModelkitError
from modelkit.computes import add_compute
from modelkit.computes.kubernetes_api import locate
from modelkit.config import load_config
from modelkit.deploy import Delivery, DeploymentSpec, Origin, open_deployer
from modelkit.deploy.rollout import make_plan, roll_back, roll_out
from modelkit.progress import NO_PROGRESS
from registry_server import free_port

NUM_CALLERS = 16
NUM_LOAD_THREADS = 4
READY_S = 300.0
ROUNDS = 3


class Load:
    """Calls without a pause from several threads; how many answered, which did not, and the longest silence."""

    def __init__(self, url):
        self._client = Client(url)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(NUM_LOAD_THREADS)]
        self._lock = threading.Lock()
        self.num_ok, self.lost, self.longest_silence_s = 0, [], 0.0
        self._last_ok = time.monotonic()

    def _call(self):
        while not self._stop.is_set():
            try:
                self._client.predict(method="echo", text="a")
            except ModelkitError as error:
                with self._lock:
                    self.lost.append(f"{type(error).__name__}: {error}"[:200])
            else:
                with self._lock:
                    now = time.monotonic()
                    self.longest_silence_s = max(self.longest_silence_s, now - self._last_ok)
                    self._last_ok = now
                    self.num_ok += 1

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def result(self, **more):
        found = {
            "calls": self.num_ok + len(self.lost),
            "lost": len(self.lost),
            "longest_silence_s": round(self.longest_silence_s, 2),
            **more,
        }
        return found | ({"first_errors": sorted(set(self.lost))[:3]} if self.lost else {})


class Ready:
    """A deployer whose images are on the node."""

    def __init__(self, deployer):
        self._deployer = deployer

    def __getattr__(self, name):
        return getattr(self._deployer, name)

    def deliver(self, spec, *_):
        return spec.artifact


def put(deployer, spec):
    ready = Ready(deployer)
    delivery = Delivery(progress=NO_PROGRESS)
    return roll_out(ready, make_plan(ready, spec), Origin(), delivery, lambda _: None, timeout_s=READY_S)


async def measure(address, seconds):
    """Calls a second with NUM_CALLERS callers, and the median of one caller's calls in ms."""
    async with AsyncClient(address) as client:
        await client.predict(method="echo", text="a")
        times = []
        end = time.perf_counter() + seconds / 2
        while time.perf_counter() < end:
            began = time.perf_counter()
            await client.predict(method="echo", text="a")
            times.append(time.perf_counter() - began)
        count = 0
        began = time.perf_counter()
        end = began + seconds

        async def call():
            nonlocal count
            while time.perf_counter() < end:
                await client.predict(method="echo", text="a")
                count += 1

        await asyncio.gather(*(call() for _ in range(NUM_CALLERS)))
        return count / (time.perf_counter() - began), statistics.median(times) * 1000


def data_paths(paths, seconds):
    """Measure each way ROUNDS times in turn; the medians."""
    found = {name: [] for name in paths}
    for _ in range(ROUNDS):
        for name, address in paths.items():
            found[name].append(asyncio.run(measure(address, seconds)))
    return {
        name: {
            "calls_per_s_16_callers": round(statistics.median(rate for rate, _ in each)),
            "p50_ms_1_caller": round(statistics.median(p50 for _, p50 in each), 2),
        }
        for name, each in found.items()
    }


@contextmanager
def plain_server(folder):
    """The same folder served on this machine."""
    port = free_port()
    command = [sys.executable, "-m", "modelkit", "serve", str(folder), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with Client(f"localhost:{port}") as client:
                client.wait_ready(timeout_s=60)
            yield f"localhost:{port}"
        finally:
            process.terminate()


def wait_ready(deployer, name, num):
    began = time.monotonic()
    while deployer.status(name).num_ready < num:
        time.sleep(0.1)
    return round(time.monotonic() - began, 1)


def kill(cluster, deployer, name):
    victim = next(each.name for each in deployer.status(name).replicas if each.state == "ready")
    cluster.docker("kill", "--signal", "KILL", cluster.container_of(victim))
    while all(each.num_restarts == 0 for each in deployer.status(name).replicas if each.name == victim):
        time.sleep(0.1)


def run(seconds):
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["MODELKIT_CONFIG_DIR"] = str(scratch / "config")
        cluster = stack.enter_context(running_cluster())
        registry = stack.enter_context(running_registry(scratch / "registry"))
        folder = write_folder(scratch / "worker", BASE, "server: {drain_timeout: 20s}\n")
        (folder / "model.py").write_text(textwrap.dedent(MODEL))
        compute = cluster.compute()
        add_compute(compute)
        spec = DeploymentSpec(
            name="worker",
            model_id="worker",
            version="v1",
            digest="sha256:" + "1" * 64,
            config=load_config(folder, overrides=("deployment.min_replicas=2",)).model_dump(mode="json"),
            artifact=deliver(cluster, registry, folder),
        )
        deployer = stack.enter_context(closing(open_deployer(compute)))
        put(deployer, spec)
        return measured(cluster, deployer, compute, folder, spec, seconds)


def measured(cluster, deployer, compute, folder, spec, seconds):
    url = "modelkit://cluster/worker"
    found = {}
    with plain_server(folder) as plain:
        address = cluster.get("service", "worker")["spec"]["clusterIP"]
        paths = {
            "plain server, this machine": plain,
            "one replica, its own address": locate(compute, "worker").routes[0].targets[0],
            "two replicas, service's one address": f"{address}:50051",
            "two replicas, modelkit:// round-robin": url,
        }
        found["data_paths"] = data_paths(paths, seconds)
    with Load(url) as load:
        time.sleep(2)
        began = time.monotonic()
        put(deployer, replace(spec, version="v2", overrides=("model.description=v2",)))
        found["rolling_update"] = {"took_s": round(time.monotonic() - began, 1)}
        time.sleep(8)  # until the old replicas are gone
    found["rolling_update"] |= load.result()
    with Load(url) as load:
        began = time.monotonic()
        roll_back(deployer, deployer.status("worker").record, None, lambda _: None, timeout_s=READY_S)
        took = round(time.monotonic() - began, 1)
        time.sleep(8)
    found["rollback"] = load.result(took_s=took)
    with Load(url) as load:
        time.sleep(1)
        began = time.monotonic()
        kill(cluster, deployer, "worker")
        wait_ready(deployer, "worker", 2)
        took = round(time.monotonic() - began, 1)
        time.sleep(1)
    found["kill_9_of_one_of_two"] = load.result(back_after_s=took)
    deployer.scale("worker", 1, 1)
    time.sleep(8)
    with Load(url) as load:
        time.sleep(1)
        kill(cluster, deployer, "worker")
        wait_ready(deployer, "worker", 1)
        time.sleep(1)
    found["kill_9_of_the_only_one"] = load.result()
    began = time.monotonic()
    deployer.delete("worker")
    found["delete_s"] = round(time.monotonic() - began, 1)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which takes the cluster down
    if problem := missing_part():
        print(f"not measured: {problem}")
        return
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "kubernetes": "1.20.2"}
    found = {"machine": machine, **run(arguments.seconds)}
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
