"""Deployments on a real Docker daemon: rolled out under load, taken back, scaled, killed, stopped."""

import asyncio
import contextlib
import getpass
import os
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures_docker import PYTHON_VERSION
from modelkit import Client
from modelkit.cli.app import main
from modelkit.computes import Compute, add_compute
from modelkit.computes.ssh_tunnel import ssh_tunnel
from modelkit.config import load_config
from modelkit.deploy import Delivery, DeploymentSpec, Origin, Record, open_deployer
from modelkit.deploy.base import reasons
from modelkit.deploy.docker.deliver import image_tag
from modelkit.deploy.rollout import FailedRolloutError, make_plan, roll_out
from modelkit.errors import CallError, DeployError, UnavailableError, UnknownDeploymentError, UsageError
from modelkit.progress import NO_PROGRESS
from modelkit.versions.names import open_version, version_reference

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
                self.artifacts[key] = deployer.deliver(
                    spec, Origin(folder=folder), Delivery(progress=NO_PROGRESS)
                )
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
            "ps",
            "--all",
            "--filter",
            f"label=modelkit.deployment={name}",
            "--format",
            "{{.Names}} {{.State}}",
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
    tags = host.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"modelkit/{made}").split()
    if tags:
        host.docker("image", "rm", *tags)


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


class Load:
    """Callers that call all the time, each through one client; what fails is kept."""

    def __init__(self, address, num_callers=3):
        self.versions, self.failures = [], []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(address,), daemon=True) for _ in range(num_callers)
        ]

    def _run(self, address):
        with Client(address) as client:
            while not self._stop.is_set():
                try:
                    self.versions.append(client.predict(method="version", timeout_s=30))
                except CallError as error:
                    self.failures.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def wait_for(condition):
    deadline = time.monotonic() + READY_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_rolling_update_and_rollback_under_load_lose_no_call(host, name):
    one, two = host.spec(name, "v1", num_replicas=2), host.spec(name, "v2", num_replicas=2)
    with host.deployer() as deployer:
        first = host.put(deployer, one)
        with Load(f"modelkit://box/{name}") as load:
            wait_for(lambda: "v1" in load.versions)
            second = host.put(deployer, two, first.record)
            assert [each.version for each in second.replicas] == ["v2", "v2"]
            assert second.num_ready == len(second.endpoint.routes[0].targets) == 2
            assert (
                len(host.containers(name)) == len(second.replicas) == 2
            )  # it runs once nothing of the old one does
            wait_for(lambda: load.versions[-20:] == ["v2"] * 20)
            last = host.put(deployer, second.record.find("v1"), second.record)
            assert len(host.containers(name)) == len(last.replicas) == 2
            wait_for(lambda: load.versions[-20:] == ["v1"] * 20)
        assert load.failures == []
        assert [spec.version for spec in last.record.history] == ["v2"]


def test_a_bad_version_leaves_the_old_one_and_says_why(host, name):
    bad = host.spec(name, "bad", load="raise ValueError('the-very-reason')", num_replicas=2)
    with host.deployer() as deployer:
        good = host.put(deployer, host.spec(name, "v1", num_replicas=2))
        with Load(f"modelkit://box/{name}", num_callers=1) as load:
            failed = host.put(deployer, bad, good.record)
            assert failed.state == "failed"
            assert failed.reason == "ends as it starts, with exit code 1"
            assert reasons(failed)[0] == failed.reason  # and its replicas do not say it again
            assert sum("ends as it starts" in each for each in reasons(failed)) == 1
            assert [each.version for each in failed.replicas if each.state == "ready"] == ["v1", "v1"]
            said = deployer.logs(name, replica=next(r.name for r in failed.replicas if r.state == "failed"))
            assert any("the-very-reason" in line.text for line in said)
            deployer.apply(good.record)
            back = until(deployer, name, lambda status: status.state != "updating")
        assert load.failures == []
        assert set(load.versions) == {"v1"}
        assert back.state == "running"
        assert [each.version for each in back.replicas] == ["v1", "v1"]
        assert back.record == good.record
        assert not any("bad" in line for line in host.containers(name))


