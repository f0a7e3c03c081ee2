"""`modelkit serve` as a process: what it prints, how it stops, what it leaves behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import grpc
import pytest

from modelkit import Client, ModelkitError, codec
from modelkit.inference.v1 import inference_pb2 as pb
from modelkit.inference.v1 import inference_pb2_grpc as pb_grpc

MODEL = """
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from modelkit import Model, method

log = logging.getLogger("the-authors-own")


class Greeter(Model):
    @method
    def greet(self, name: str) -> str:
        log.info("greeting %s", name)
        return f"Hello, {name}!"

    @method
    def fail(self) -> str:
        raise RuntimeError("the reason")

    @method
    def hold(self, until: str) -> str:
        log.info("holding")
        while not Path(until).exists():
            time.sleep(0.02)
        return "done"

    @method
    def drip(self) -> Iterator[int]:
        for number in range(100_000):
            yield number
            time.sleep(0.01)
"""
NEEDY_INIT = """
from modelkit import Model, method


class A(Model):
    def __init__(self, x): ...

    @method
    def f(self) -> int: ...
"""
FAILING_INIT = NEEDY_INIT.replace("self, x): ...", 'self): raise ValueError("no")')
# How long anything may take on a machine that is busy with other tests.
START_S = 90.0


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "greeter"
    path.mkdir()
    (path / "config.yaml").write_text("model: {id: greeter}\nserver: {drain_timeout: 60s}\n")
    (path / "model.py").write_text(MODEL)
    return path


class Serving:
    """A `modelkit serve` process; its output is collected as it comes."""

    def __init__(self, folder, *arguments, env=None):
        command = [sys.executable, "-m", "modelkit", "serve", str(folder), "--port", "0", *arguments]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.out, self.err = [], []
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream, lines):
        for line in stream:
            lines.append(line)

    def wait_for(self, text, count=1):
        """Wait for a text on stderr, the `count`-th time, and return its line."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            found = [line for line in list(self.err) if text in line]
            if len(found) >= count:
                return found[count - 1]
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no {text!r} in: {''.join(self.err)}")

    def wait_for_watch(self):
        """Wait until the watcher, which is this process, would notice a change."""
        deadline = time.monotonic() + START_S
        infos = Path(f"/proc/{self.process.pid}/fdinfo")
        while not any("inotify wd:" in path.read_text() for path in infos.iterdir()):
            assert time.monotonic() < deadline, self.stderr
            time.sleep(0.02)

    def wait_for_out(self, text):
        """Wait for a text on stdout."""
        deadline = time.monotonic() + START_S
        while text not in self.stdout:
            assert time.monotonic() < deadline, f"no {text!r} on stdout"
            time.sleep(0.02)

    def address(self, count=1):
        return self.wait_for("serving greeter at ", count).partition(" at ")[2].partition(" (")[0]

    def end(self, number=signal.SIGTERM, timeout_s=START_S):
        self.process.send_signal(number)
        return self.wait(timeout_s)

    def wait(self, timeout_s=START_S):
        code = self.process.wait(timeout_s)
        for reader in self._readers:
            reader.join(START_S)
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    @property
    def stderr(self):
        return "".join(self.err)

    @property
    def stdout(self):
        return "".join(self.out)


@contextlib.contextmanager
def serving(folder, *arguments, env=None):
    server = Serving(folder, *arguments, env=env)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.wait()


@contextlib.contextmanager
def stub_of(address):
    with grpc.insecure_channel(address) as channel:
        yield pb_grpc.InferenceServiceStub(channel)


