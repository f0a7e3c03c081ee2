"""A real Kubernetes of one node for all tests of a session, with its own dockerd and a registry that both sides reach."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import textwrap
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from fixtures_docker import write_folder
from modelkit.computes import Compute
from registry_server import RegistryServer, is_installed

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "scripts/kubernetes/cluster.sh"
NAMESPACE = ["nsenter", "--net=/var/run/netns/mkk8s"]
# This machine as the cluster sees it, and the cluster's networks: they never leave this machine.
OUTSIDE = "172.31.240.1"
TOOLS = ("dockerd", "runc", "jq", "gcc", "ip", "iptables", "nsenter", "openssl")

MODEL = """
import os
import time
from collections.abc import AsyncIterator, Iterator

import asyncio

from modelkit import Model, method


class Worker(Model):
    @method
    def greet(self, name: str) -> str:
        return f"Hello, {name}!"

    @method
    async def echo(self, text: str) -> str:
        return text

    @method
    def variable(self, name: str) -> str:
        return os.environ.get(name, "")

    @method
    def host(self) -> str:
        return os.uname().nodename

    @method
    async def count(self, number: int, pause_s: float) -> AsyncIterator[str]:
        for each in range(number):
            yield str(each)
            await asyncio.sleep(pause_s)
"""


def binaries() -> Path:
    """Where scripts/kubernetes/build.sh puts what it builds, whatever HOME a test has."""
    given = os.environ.get("MODELKIT_TEST_KUBERNETES")
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    return (Path(given) if given else home / ".cache/modelkit-tests/kubernetes") / "bin"


class Cluster:
    """A cluster that runs; `kubectl` and `docker` are real ones."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.kubeconfig = state / "kubeconfig"

    def kubectl(self, *arguments, text=None):
        command = [str(binaries() / "kubectl"), "--kubeconfig", str(self.kubeconfig), *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=False, input=text)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    def get(self, *arguments):
        return json.loads(self.kubectl("get", *arguments, "--output", "json"))

    def docker(self, *arguments):
        command = ["docker", "-H", f"unix://{self.state}/docker.sock", *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    def container_of(self, pod):
        """The id of the container that serves in a pod."""
        selector = f"label=io.kubernetes.pod.name={pod}"
        server = "label=io.kubernetes.container.name=server"
        return self.docker("ps", "--quiet", "--filter", selector, "--filter", server)

    def compute(self, **fields):
        return Compute(
            **{
                "name": "cluster",
                "kind": "kubernetes",
                "address": "test",
                "kubeconfig": str(self.kubeconfig),
                **fields,
            }
        )


def missing_part() -> str:
    """What keeps a cluster from running here; "" where nothing does."""
    if os.geteuid() != 0:
        return "a Kubernetes for tests needs root"
    if not all((binaries() / name).is_file() for name in ("kubelet", "kube-apiserver", "kubectl", "etcd")):
        return "there is no Kubernetes for tests (make kubernetes)"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    return f"a Kubernetes for tests needs {', '.join(missing)} (.ci/run installs it)" if missing else ""


@contextmanager
def running_cluster():
    """A cluster until the block ends."""
    state = Path(tempfile.mkdtemp(prefix="modelkit-kubernetes-"))
    try:
        command = [str(SCRIPT), "up", str(state), str(binaries())]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        yield Cluster(state)
    finally:
        subprocess.run([str(SCRIPT), "down", str(state)], capture_output=True, check=False)


@contextmanager
def running_registry(folder):
    """A registry that is localhost:PORT on this machine and on the cluster's node, until the block ends."""
    server = RegistryServer(folder)
    config = json.loads(server.config_path.read_text())
    config["http"]["addr"] = f":{server.port}"
    server.config_path.write_text(json.dumps(config))
    server.start()
    command = [*NAMESPACE, sys.executable, str(Path(__file__).parent / "tcp_forward.py")]
    command += [str(server.port), OUTSIDE, str(server.port)]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
            assert forward.stdout.readline() == "ready\n"
            yield server
            forward.terminate()
    finally:
        server.kill()


@pytest.fixture(scope="session")
def cluster():
    if problem := missing_part():
        pytest.skip(problem)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster_registry(cluster, tmp_path_factory):
    if not is_installed():
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    with running_registry(tmp_path_factory.mktemp("cluster-registry")) as server:
        yield server


@pytest.fixture(scope="session")
def worker_folder(base_image, tmp_path_factory):
    """A model folder for the cluster."""
    folder = write_folder(
        tmp_path_factory.mktemp("cluster") / "worker", base_image, "server: {drain_timeout: 20s}\n"
    )
    (folder / "model.py").write_text(textwrap.dedent(MODEL))
    return folder


@pytest.fixture(scope="session")
def worker_image(cluster, cluster_registry, docker, worker_folder):
    """Its image, which modelkit has built and uploaded, as the cluster pulls it."""
    docker.tags.add("worker:dev")  # what a folder's image is called here
    return deliver(cluster, cluster_registry, worker_folder)


def deliver(cluster, registry, folder):
    from modelkit.deploy import Delivery, open_deployer  # no other test has to load it
    from modelkit.deploy.source import Wishes, read_target
    from modelkit.progress import NO_PROGRESS

    compute = cluster.compute(registry=f"{registry.host}/team")
    with closing(open_deployer(compute)) as deployer:
        target = read_target(str(folder), Wishes())
        return deployer.deliver(target.spec, target.origin, Delivery(progress=NO_PROGRESS))