def free_range(num):
    """An endpoint on loopback of so many ports, of which nobody has any at the moment."""
    for first in range(41000, 60000, 10):
        if not any(is_open(first + i) for i in range(num)):
            return f"127.0.0.1:{first}-{first + num - 1}"
    raise AssertionError("no free ports")


def test_a_start_that_is_refused_is_a_failed_replica_and_the_old_one_goes_on(host, name):
    compute = replace(host.compute, name="narrow", endpoint=free_range(2))  # for one replica, and no surge
    add_compute(compute, replace=True)
    one, two = host.spec(name, "v1"), host.spec(name, "v2")
    with host.deployer(compute) as deployer:
        first = host.put(deployer, one)
        deployer.apply(first.record.followed_by(two))
        for failed in (deployer.status(name), *(each for each in deployer.statuses() if each.name == name)):
            assert failed.state == "failed"
            assert "the daemon refuses to start it: " in failed.reason
            assert "allocated" in failed.reason
            assert "\n" not in failed.reason
            assert [(each.version, each.state) for each in failed.replicas] == [
                ("v2", "failed"),
                ("v1", "ready"),
            ]
        deployer.apply(first.record)
        back = until(deployer, name, lambda status: status.state == "running")
        assert [each.version for each in back.replicas] == ["v1"]
        assert len(host.containers(name)) == 1
        with pytest.raises(FailedRolloutError, match="allocated; v1 goes on serving"):
            roll_out(
                deployer,
                make_plan(deployer, host.spec(name, "v3")),
                Origin(folder=host.folder / "v3"),
                Delivery(progress=NO_PROGRESS),
                lambda _: None,
                timeout_s=READY_S,
            )
        deployer.scale(name, 2, 2)
        more = until(deployer, name, lambda status: status.state == "failed")
        assert (more.num_ready, more.num_wanted) == (1, 2)
        deployer.scale(name, 1, 1)
        back = until(deployer, name, lambda status: status.state == "running")
        assert [each.version for each in back.replicas] == ["v1"]
        assert len(host.containers(name)) == 1


def test_ports_that_a_draining_one_holds_are_waited_for(host, name):
    """Without surge, its successor is started before it has ended."""
    compute = replace(host.compute, name="narrow", endpoint=free_range(2))
    config = "deployment: {max_surge_percent: 0}\n"
    with host.deployer(compute) as deployer:
        first = host.put(deployer, host.spec(name, "v1", config=config))
        with client_of(first) as client:
            answers = client.methods.slow(seconds=3.0)
            assert next(answers) == "begun"
            deployer.apply(first.record.followed_by(host.spec(name, "v2", config=config)))
            status = until(deployer, name, lambda status: "refuses" in "".join(reasons(status)))
            assert status.state == "updating"
            assert list(answers) == ["v1"]
        status = until(deployer, name, lambda status: status.state in {"running", "failed"})
        assert [(each.version, each.state) for each in status.replicas] == [("v2", "ready")]


@pytest.mark.parametrize(
    ("endpoint", "limit", "why"),
    [("192.0.2.99", None, "cannot assign requested address"), (None, 4096.0, "CPUs")],
)
def test_a_first_deployment_that_is_refused_leaves_nothing(host, name, endpoint, limit, why):
    spec = host.spec(name, "v1")
    config = {**spec.config, "compute": {**spec.config["compute"], "cpu_limit_cores": limit}}
    spec = replace(spec, config=config)
    host.docker("tag", spec.artifact, image_tag(spec))
    with host.deployer(replace(host.compute, endpoint=endpoint)) as deployer:
        with pytest.raises(DeployError, match=why):
            roll_out(
                deployer,
                make_plan(deployer, spec),
                Origin(folder=host.folder / "v1"),
                Delivery(progress=NO_PROGRESS),
                lambda _: None,
                timeout_s=READY_S,
            )
        with pytest.raises(UnknownDeploymentError):
            deployer.status(name)
    assert host.containers(name) == []
    assert host.docker("volume", "ls", "--quiet", "--filter", f"label=modelkit.deployment={name}") == ""
    assert host.docker("image", "ls", "--quiet", f"modelkit/{name}") == ""


