"""The private Ray of this machine: started by the first who needs it, shared, and ended with everything of it."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from modelkit import Client
from modelkit.computes import find_compute, list_computes, locate
from modelkit.computes.store import computes_path
from modelkit.deploy import open_deployer
from modelkit.deploy.base import Delivery, Origin
from modelkit.deploy.ray_serve import local
from modelkit.deploy.ray_serve.local import end_local_ray, ensure_local_ray, local_ray
from modelkit.deploy.ray_serve.processes import find_processes
from modelkit.deploy.record import DeploymentSpec, Record
from modelkit.errors import CallError, DeployError, UsageError
from modelkit.progress import NO_PROGRESS
from modelkit.versions.folder import read_folder
from paths import ROOT

PROBE = ROOT / "tests" / "data" / "models" / "probe"
WAIT_S = 240.0

pytestmark = pytest.mark.timeout(600)
needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="ray is not installed (pip install 'modelkit-sdk[ray]')"
)


@pytest.fixture(scope="module")
def own_ray(tmp_path_factory):
    """Started by a process of its own, which ends at once: what is found here has outlived it."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MODELKIT_CONFIG_DIR", str(tmp_path_factory.mktemp("config")))
    code = "from modelkit.deploy.ray_serve.local import ensure_local_ray; ensure_local_ray(print)"
    try:
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert run.stdout.splitlines()[0] == "starting Ray on this machine"
        yield find_compute("local-ray")
    finally:
        end_local_ray()
        patch.undo()


def wait_until(ask, is_good):
    deadline = time.monotonic() + WAIT_S
    while not is_good(answer := ask()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)
    return answer


@needs_ray
def test_it_is_found_again_and_its_state_is_for_its_owner_only(own_ray):
    lines = []
    assert ensure_local_ray(lines.append) == own_ray == local_ray()
    assert lines == []
    path = computes_path().with_name("local-ray.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = json.loads(path.read_text())["token"]
    assert token not in computes_path().read_text()


@needs_ray
def test_who_gives_up_waiting_for_it_leaves_it_running(own_ray, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "_wait_until_ready", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ensure_local_ray(lambda _: None)
    assert local_ray() == own_ray


@needs_ray
def test_a_deployment_gets_the_secrets_of_who_deploys_it(own_ray, monkeypatch):
    monkeypatch.setenv("GREETING", "hello from the shell")
    read = read_folder(PROBE)
    spec = DeploymentSpec(
        name="probe",
        model_id="probe",
        version="v1",
        digest=read.content.package.digest,
        config=dict(read.content.config),
    )
    deployer = open_deployer(own_ray)
    artifact = deployer.deliver(spec, Origin(folder=PROBE), Delivery(progress=NO_PROGRESS))
    deployer.apply(Record(spec.delivered(artifact)))
    wait_until(lambda: deployer.status("probe").state, lambda state: state == "running")
    endpoint = locate("modelkit://local-ray/probe")
    assert endpoint.http_url.startswith("http://127.0.0.1:")
    (route,) = endpoint.routes
    # Ports that no other Ray of this machine has: it would get some of the calls.
    assert int(route.targets[0].rpartition(":")[2]) in range(*local._read_state().replica_ports)
    with Client(route.targets[0], headers=dict(route.metadata)) as client:
        assert client.predict(method="secret") == "hello from the shell"
    assert "hello from the shell" not in str(deployer._api.instance())
    # What is put in its place without a delivery, as a rollback does, gets what the shell has by then.
    monkeypatch.setenv("GREETING", "hello again")
    deployer.apply(Record(replace(spec.delivered(artifact), version="v0")))

    def greeting():
        with suppress(CallError, DeployError), Client("modelkit://local-ray/probe", timeout_s=60) as client:
            return client.predict(method="secret")

    wait_until(greeting, lambda answer: answer == "hello again")
    deployer.close()


@needs_ray
def test_the_end_of_it_leaves_nothing(own_ray):
    state = local._read_state()
    processes = find_processes(local._mark(state), folder=Path(state.folder))
    # What a crash leaves is ended too.
    raylet = next(pid for pid in processes if b"raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(raylet, signal.SIGKILL)
    assert end_local_ray()
    assert find_processes(local._mark(state), folder=Path(state.folder)) == []
    assert not Path(state.folder).exists()
    assert local_ray() is None
    assert list_computes() == []
    assert not end_local_ray()


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(local, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="needs Ray") as caught:
        ensure_local_ray(lambda _: None)
    assert caught.value.cure == "pip install 'modelkit-sdk[ray]'"
