"""A real Ray cluster on this machine: a head that runs no replicas, and two workers with fake GPUs of two types."""

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from modelkit.computes import Compute
from modelkit.computes.ray_api import RayApi
from modelkit.deploy.ray_serve.deployer import RayServeDeployer
from modelkit.deploy.ray_serve.local import ray_command
from modelkit.deploy.ray_serve.manifest import serve_options
from modelkit.deploy.ray_serve.ports import free_block
from modelkit.deploy.ray_serve.processes import end_processes, find_processes
from modelkit.errors import DeployError

NODE_VARIABLE = "MODELKIT_TEST_RAY_NODE"
TOKEN_VARIABLE = "RAY_CLUSTER_TOKEN"
# Two nodes of one cluster hand out the same gRPC ports, which Ray opens with SO_REUSEPORT: calls would go to either. So
# only one has room for replicas of the usual size, which take 2 CPUs; the other is for those of a test's own.
GPUS = {"H100": 16, "A100": 1}
START_TIMEOUT_S = 180.0
# A raylet gives its agent 15 s, which no setting changes: on a machine with much to do it ends itself, and is started again.
JOIN_TIMEOUT_S = 60.0
POLL_S = 0.3
# The first of them for Ray itself, four for each node; the others for replicas.
NUM_PORTS, NUM_OWN_PORTS = 250, 50


class Node:
    """One node: the processes that have its mark in their environment."""

    def __init__(self, folder, name, arguments, environment, ports):
        self.name = name
        self.mark = f"{name}-{secrets.token_hex(6)}"
        self.log = folder / f"{name}.log"
        agent, agent_grpc, runtime_env, metrics = ports
        command = ray_command(
            [
                "start",
                "--block",
                "--node-ip-address=127.0.0.1",
                f"--dashboard-agent-listen-port={agent}",
                f"--dashboard-agent-grpc-port={agent_grpc}",
                f"--runtime-env-agent-port={runtime_env}",
                f"--metrics-export-port={metrics}",
                "--min-worker-port=0",
                "--max-worker-port=0",
                "--object-store-memory=80000000",
                "--disable-usage-stats",
                *arguments,
            ]
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**environment, NODE_VARIABLE: self.mark},
            )

    def pids(self):
        return find_processes(f"{NODE_VARIABLE}={self.mark}", session=self.process.pid)

    def kill(self):
        """End the node as a power cut would."""
        assert end_processes(f"{NODE_VARIABLE}={self.mark}", session=self.process.pid) == []
        self.process.wait()


class RayCluster:
    """A head and two workers. `compute` is how modelkit knows it."""

    def __init__(self, folder, extra_environment=None):
        self.folder = folder
        self.token = secrets.token_hex(16)
        os.environ[TOKEN_VARIABLE] = self.token
        ports = free_block(NUM_PORTS)
        self._own_ports, self._replica_ports = iter(ports[:NUM_OWN_PORTS]), ports[NUM_OWN_PORTS:]
        self.gcs_port, self.dashboard_port, self.grpc_port, self.http_port, client_port = self.take_ports(5)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = {
            **kept,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_enable_worker_prestart": "0",
            "RAY_worker_niceness": "0",
            # A node that is killed is to be missed in seconds, not in a minute.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "10000",
            "RAY_health_check_failure_threshold": "5",
            # Two cores that others use too.
            "RAY_raylet_start_wait_time_s": str(int(JOIN_TIMEOUT_S)),
            "RAY_agent_register_timeout_ms": "120000",
            "MODELKIT_CACHE_DIR": str(folder / "cache"),
            **(extra_environment or {}),
        }
        self.compute = Compute(
            name="cluster",
            kind="ray",
            address=f"http://127.0.0.1:{self.dashboard_port}",
            token_env=TOKEN_VARIABLE,
        )
        arguments = [
            "--head",
            f"--port={self.gcs_port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
            f"--ray-client-server-port={client_port}",
            "--num-cpus=0",
            "--num-gpus=0",
            f"--temp-dir={folder / 'r'}",
        ]
        self.head = Node(folder, "head", arguments, self.environment, self.take_ports(4))
        self.workers = []
        self.api = RayApi(self.compute)

    def take_ports(self, count):
        return [next(self._own_ports) for _ in range(count)]

    def start(self):
        self.wait_for(self.api.nodes, lambda nodes: nodes)
        for kind in GPUS:
            self.add_worker(kind)
        return self

    def add_worker(self, kind):
        """Start a worker and wait until it has joined: two that start at once on one machine take each other's ports."""
        arguments = [
            f"--address=127.0.0.1:{self.gcs_port}",
            f"--num-cpus={GPUS[kind]}",
            "--num-gpus=2",
            f"--labels=ray.io/accelerator-type={kind}",
            f'--resources={{"accelerator_type:{kind}": 1}}',
        ]
        # By their ids: one that was killed may be listed for a while yet.
        before = {each["node_id"] for each in self.api.nodes()}
        for is_last in (False, False, True):
            name = f"{kind.lower()}-{secrets.token_hex(2)}"
            node = Node(self.folder, name, arguments, self.environment, self.take_ports(4))
            self.workers.append(node)
            try:
                self.wait_for(
                    self.api.nodes, lambda nodes: {each["node_id"] for each in nodes} - before, JOIN_TIMEOUT_S
                )
            except AssertionError:
                if is_last:
                    raise
                self.workers.remove(node)
                node.kill()
            else:
                return

    def set_up(self):
        """As `modelkit compute setup` does, but at ports that are free here and with one proxy: the nodes share an address."""
        options = serve_options(
            grpc_port=self.grpc_port,
            http_port=self.http_port,
            http_host="127.0.0.1",
            every_node=False,
            replica_ports=self._replica_ports,
        )
        self.api.put_applications(options, [])
        deployer = RayServeDeployer(self.compute)
        deployer.setup(lambda _: None)
        deployer.close()

    def wait_for(self, ask, is_good, timeout_s=START_TIMEOUT_S):
        """Ask until the answer is good, and return it."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = None
            with suppress(DeployError):
                answer = ask()
                if is_good(answer):
                    return answer
            for node in [self.head, *self.workers]:
                assert node.process.poll() is None, node.log.read_text()
            assert time.monotonic() < deadline, f"not after {timeout_s} s: {answer}"
            time.sleep(POLL_S)

    def close(self):
        self.api.close()
        for node in [*self.workers, self.head]:
            node.kill()


@pytest.fixture(scope="module")
def ray_cluster():
    if find_spec("ray") is None:
        pytest.skip("ray is not installed (pip install 'ray[serve]')")
    folder = Path(tempfile.mkdtemp(prefix="mkray-"))  # short: Ray puts sockets in it
    (folder / "notes").mkdir()
    environment = {
        "GREETING": "Hello from the node",
        "API_KEY": "key-of-the-node",
        "PROBE_NOTES": str(folder / "notes"),
    }
    cluster = RayCluster(folder, environment)
    try:
        try:
            cluster.start()
        except AssertionError:  # the head's raylet too
            cluster.close()
            cluster = RayCluster(folder, environment)
            cluster.start()
        cluster.set_up()
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)