def test_without_surge_a_bad_version_gives_the_old_one_its_place_back(host, name):
    config = "deployment: {max_surge_percent: 0}\n"
    bad = host.spec(name, "bad", load="raise ValueError('the-very-reason')", config=config)
    with host.deployer() as deployer:
        good = host.put(deployer, host.spec(name, "v1", config=config))
        assert host.put(deployer, bad, good.record).state == "failed"
        assert [line.split()[1] for line in host.containers(name) if "v1" in line] == ["exited"]
        deployer.apply(good.record)
        until(deployer, name, lambda status: status.state == "running")
        with Client(f"modelkit://box/{name}") as client:
            assert client.methods.version() == "v1"


def test_a_replica_that_is_killed_is_back_and_the_other_takes_its_calls(host, name):
    with host.deployer() as deployer:
        host.put(deployer, host.spec(name, "v1", num_replicas=2))
        victim = next(line.split()[0] for line in host.containers(name))
        pid = int(host.docker("inspect", "--format", "{{.State.Pid}}", victim))
        with Load(f"modelkit://box/{name}") as load:
            wait_for(lambda: len(load.versions) > 20)
            os.kill(pid, 9)
            status = until(
                deployer,
                name,
                lambda status: (
                    status.num_ready == 2
                    and host.docker("inspect", "--format", "{{.RestartCount}}", victim) == "1"
                ),
            )
            num_calls = len(load.versions)
            wait_for(lambda: len(load.versions) > num_calls + 50)
        assert status.state == "running"
        # Those that were with it when it died may have run: they are told so, and never repeated.
        assert len(load.failures) <= 3
        assert all(error.executed for error in load.failures)


def test_scale_touches_no_replica_that_stays(host, name):
    with host.deployer() as deployer:
        first = host.put(deployer, host.spec(name, "v1"))
        (stays,) = host.containers(name)
        deployer.scale(name, 3, 3)
        assert deployer.status(name).state == "updating"
        status = until(deployer, name, lambda status: status.state != "updating")
        assert status.num_ready == 3
        assert status.record.spec.parsed_config().deployment.min_replicas == 3
        assert stays in host.containers(name)
        deployer.scale(name, 1, 1)
        status = until(deployer, name, lambda status: status.state != "updating")
        assert len(status.replicas) == 1
        assert host.containers(name) == [stays]
        assert status.record.spec == first.record.spec
        with pytest.raises(UsageError, match="no autoscaler") as caught:
            deployer.scale(name, 1, 2)
        assert "--set" not in caught.value.cure  # `scale` has none
        with pytest.raises(UsageError, match="one has to run"):
            deployer.scale(name, 0, 0)


def test_a_running_call_outlives_its_replica_being_replaced(host, name):
    with host.deployer() as deployer:
        first = host.put(deployer, host.spec(name, "v1"))
        with client_of(first) as client:
            answers = client.methods.slow(seconds=6.0)
            assert next(answers) == "begun"
            deployer.apply(first.record.followed_by(host.spec(name, "v2")))
            status = until(deployer, name, lambda status: status.reason)
            assert status.state == "updating"
            assert "a replica that is needed no more lets its calls end" in status.reason
            assert list(answers) == ["v1"]
        status = until(deployer, name, lambda status: status.state == "running")
        assert [each.version for each in status.replicas] == ["v2"]


