"""A deployment on the Docker of this machine: what a roll under load and a kill -9 cost its callers, and what finding it does.

    python benchmarks/docker_compute.py [--base modelkit-test-base:bookworm] [--rounds 3] [--json FILE]

Two replicas of an empty model, four callers that call without a pause through `modelkit://`. A round is an update to the
other version; counted are calls, those that failed, and the longest that one took. Then a replica's process is killed.
Last, calls by one caller through `modelkit://` beside the same replica's address, in turns.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Self

from modelkit import Client
from modelkit.computes import Compute, add_compute
from modelkit.config import load_config
from modelkit.deploy import Delivery, DeploymentSpec, Origin, Record, open_deployer
from modelkit.errors import CallError
from modelkit.progress import NO_PROGRESS

NAME = "bench-docker-compute"
ADDRESS = f"modelkit://bench/{NAME}"
MODEL = """\
from modelkit import Model, method


class Version(Model):
    @method
    async def version(self) -> str:
        return "{version}"
"""
CONFIG = "model: {{id: version}}\nbuild: {{image: '{base}', python_version: '{python}'}}\ndeployment: {{min_replicas: 2}}\n"


class Load:
    """Callers that call all the time; `calls` are (end, seconds, failure) in the order in which they ended."""

    def __init__(self, num_callers: int = 4) -> None:
        self.calls: list[tuple[float, float, CallError | None]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(num_callers)]

    def _run(self) -> None:
        with Client(ADDRESS, timeout_s=30) as client:
            while not self._stop.is_set():
                began, failure = time.perf_counter(), None
                try:
                    client.predict(method="version")
                except CallError as error:
                    failure = error
                ended = time.perf_counter()
                self.calls.append((ended, ended - began, failure))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def summary(self, begun: float) -> dict:
        calls = [call for call in self.calls if call[0] >= begun]
        failures = [str(call[2]) for call in calls if call[2] is not None]
        return {
            "num_calls": len(calls),
            "num_failed": len(failures),
            "failures": sorted(set(failures)),
            "p50_ms": 1000 * statistics.median(call[1] for call in calls),
            "longest_ms": 1000 * max(call[1] for call in calls),
        }


def wait(deployer, condition, timeout_s=300.0):
    deadline = time.monotonic() + timeout_s
    while not condition(status := deployer.status(NAME)):
        if time.monotonic() > deadline:
            raise SystemExit(f"it does not get there: {status}")
        time.sleep(0.1)
    return status


def deliver(deployer, folder: Path, version: str, base: str, python: str) -> DeploymentSpec:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(base=base, python=python))
    (folder / "model.py").write_text(MODEL.format(version=version))
    config = load_config(folder).model_dump(mode="json")
    digest = f"sha256:{version.encode().hex():0<64}"
    spec = DeploymentSpec(name=NAME, model_id="version", version=version, digest=digest, config=config)
    return spec.delivered(deployer.deliver(spec, Origin(folder=folder), Delivery(progress=NO_PROGRESS)))


def answers(status, version: str) -> bool:
    return sum(each.version == version and each.state == "ready" for each in status.replicas) == 2


def measure_rolls(deployer, specs: list[DeploymentSpec], rounds: int) -> list[dict]:
    results, record = [], deployer.status(NAME).record
    for number in range(rounds):
        spec = specs[(number + 1) % 2]
        with Load() as load:
            time.sleep(1.0)
            begun = time.perf_counter()
            record = record.followed_by(spec)
            deployer.apply(record)
            wait(deployer, partial(answers, version=spec.version))
            answers_s = time.perf_counter() - begun
            wait(deployer, lambda status: status.state == "running")
            whole_s = time.perf_counter() - begun
            time.sleep(0.5)
        results.append({"new_answers_s": answers_s, "old_gone_s": whole_s, **load.summary(begun)})
    return results


def measure_kill(deployer) -> dict:
    container = deployer.status(NAME).replicas[0].name
    inspect = ["docker", "inspect", "--format", "{{.State.Pid}}", container]
    pid = int(subprocess.run(inspect, capture_output=True, text=True, check=True).stdout)
    with Load() as load:
        time.sleep(1.0)
        begun = time.perf_counter()
        os.kill(pid, 9)
        wait(deployer, lambda status: status.num_ready < 2)
        wait(deployer, lambda status: status.num_ready == 2)
        back_s = time.perf_counter() - begun
        time.sleep(0.5)
    return {"both_answer_again_s": back_s, **load.summary(begun)}


def measure_finding(deployer, num_calls: int = 2000) -> dict:
    target = deployer.status(NAME).endpoint.routes[0].targets[0]
    began = time.perf_counter()
    with Client(ADDRESS) as client:
        client.predict(method="version")
    first_s = time.perf_counter() - began
    times: dict[str, list[float]] = {"modelkit://": [], "host:port": []}
    with Client(ADDRESS) as found, Client(target) as fixed:
        for client in (found, fixed):
            client.predict(method="version")
        for _ in range(num_calls):
            for name, client in (("modelkit://", found), ("host:port", fixed)):
                began = time.perf_counter()
                client.predict(method="version")
                times[name].append(time.perf_counter() - began)
    p50 = {name: 1000 * statistics.median(each) for name, each in times.items()}
    return {"first_call_ms": 1000 * first_s, "p50_ms": p50, "ratio": p50["modelkit://"] / p50["host:port"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="modelkit-test-base:bookworm")
    parser.add_argument("--python", default="3.11")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MODELKIT_CONFIG_DIR"] = scratch
        compute = Compute(name="bench", kind="docker", address="unix:///var/run/docker.sock")
        add_compute(compute)
        with contextlib.closing(open_deployer(compute)) as deployer:
            one, two = (
                partial(deliver, deployer, Path(scratch) / version, version, options.base, options.python)
                for version in ("v1", "v2")
            )
            specs = [one()]
            try:
                began = time.perf_counter()
                deployer.apply(Record(specs[0]))
                wait(deployer, lambda status: status.state == "running")
                first_s = time.perf_counter() - began
                specs.append(two())
                result = {
                    "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
                    "first_deploy_s": first_s,
                    "rolls": measure_rolls(deployer, specs, options.rounds),
                    "kill": measure_kill(deployer),
                    "finding": measure_finding(deployer),
                    "load_average": os.getloadavg(),
                }
            finally:
                deployer.delete(NAME)
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
