"""Deployments on a real Docker daemon: rolled out under load, taken back, scaled, killed, stopped."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from pathlib import Path

import pytest

from fixtures_docker import PYTHON_VERSION
from modelkit import Client
from modelkit.computes import Compute, add_compute
from modelkit.config import load_config
from modelkit.deploy import Delivery, DeploymentSpec, Origin, Record, open_deployer
from modelkit.errors import CallError, DeployError, UnknownDeploymentError, UsageError
from modelkit.progress import NO_PROGRESS

pytestmark = pytest.mark.timeout(600)

READY_S = 180.0
MODEL = """
import os
import sys
import time
from collections.abc import Iterator

from modelkit import Model, method


class Worker(Model):
    def load(self) -> None:
        print("version {version} loads", flush=True)
        {load}

    @method
    def version(self) -> str:
        return "{version}"

    @method
    def secret(self) -> str:
        return os.environ.get("WORKER_SECRET", "none")

    @method
    def slow(self, seconds: float) -> Iterator[str]:
        yield "begun"
        time.sleep(seconds)
        yield "{version}"

    @method
    def say(self, text: str) -> int:
        print(text, flush=True)
        return len(text)

    @method
    def pid(self) -> int:
        return os.getpid()
"""


class Host:
    """A Docker host with the images of two versions and of one that does not load."""

    def __init__(self, docker, base_image, folder):
        self.docker = docker
        self.base_image = base_image
        self.folder = folder
        self.compute = Compute(name="box", kind="docker", address="unix:///var/run/docker.sock")
        self.artifacts = {}

    def write(self, version, load="pass", config=""):
        folder = self.folder / version
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(
            f"model: {{id: worker}}\nbuild: {{image: '{self.base_image}', python_version: '{PYTHON_VERSION}'}}\n"
            + config
        )
        (folder / "model.py").write_text(textwrap.dedent(MODEL).format(version=version, load=load))
        return folder

    def spec(self, name, version, *, load="pass", num_replicas=1, config="", **settings):
        """The specification of a version, delivered; the same model is built once."""
        folder = self.write(version, load, config)
        parsed = load_config(folder, overrides=[f"deployment.min_replicas={num_replicas}"])
        spec = DeploymentSpec(
            name=name,
            model_id="worker",
            version=version,
            digest=f"sha256:{version.encode().hex():0<64}",
            config=parsed.model_dump(mode="json"),
            **settings,
        )
        key = (version, config)
        if key not in self.artifacts:
            with self.deployer() as deployer:
                self.artifacts[key] = deployer.deliver(spec, Origin(folder=folder), Delivery(progress=NO_PROGRESS))
            self.docker("tag", self.artifacts[key], self.docker.tag())  # outlives the deployment
        return spec.delivered(self.artifacts[key])

    @contextlib.contextmanager
    def deployer(self, compute=None):
        with contextlib.closing(open_deployer(compute or self.compute)) as deployer:
            yield deployer

    def put(self, deployer, spec, before=None):
        record = Record(spec) if before is None else before.followed_by(spec)
        deployer.apply(record)
        return until(deployer, spec.name, lambda status: status.state in {"running", "failed"})

    def containers(self, name):
        return self.docker(
            "ps", "--all", "--filter", f"label=modelkit.deployment={name}", "--format", "{{.Names}} {{.State}}"
        ).splitlines()


def until(deployer, name, condition):
    deadline = time.monotonic() + READY_S
    while not condition(status := deployer.status(name)):
        assert time.monotonic() < deadline, status
        time.sleep(0.2)
    return status


def client_of(status):
    return Client(status.endpoint.routes[0].targets[0])


@pytest.fixture(scope="module")
def host(docker, base_image, tmp_path_factory):
    config_dir = tmp_path_factory.mktemp("config")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELKIT_CONFIG_DIR", str(config_dir))
        made = Host(docker, base_image, tmp_path_factory.mktemp("models"))
        add_compute(made.compute)
        yield made


@pytest.fixture
def name(host):
    """A name for a deployment, of which nothing is left after the test."""
    made = f"w{uuid.uuid4().hex[:8]}"
    yield made
    for line in host.containers(made):
        host.docker("rm", "--force", "--volumes", line.split()[0])
    volumes = host.docker("volume", "ls", "--quiet", "--filter", f"label=modelkit.deployment={made}").split()
    if volumes:
        host.docker("volume", "rm", *volumes)


def test_it_is_deployed_called_and_leaves_nothing(host, name):
    with host.deployer() as deployer:
        with pytest.raises(UnknownDeploymentError):
            deployer.status(name)
        status = host.put(deployer, host.spec(name, "v1", num_replicas=2))
        assert status.state == "running", status
        assert [replica.name for replica in status.replicas] == [f"{name}-v1-1", f"{name}-v1-2"]
        assert len(status.endpoint.routes[0].targets) == 2
        assert all(target.startswith("127.0.0.1:") for target in status.endpoint.routes[0].targets)
        with client_of(status) as client:
            assert client.methods.version() == "v1"
        assert [each.name for each in deployer.statuses() if each.name == name] == [name]
        deployer.delete(name)
        assert host.containers(name) == []
        assert host.docker("volume", "ls", "--quiet", "--filter", f"label=modelkit.deployment={name}") == ""
        assert host.docker("image", "ls", "--quiet", f"modelkit/{name}") == ""
        with pytest.raises(UnknownDeploymentError):
            deployer.status(name)