def test_secrets_are_in_the_replica_and_nowhere_else(host, name, monkeypatch):
    monkeypatch.setenv("WORKER_SECRET", "swordfish")
    monkeypatch.setenv("WORKER_KEY", "open-sesame")
    spec = host.spec(name, "v1", config="secrets: [{env_var: WORKER_SECRET}]\n", api_key_env="WORKER_KEY")
    with host.deployer() as deployer:
        text = deployer.render(Record(spec))
        assert "WORKER_SECRET" in text
        first = host.put(deployer, spec)
        told = [text, "\n".join(line.text for line in deployer.logs(name)), repr(first)]
        container = host.containers(name)[0].split()[0]
        told.append(host.docker("inspect", "--format", "{{json .Config.Labels}} {{json .Args}}", container))
        told.append(host.docker("volume", "inspect", f"modelkit-deployment-{name}-2"))
        assert not any(secret in each for secret in ("swordfish", "open-sesame") for each in told)
        with Client(f"modelkit://box/{name}", api_key="open-sesame") as client:
            assert client.methods.secret() == "swordfish"
            client.methods.say(text="it is swordfish, indeed")
        monkeypatch.delenv("WORKER_SECRET")
        # Whoever reads what a model prints need not know them.
        for follow in (False, True):
            lines = deployer.logs(name, follow=follow)
            assert any(line.text == "it is ***, indeed" for line in lines)
            lines.close()
        # Scaled from where the secrets are not known: as the replicas have them.
        deployer.scale(name, 2, 2)
        until(deployer, name, lambda status: status.num_ready == 2)
        deployer.scale(name, 1, 1)
        until(deployer, name, lambda status: len(status.replicas) == 1)
        # A new value is a reason to replace what is otherwise the same.
        monkeypatch.setenv("WORKER_SECRET", "marlin")
        deployer.apply(deployer.status(name).record)
        until(deployer, name, lambda status: status.state == "running" and len(status.replicas) == 1)
        with Client(f"modelkit://box/{name}", api_key="open-sesame") as client:
            assert client.methods.secret() == "marlin"
        deployer.delete(name)
        monkeypatch.delenv("WORKER_SECRET")
        with pytest.raises(UsageError, match="needs WORKER_SECRET, set neither here"):
            deployer.apply(Record(spec))
        assert host.containers(name) == []


def test_logs_follow_every_replica_and_new_ones_too(host, name):
    with host.deployer() as deployer, host.deployer() as reader:
        first = host.put(deployer, host.spec(name, "v1"))
        lines = reader.logs(name, num_lines=50, follow=True)
        assert any(line.text == "version v1 loads" for line in lines)
        with client_of(first) as client:
            client.methods.say(text="hear, hear")
        assert any((line.replica, line.text) == (f"{name}-v1-1", "hear, hear") for line in lines)
        deployer.scale(name, 2, 2)
        assert any((line.replica, line.text) == (f"{name}-v1-2", "version v1 loads") for line in lines)
        with pytest.raises(DeployError, match="has no replica 'nobody'"):
            deployer.logs(name, replica="nobody")
        deployer.delete(name)
        assert len(list(lines)) < 100  # it ends with the deployment


CUT_OFF = """
import sys, time
from modelkit.computes import find_compute
from modelkit.deploy import Record, open_deployer
deployer = open_deployer(find_compute("box"))
record = Record.from_json(sys.stdin.read())
deployer.apply(record)
while True:
    status = deployer.status(record.spec.name)
    told = [(each.version, each.state) for each in status.replicas]
    print(status.state, told, flush=True)
    time.sleep(600 if ("v2", "ready") in told else 0.1)  # here it is killed
"""