def call(stub, method_name, /, **arguments):
    return stub.Predict.future(
        pb.PredictRequest(method=method_name, arguments=codec.encode_arguments(arguments))
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_leaves_with_zero(folder, number):
    with serving(folder, "--local") as server:
        with Client(server.address()) as client:
            assert client.predict(name="Ada", method="greet") == "Hello, Ada!"
        assert server.end(number) == 0
        assert "stopped" in server.stderr
        assert "Traceback" not in server.stderr


def test_json_says_the_address_when_ready(folder):
    with serving(folder, "--json") as server:
        address = server.address()
        assert server.end() == 0
        line = json.loads(server.stdout)
        assert (line["model_id"], line["address"]) == ("greeter", address)
        assert line["methods"] == ["drip", "fail", "greet", "hold"]


def test_a_drain_lets_the_running_call_end_and_refuses_new_ones(folder):
    with serving(folder) as server, stub_of(server.address()) as stub:
        running = call(stub, "hold", until=str(folder / "end"))
        server.wait_for("holding")
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("letting 1 running call end; once more cancels it")
        with pytest.raises(grpc.RpcError) as caught:
            call(stub, "greet", name="late").result(timeout=START_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        (folder / "end").touch()
        assert codec.decode(running.result(timeout=START_S).result) == "done"
        assert server.wait() == 0


def test_a_second_signal_cancels_what_still_runs(folder):
    with serving(folder) as server, stub_of(server.address()) as stub:
        stream = stub.Generate(pb.GenerateRequest(method="drip"))
        next(stream)
        server.process.send_signal(signal.SIGINT)
        server.wait_for("once more cancels it")
        assert server.end(signal.SIGINT) == 0
        with pytest.raises(grpc.RpcError):
            list(stream)
        assert stream.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


def test_a_call_that_nothing_can_stop_is_left_behind_and_said(folder):
    with serving(folder) as server, stub_of(server.address()) as stub:
        stuck = call(stub, "hold", until=str(folder / "never"))
        server.wait_for("holding")
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("once more cancels it")
        assert server.end() == 0
        assert "1 call was still running in threads and left behind" in server.stderr
        assert stuck.exception(START_S) is not None


def write_load(folder, body):
    text = MODEL.replace("class Greeter(Model):", "class Greeter(Model):\n" + textwrap.indent(body, "    "))
    (folder / "model.py").write_text(text)


@pytest.mark.parametrize(
    "body",
    [
        "def load(self):\n    time.sleep(600)\n",
        "async def load(self):\n    import asyncio\n    await asyncio.sleep(600)\n",
        "def load(self):\n    time.sleep(600)\ndef close(self):\n    print('closed', flush=True)\n",
    ],
)
def test_a_signal_while_loading_ends_it_promptly(folder, body):
    write_load(folder, body)
    (folder / "config.yaml").write_text("model: {id: greeter}\nserver: {max_concurrency: 1}\n")
    with serving(folder) as server:
        server.wait_for("loading Greeter")
        time.sleep(0.3)
        assert server.end() == 130
        assert "serving" not in server.stderr
        assert ("closed" in server.stdout) == ("closed" in body)


def test_a_load_that_fails_says_why_and_frees_the_port(folder):
    write_load(folder, "def load(self):\n    raise RuntimeError('no weights')\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving(folder, "--port", str(port)) as server:
        assert server.wait(START_S) == 1
        assert "Greeter.load raised RuntimeError: no weights" in server.stderr
        assert "serving greeter" not in server.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("class Greeter(:\n", 2, "broken Python"),
        ("from modelkit import Model, method\nclass A(Model):\n    @method\n    def f(self, x): ...\n", 2, "has no type"),
        (NEEDY_INIT, 2, "model.py:6:24"),
        (FAILING_INIT, 1, "making a A raised ValueError: no"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_made_is_explained(folder, text, code, words):
    (folder / "model.py").write_text(text)
    with serving(folder) as server:
        assert server.wait(START_S) == code
        assert words in server.stderr
        assert "Traceback" not in server.stderr


def test_a_port_that_is_taken_is_a_clear_error(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serving(folder, "--port", str(port)) as server:
            assert server.wait(START_S) == 1
            assert f"cannot listen on 127.0.0.1:{port}: the port is taken" in server.stderr
            assert "--port 0" in server.stderr
            assert "add_port" not in server.stderr, "gRPC's own line about it"


def test_an_open_address_without_a_key_is_warned_of(folder):
    with serving(folder, "--host", "0.0.0.0") as server:
        assert server.address().startswith("0.0.0.0:")
        assert "can call the model" in server.stderr
        server.end()
    with serving(folder, "--host", "0.0.0.0", "--api-key-env", "KEY", env={"KEY": "k3y\n"}) as server:
        address = server.address().replace("0.0.0.0", "127.0.0.1")
        with Client(address, api_key="k3y") as client:
            assert client.predict(name="A", method="greet") == "Hello, A!"
        assert "can call the model" not in server.stderr
        assert "k3y" not in server.stderr
        server.end()


def test_the_log_is_json_and_each_line_has_the_calls_id(folder):
    with serving(folder, "--log-format", "json") as server, stub_of(server.address()) as stub:
        for name, arguments in (("greet", {"name": "Ada"}), ("fail", {})):
            request = pb.PredictRequest(method=name, arguments=codec.encode_arguments(arguments))
            with contextlib.suppress(grpc.RpcError):
                stub.Predict(request, metadata=(("x-request-id", f"id-{name}"),))
        server.end()
        lines = [json.loads(line) for line in server.stderr.splitlines() if line.startswith("{")]
        greeting = next(line for line in lines if line["message"] == "greeting Ada")
        assert (greeting["request_id"], greeting["logger"]) == ("id-greet", "the-authors-own")
        failure = next(line for line in lines if "exception" in line)
        assert failure["request_id"] == "id-fail"
        assert "RuntimeError: the reason" in failure["exception"]
        ended = next(line for line in lines if line.get("code") == "INTERNAL")
        assert (ended["method"], ended["request_id"]) == ("fail", "id-fail")


def test_the_text_log_has_the_calls_id_too(folder):
    with serving(folder) as server, stub_of(server.address()) as stub:
        request = pb.PredictRequest(method="greet", arguments=codec.encode_arguments({"name": "Ada"}))
        stub.Predict(request, metadata=(("x-request-id", "my-id"),))
        assert "info [my-id] greeting Ada" in server.wait_for("greeting Ada")
        server.end()


def test_reload_starts_again_after_a_change_also_after_broken_python(folder):
    with serving(folder, "--reload") as server:
        server.address()
        server.wait_for_watch()
        (folder / "model.py").write_text("class Broken(:\n")
        server.wait_for("broken Python")
        server.wait_for(f"the server has ended; still watching {folder}, a change starts it again")
        (folder / "model.py").write_text(MODEL.replace("Hello", "Goodbye"))
        with Client(server.address(2)) as client:
            assert client.predict(name="Ada", method="greet") == "Goodbye, Ada!"
        assert server.end(signal.SIGINT) == 0
        assert server.stderr.count("the server has ended") == 1
        assert leftovers(folder) == []


def leftovers(folder):
    """The processes that serve a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (path / "cmdline").read_bytes():
                found.append(path.name)
    return found


def all_gone(folder):
    """Wait for the processes that serve a folder to end."""
    deadline = time.monotonic() + START_S
    while (left := leftovers(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not left


def kill_leftovers(folder):
    for process in leftovers(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


def test_a_folder_that_is_not_there(tmp_path):
    for arguments in ((), ("--reload",)):
        with serving(tmp_path / "none", *arguments) as server:
            assert server.wait(START_S) == 2
            assert server.stderr.startswith(f"error: there is no {tmp_path / 'none'}\n")


def test_the_config_file_stands_for_its_folder(folder):
    with serving(folder / "config.yaml", "--reload") as server:
        server.wait_for(f"watching {folder} for changes")
        with Client(server.address()) as client:
            assert client.predict(name="Ada", method="greet") == "Hello, Ada!"
        server.wait_for_watch()
        (folder / "model.py").write_text(MODEL.replace("Hello", "Goodbye"))
        with Client(server.address(2)) as client:
            assert client.predict(name="Ada", method="greet") == "Goodbye, Ada!"
        assert server.end() == 0


def test_a_watcher_that_is_killed_takes_the_server_along(folder):
    with serving(folder, "--reload") as server:
        server.address()
        server.process.kill()
        server.process.wait()
        try:
            assert all_gone(folder)
        finally:
            kill_leftovers(folder)
            server.wait()
        assert "stopped" in server.stderr, "it drained"


def test_what_is_doubtful_is_said_before_the_model_is_served(folder):
    (folder / "config.yaml").write_text(
        "model: {id: greeter}\ndeployment: {scale_to_zero_after: 5m}\n"
        "secrets: [{env_var: SURELY_NOT_SET, description: for the search}, {env_var: PATH}]\n"
    )
    with serving(folder) as server:
        server.address()
        server.end()
    assert "warning: scale_to_zero_after has no effect while min_replicas is 1" in server.stderr
    assert "config.yaml:2:" in server.stderr
    assert "warning: the secret SURELY_NOT_SET is not set (for the search)\n" in server.stderr
    assert "secret PATH" not in server.stderr
    with serving(folder, "-q", "--json") as server:
        server.wait_for_out("greeter")
        server.end()
    assert server.stderr == ""


def test_a_hangup_drains_and_a_second_one_does_not_hurry(folder):
    with serving(folder) as server, stub_of(server.address()) as stub:
        running = call(stub, "hold", until=str(folder / "end"))
        server.wait_for("holding")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("letting 1 running call end")
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)  # in which it would hurry
        (folder / "end").touch()
        assert codec.decode(running.result(timeout=START_S).result) == "done"
        assert server.wait() == 0
        assert "stopped" in server.stderr


def test_a_hangup_that_is_ignored_stays_ignored(folder):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with serving(folder) as server:
            address = server.address()
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.3)
            with Client(address) as client:
                assert client.predict(name="Ada", method="greet") == "Hello, Ada!"
            assert server.end() == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_threads_that_the_model_left_do_not_keep_the_process(folder):
    write_load(
        folder,
        "def load(self):\n    import threading\n"
        "    threading.Thread(target=time.sleep, args=(600,), name='feeder').start()\n"
        "    print('buffered', end='')\n",
    )
    with serving(folder) as server:
        server.address()
        assert server.end() == 0
        assert "the model's threads did not end and were left behind: feeder" in server.stderr
        assert server.stdout == "buffered"


def test_an_executor_that_the_model_left_is_ended_without_a_word(folder):
    write_load(
        folder,
        "def load(self):\n    from concurrent.futures import ThreadPoolExecutor\n"
        "    self.pool = ThreadPoolExecutor()\n    self.pool.submit(print, 'ready').result()\n",
    )
    with serving(folder) as server:
        server.address()
        assert server.end() == 0
        assert "left behind" not in server.stderr


@pytest.mark.parametrize(
    "redirection", [">&- 2>&- <&-", ">&-", "2>&-", ">/dev/full 2>&1", "2>&1 | head -n 1", "--json | true"]
)
@pytest.mark.parametrize("option", ["", "--reload"])
def test_nobody_has_to_read_the_output(folder, redirection, option):
    write_load(folder, "def load(self):\n    print('from the model', flush=True)\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    modelkit = f"{sys.executable} -m modelkit serve {folder} --port {port} {option}"
    shell = subprocess.Popen(
        ["sh", "-c", f"{modelkit} {redirection}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with Client(f"127.0.0.1:{port}") as client:
            client.wait_ready(START_S)
            for _ in range(3):
                with contextlib.suppress(ModelkitError):
                    client.predict(method="fail")  # which the log says
            assert client.predict(name="Ada", method="greet") == "Hello, Ada!"
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(START_S)
        assert all_gone(folder)
    finally:
        kill_leftovers(folder)
