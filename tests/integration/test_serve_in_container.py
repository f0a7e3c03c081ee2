"""`modelkit serve --in-container`: it answers, and the container is gone whatever ends it."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fixtures_docker import write_folder
from modelkit import Client
from modelkit.cli.app import main

pytestmark = pytest.mark.timeout(300)

START_S = 120.0


@pytest.fixture(scope="module")
def folder(docker, base_image, tmp_path_factory):
    made = write_folder(
        tmp_path_factory.mktemp("served") / "served",
        base_image,
        "checkpoints: {type: local, path: checkpoint}\nserver: {drain_timeout: 20s}\n",
    )
    (made / "checkpoint").mkdir()
    (made / "checkpoint/weights.txt").write_text("seven")
    yield made
    docker.tags.add("worker:dev")


class Serving:
    """A `modelkit serve --in-container` process."""

    def __init__(self, folder, *arguments, env=None):
        command = [
            sys.executable,
            "-m",
            "modelkit",
            "serve",
            str(folder),
            "--in-container",
            "--port",
            "0",
            "--json",
        ]
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
        self.said = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.said.append(line)

    def ready(self):
        line = self.process.stdout.readline()
        assert line, self.output()
        return json.loads(line)

    def wait(self):
        code = self.process.wait(timeout=START_S)
        self._reader.join()
        return code

    def output(self):
        self.process.wait(timeout=START_S)
        self._reader.join()
        return "".join(self.said)

    def until(self, text):
        deadline = time.monotonic() + START_S
        while not any(text in line for line in self.said):
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)


@contextlib.contextmanager
def serving(folder, *arguments, **options):
    started = Serving(folder, *arguments, **options)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.send_signal(signal.SIGTERM)
            started.wait()
        started.process.stdout.close()
        started.process.stderr.close()


def eventually_none(docker):
    deadline = time.monotonic() + 40
    while left := docker.containers():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_answers_and_a_signal_ends_it(docker, folder, number):
    with serving(folder) as served:
        ready = served.ready()
        assert ready["address"].startswith("127.0.0.1:")
        assert docker.containers() == [ready["container"]]
        with Client(ready["address"]) as client:
            assert client.methods.greet(name="Ada") == "Hello, Ada!"
            assert client.methods.weights() == "seven"
        served.process.send_signal(number)
        assert served.wait() == 0
    assert docker.containers() == []
    assert "│ " in served.output()  # the container's own lines


def test_ctrl_c_lets_a_running_call_end(docker, folder):
    with serving(folder) as served, Client(served.ready()["address"]) as client:
        answers = client.methods.slow(seconds=2.0)
        assert next(answers) == "begun"
        served.process.send_signal(signal.SIGINT)
        assert list(answers) == ["done"]
        assert served.wait() == 0
    assert docker.containers() == []


def test_ctrl_c_twice_does_not_wait(docker, folder):
    with serving(folder) as served, Client(served.ready()["address"]) as client:
        answers = client.methods.slow(seconds=600.0)
        assert next(answers) == "begun"
        served.process.send_signal(signal.SIGINT)
        served.until("once more cancels")
        time.sleep(0.5)  # for docker to hand the first one on
        served.process.send_signal(signal.SIGINT)
        assert served.wait() == 0
    assert docker.containers() == []


def test_ctrl_c_while_it_loads(docker, folder, tmp_path, base_image):
    slow = write_folder(tmp_path / "slow", base_image)
    (slow / "model.py").write_text(
        "import time\nfrom modelkit import Model, method\n\n\nclass Slow(Model):\n    def load(self) -> None:\n"
        "        print('loading begun', flush=True)\n        time.sleep(600)\n\n"
        "    @method\n    def f(self) -> int:\n        return 1\n"
    )
    with serving(slow) as served:
        served.until("loading begun")
        served.process.send_signal(signal.SIGINT)
        assert served.wait() == 130
    assert docker.containers() == []


def test_a_model_that_cannot_be_loaded(docker, tmp_path, base_image):
    broken = write_folder(tmp_path / "broken", base_image)
    (broken / "model.py").write_text(
        "from modelkit import Model, method\n\n\nclass Broken(Model):\n    def load(self) -> None:\n"
        "        raise ValueError('the-very-reason')\n\n    @method\n    def f(self) -> int:\n        return 1\n"
    )
    with serving(broken) as served:
        assert served.wait() == 1
    assert "the-very-reason" in served.output()
    assert "has ended with exit code" in served.output()
    assert docker.containers() == []


def test_kill_9_leaves_no_container(docker, folder):
    with serving(folder) as served:
        served.ready()
        served.process.kill()
        served.wait()
    eventually_none(docker)


def test_a_container_that_is_left_behind_is_removed_by_the_next(docker, folder, base_image):
    import socket

    gone = subprocess.Popen(["true"])
    gone.wait()
    labels = ("--label", f"modelkit.serve.host={socket.gethostname()}")
    docker(
        *("run", "--detach", *labels, "--label", f"modelkit.serve.process={gone.pid}-1"),
        *(base_image, "sleep", "600"),
    )
    assert len(docker.containers()) == 1
    with serving(folder) as served:
        ready = served.ready()
        assert docker.containers() == [ready["container"]]


def test_a_machine_without_a_gpu_runtime_gets_the_cure(docker, folder):
    with serving(folder, "--set", "compute.num_accelerators=1") as served:
        assert served.wait() == 1
    assert "asks for a GPU, and Docker on this machine cannot give any" in served.output()
    assert "nvidia-container-toolkit" in served.output()
    assert docker.containers() == []


def test_a_port_that_is_taken(docker, folder):
    with serving(folder) as first:
        port = first.ready()["address"].rpartition(":")[2]
        with serving(folder, "--port", port, "--no-http") as second:
            assert second.wait() == 1
        assert f"port {port} of 127.0.0.1 is in use" in second.output()


def test_weights_that_are_not_in_the_image_are_mounted(docker, folder, tmp_path):
    """From modelkit's cache, whose checkpoints are links out of their folder."""
    (tmp_path / "weights.txt").write_text("from afar")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    sha256 = hashlib.sha256(b"from afar").hexdigest()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/weights.txt"
        override = f"checkpoints={{type: http, files: [{{url: '{url}', sha256: {sha256!r}}}]}}"
        environment = {"HF_HUB_OFFLINE": "0", "MODELKIT_CACHE_DIR": str(tmp_path / "cache")}
        with (
            serving(folder, "--set", override, env=environment) as served,
            Client(served.ready()["address"]) as client,
        ):
            assert client.methods.weights() == "from afar"
        server.shutdown()
    assert not (folder / "modelkit.lock").exists()


def test_a_version_is_served_from_a_container(docker, base_image, tmp_path, monkeypatch):
    """Its weights were in a folder beside the model's, which modelkit.lock names, and are in the version now."""
    monkeypatch.setenv("MODELKIT_REGISTRY_DIR", str(tmp_path / "versions"))
    monkeypatch.setenv("MODELKIT_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/weights.txt").write_text("eight")
    made = write_folder(tmp_path / "made", base_image, "checkpoints: {type: local, path: ../weights}\n")
    assert main(["upload", str(made), "--no-image", "--set", "server.max_queue=5"]) == 0
    docker.tags.add("worker:dev")
    with serving("worker:v1") as server, Client(server.ready()["address"]) as client:
        assert client.methods.weights() == "eight"