def test_kill_9_in_the_middle_of_a_roll_is_gone_on_with_by_whoever_looks(host, name):
    config = "deployment: {max_surge_percent: 50}\n"
    one, two = (host.spec(name, version, num_replicas=2, config=config) for version in ("v1", "v2"))
    with host.deployer() as deployer:
        first = host.put(deployer, one)
        process = subprocess.Popen(
            [sys.executable, "-c", CUT_OFF], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        process.stdin.write(first.record.followed_by(two).to_json())
        process.stdin.close()
        for line in process.stdout:
            if "('v2', 'ready')" in line:
                break
        process.kill()
        process.wait()
        process.stdout.close()
        assert "updating" in line
        assert sum("v1" in each for each in host.containers(name)) == 2  # neither of them has gone yet

        def listed():  # whoever lists what runs goes on too
            return next(each for each in deployer.statuses() if each.name == name)

        wait_for(lambda: listed().state != "updating")
        assert listed().state == "running"
        assert [each.version for each in listed().replicas] == ["v2", "v2"]
        assert len(host.containers(name)) == 2


def test_two_deployments_side_by_side_do_not_disturb_each_other(host, name):
    other = f"{name}-other"
    with host.deployer() as deployer:
        host.put(deployer, host.spec(name, "v1"))
        try:
            host.put(deployer, host.spec(other, "v2"))
            names = [status.name for status in deployer.statuses()]
            assert [each for each in names if each in {name, other}] == [name, other]
            with Client(f"modelkit://box/{name}") as a, Client(f"modelkit://box/{other}") as b:
                assert (a.methods.version(), b.methods.version()) == ("v1", "v2")
            # As if the other one had been given the port of a replica of this one that has ended.
            target = deployer.status(other).endpoint.routes[0].targets[0]
            with (
                Client(target, headers={"x-modelkit-deployment": name}) as client,
                pytest.raises(UnavailableError, match=f"no replica of {name} is here any more"),
            ):
                client.methods.version()
            deployer.delete(other)
            with Client(f"modelkit://box/{name}") as client:
                assert client.methods.version() == "v1"
            with pytest.raises(UnknownDeploymentError, match=f"has no deployment '{other}'") as caught:
                deployer.status(other)
            assert f"did you mean {name}" in caught.value.cure
        finally:
            with contextlib.suppress(UnknownDeploymentError):
                deployer.delete(other)


def test_what_changes_at_the_same_moment_is_refused(host, name):
    from modelkit.computes.docker_api import docker_host
    from modelkit.deploy.docker.state import read_state, write_state

    with host.deployer() as deployer:
        host.put(deployer, host.spec(name, "v1"))
        with docker_host(host.compute) as connected:
            state = read_state(connected, name, [])
            write_state(connected, state)
            with pytest.raises(DeployError, match="somebody else has changed"):
                write_state(connected, state)


def test_a_stop_that_was_cut_off_is_gone_on_with(host, name):
    from modelkit.computes.docker_api import docker_host
    from modelkit.deploy.docker.state import read_state, write_state

    with host.deployer() as deployer:
        host.put(deployer, host.spec(name, "v1", num_replicas=2))
        with docker_host(host.compute) as connected:
            write_state(connected, replace(read_state(connected, name, []), is_stopping=True))
        host.docker("rm", "--force", host.containers(name)[0].split()[0])
        status = deployer.status(name)
        assert status.state == "stopping"
        assert f"modelkit stop {name}" in status.reason
        deployer.delete(name)
        assert host.containers(name) == []
        with pytest.raises(UnknownDeploymentError):
            deployer.status(name)


def test_images_of_versions_that_cannot_come_back_are_untagged(host, name):
    with host.deployer() as deployer:
        specs = [host.spec(name, version) for version in ("v1", "v2", "v3")]
        deployer.apply(Record(specs[0]))
        for spec in specs:
            host.docker("tag", spec.artifact, image_tag(spec))

        def tags():
            form = "{{.Repository}}:{{.Tag}}"
            return sorted(host.docker("image", "ls", "--format", form, f"modelkit/{name}").split())

        first = until(deployer, name, lambda status: status.state == "running")
        assert tags() == sorted(map(image_tag, specs))  # brought meanwhile: one of them may be deployed next
        host.put(deployer, specs[1], first.record)
        assert tags() == sorted(map(image_tag, specs[:2]))
        deployer.delete(name)
        assert host.docker("image", "ls", "--quiet", f"modelkit/{name}") == ""


def test_a_version_that_is_made_again_leaves_no_nameless_image(host, name):
    spec = host.spec(name, "v1")
    base = host.docker("create", spec.artifact)

    def made_again(number):
        return host.docker("commit", "--change", f"LABEL made={number}", base, image_tag(spec))

    try:
        one = made_again(1)
        with host.deployer() as deployer:
            first = host.put(deployer, spec.delivered(one))
            two = made_again(2)
            assert one in host.docker("image", "ls", "--all", "--quiet", "--no-trunc").split()
            host.put(deployer, spec.delivered(two), first.record)
            assert one not in host.docker("image", "ls", "--all", "--quiet", "--no-trunc").split()
            deployer.delete(name)
        there = host.docker("image", "ls", "--all", "--quiet", "--no-trunc").split()
        assert two not in there
        assert spec.artifact in there  # it has a name of its own
    finally:
        host.docker("rm", base)


def test_the_record_survives_a_prune_of_volumes(host, name):
    with host.deployer() as deployer:
        first = host.put(deployer, host.spec(name, "v1"))
        volumes = host.docker(
            "volume", "ls", "--quiet", "--filter", f"label=modelkit.deployment={name}"
        ).split()
        host.docker("volume", "rm", *volumes)
        assert deployer.status(name).record == first.record
        # And what a newer modelkit may write is left alone, until somebody stops it.
        host.docker(
            "volume",
            "create",
            *("--label", f"modelkit.deployment={name}", "--label", "modelkit.deployment.number=99"),
            *("--label", "modelkit.deployment.record={"),
        )
        for status in (deployer.status(name), *(each for each in deployer.statuses() if each.name == name)):
            assert (status.state, status.num_ready, status.record.is_readable) == ("running", 1, False)
            assert status.reason == "its record cannot be read; a newer modelkit may have written it"
        with pytest.raises(DeployError, match="cannot be scaled: its record cannot be read"):
            deployer.scale(name, 2, 2)
        deployer.delete(name)
        assert host.containers(name) == []
        assert host.docker("volume", "ls", "--quiet", "--filter", f"label=modelkit.deployment={name}") == ""


def test_looking_for_gpus_ends_and_leaves_nothing(host):
    """On a machine with none: a container that does not end stands for an nvidia-smi that hangs."""
    from modelkit.computes.docker_api import docker_host
    from modelkit.deploy.docker.gpus import LOOKING, _answer, sweep

    with docker_host(host.compute) as connected:
        asking = connected.client.containers.create(
            host.base_image, entrypoint=["sleep", "600"], labels={LOOKING: "true"}
        )
        try:
            with pytest.raises(DeployError, match="has not answered within 1 s"):
                _answer(connected, asking, timeout_s=1)
            sweep(connected)  # it may be somebody's who waits
            assert [each["Id"] for each in connected.containers(LOOKING)] == [asking.id]
            sweep(connected, older_than_s=0)
            assert connected.containers(LOOKING) == []
        finally:
            host.docker("rm", "--force", asking.id, check=False)


def test_a_machine_without_gpus_says_so(host, name):
    spec = host.spec(name, "v1")
    config = {**spec.config, "compute": {**spec.config["compute"], "num_accelerators": 1}}
    with host.deployer() as deployer, pytest.raises(DeployError, match="cannot give a GPU") as caught:
        deployer.apply(Record(replace(spec, config=config)))
    assert "nvidia-container-toolkit" in caught.value.cure
    assert host.containers(name) == []
    looking = host.docker("ps", "--all", "--quiet", "--filter", f"ancestor={spec.artifact}")
    assert looking == ""


def test_check_says_what_the_host_is(host):
    with host.deployer() as deployer:
        report = deployer.check()
    assert report.problems == ()
    assert report.cpu_total == os.cpu_count()
    assert dict(report.versions)["Docker"]


# ------------------------------------------------------------------------------------------- where the image comes from


def version_spec(name, reference):
    """The specification of an uploaded version, and where its content is."""
    with open_version(version_reference(reference)) as version:
        spec = DeploymentSpec(
            name=name,
            model_id=version.model_id,
            version="v1",
            digest=version.index.digest,
            config={**version.config, "deployment": {"min_replicas": 1, "max_replicas": 1}},
        )
        return spec, Origin(reference=str(version_reference(reference).at(digest=version.index.digest)))


def serves_from(host, name, reference, *, artifact):
    spec, origin = version_spec(name, reference)
    lines = []
    with host.deployer() as deployer:
        delivered = deployer.deliver(spec, origin, Delivery(progress=NO_PROGRESS, on_line=lines.append))
        assert artifact in delivered
        host.put(deployer, spec.delivered(delivered))
        with Client(f"modelkit://box/{name}") as client:
            assert client.methods.version() == "uploaded"
        deployer.delete(name)
    return delivered


@pytest.fixture(scope="module")
def uploaded(host, registry, tmp_path_factory):
    """The same version in a layout, in a registry, and in a layout without its image."""
    folder = host.write("uploaded")
    place = tmp_path_factory.mktemp("versions")
    references = {
        "layout": f"oci:{place}/chat",
        "registry": f"{registry.host}/docker-compute/chat",
        "no image": f"oci:{place}/bare",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELKIT_CACHE_DIR", str(place / "cache"))
        for what, reference in references.items():
            options = ["--no-image"] if what == "no image" else ["--builder", "docker"]
            assert main(["upload", str(folder), "--to", reference, *options]) == 0
        host.docker.tags.add("worker:dev")
        yield references


def test_a_version_in_a_layout_is_sent_to_the_host(host, name, uploaded):
    image = serves_from(host, name, uploaded["layout"], artifact="sha256:")
    # It is the image that was built here, which the daemon had all the time; without it, it is sent.
    host.docker("image", "rm", "--force", "worker:dev", check=False)
    host.docker("image", "rm", "--force", image, check=False)
    again = serves_from(host, name, uploaded["layout"], artifact="sha256:")
    assert host.docker("image", "ls", "--quiet", f"modelkit/{name}") == ""
    host.docker("image", "rm", "--force", again, check=False)


def test_a_version_in_a_registry_is_pulled_by_its_digest(host, name, uploaded):
    artifact = serves_from(host, name, uploaded["registry"], artifact="/docker-compute/chat@sha256:")
    host.docker("image", "rm", "--force", artifact, check=False)


def test_a_version_without_an_image_is_built_on_the_host(host, name, uploaded):
    serves_from(host, name, uploaded["no image"], artifact="sha256:")


def test_weights_of_a_folder_are_in_the_image(host, name):
    folder = host.write("weighty", config="checkpoints: {type: local, path: checkpoint}\n")
    (folder / "checkpoint").mkdir(exist_ok=True)
    (folder / "checkpoint/weights.txt").write_text("seven")
    spec = host.spec(
        name,
        "weighty",
        load="self.found = (self.checkpoint_dir / 'weights.txt').read_text(); print(self.found, flush=True)",
        config="checkpoints: {type: local, path: checkpoint}\n",
    )
    with host.deployer() as deployer:
        assert host.put(deployer, spec).state == "running"
        assert "seven" in [line.text for line in deployer.logs(name)]


def test_a_lost_image_says_so(host, name):
    spec = host.spec(name, "v1")
    with host.deployer() as deployer, pytest.raises(DeployError, match="has lost the image"):
        deployer.apply(Record(spec.delivered(f"sha256:{'0' * 64}")))


# -------------------------------------------------------------------------------------------------------- over ssh


@pytest.fixture
def sshd(tmp_path, monkeypatch):
    """A real sshd on loopback with keys of its own, and an `ssh` that knows no other configuration than the test's."""
    if not Path("/usr/sbin/sshd").exists():
        pytest.skip("sshd is not installed (apt-get install openssh-server)")
    for key in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    (tmp_path / "authorized").write_text((tmp_path / "user.pub").read_text())
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin yes\n"
    )
    kind, key = (tmp_path / "host.pub").read_text().split()[:2]
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (tmp_path / "ssh_config").write_text(
        f"Host *\n  IdentityFile {tmp_path}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {tmp_path}/known_hosts\n"
        "  StrictHostKeyChecking yes\n"
    )
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin/ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: is_open(port))
        yield tmp_path, f"ssh://{getpass.getuser()}@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_host_is_reached_over_ssh(host, name, sshd):
    _, address = sshd
    compute = Compute(name="far", kind="docker", address=address)
    add_compute(compute, replace=True)
    spec = host.spec(name, "v1")
    with host.deployer(compute) as deployer:
        assert deployer.check().problems == ()
        folder = Origin(folder=host.folder / "v1")
        assert deployer.deliver(spec, folder, Delivery(progress=NO_PROGRESS)) == spec.artifact
        assert host.put(deployer, spec).state == "running"
        with Client(f"modelkit://far/{name}") as client:
            assert client.methods.version() == "v1"
        assert "version v1 loads" in [line.text for line in deployer.logs(name)]
        lines = deployer.logs(name, follow=True)
        next(lines)
        lines.close()
        deployer.delete(name)
    assert host.containers(name) == []


def test_what_ssh_refuses_is_told_with_its_cure(host, sshd):
    folder, address = sshd

    def problem():
        with host.deployer(Compute(name="far", kind="docker", address=address)) as deployer:
            ((message, cure),) = deployer.check().problems
        return f"{message}; {cure}"

    known = (folder / "known_hosts").read_text()
    (folder / "known_hosts").write_text("")
    assert "its host key is not known here" in problem()
    (folder / "known_hosts").write_text(known)
    (folder / "authorized").write_text((folder / "stranger.pub").read_text())
    assert "does not let this user in" in problem()
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    address += "/no/such/docker.sock"
    assert "Docker" in problem()
    address = "ssh://127.0.0.1:1"
    assert "no ssh server answers there" in problem()


TUNNEL = """
import sys, time
from modelkit.computes.ssh_tunnel import ssh_tunnel
with ssh_tunnel(sys.argv[1]) as address:
    print(address, flush=True)
    time.sleep(600)
"""


def test_kill_9_leaves_no_tunnel(sshd):
    _, address = sshd
    process = subprocess.Popen([sys.executable, "-c", TUNNEL, address], stdout=subprocess.PIPE, text=True)
    tunnel = Path(process.stdout.readline().strip().removeprefix("unix://"))
    assert tunnel.is_socket()
    process.kill()
    process.wait()
    process.stdout.close()

    def is_carried():
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(tunnel)) == 0

    wait_for(lambda: not is_carried())
    with ssh_tunnel(address):
        assert not tunnel.exists()  # swept by the next one


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("unix:///no/such.sock", "no Docker daemon answers there"),
        ("tcp://127.0.0.1:1", "no Docker daemon answers there"),
        ("ftp://box", "is not the address of a Docker host"),
        ("ssh://ada:secret@box", "is not the address of a Docker host"),
    ],
)
def test_a_host_that_cannot_be_reached_says_why(host, address, what):
    with host.deployer(Compute(name="off", kind="docker", address=address)) as deployer:
        ((message, cure),) = deployer.check().problems
    assert what in message
    assert cure


# -------------------------------------------------------------------------------------------------------- over TLS


@pytest.fixture
def tls_port(tmp_path):
    """The daemon behind TLS on loopback, as dockerd itself would listen: it asks for a certificate of its own authority."""
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", certificates / "key.pem", "-out", certificates / "cert.pem"]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    shutil.copy(certificates / "cert.pem", certificates / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    async def relay(reader, writer):
        try:
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader, writer):
        far_reader, far_writer = await asyncio.open_unix_connection("/var/run/docker.sock")
        await asyncio.gather(relay(reader, far_writer), relay(far_reader, writer), return_exceptions=True)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    starting = asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    server = asyncio.run_coroutine_threadsafe(starting, loop).result(30)

    async def end():
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    yield server.sockets[0].getsockname()[1], certificates
    asyncio.run_coroutine_threadsafe(end(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_host_is_reached_over_tls(host, tls_port, tmp_path, monkeypatch):
    port, certificates = tls_port
    compute = Compute(name="tls", kind="docker", address=f"tcp://127.0.0.1:{port}")

    def problem(found=compute):
        with host.deployer(found) as deployer:
            problems = deployer.check().problems
        return "; ".join(": ".join(each) for each in problems)

    assert "DOCKER_CERT_PATH" in problem()  # without TLS
    monkeypatch.setenv("DOCKER_CERT_PATH", str(certificates))
    assert problem() == ""
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    assert "which cannot be read" in problem()
    monkeypatch.delenv("DOCKER_CERT_PATH")
    # The authority alone: the daemon wants to know who asks.
    assert problem(replace(compute, ca_path=str(certificates / "ca.pem")))
