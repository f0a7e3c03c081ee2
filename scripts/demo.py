"""Show the whole way on this machine: train a tiny chat model, serve it, ask it something, stop it.

    python scripts/demo.py ["What is the capital of France?"]

The checkpoint is trained once, in about half a minute, and kept. Whatever happens, Ctrl-C included, the server is
stopped; when something fails, its log is shown and the exit code says so.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).resolve().parents[1]
MODEL_DIR = Path("examples/tiny-chat")
MODELKIT = Path(sys.executable).with_name("modelkit")
QUESTION = "What is the capital of France?"
READY_TIMEOUT_S = 180
STOP_TIMEOUT_S = 20


class DemoError(Exception):
    """One step did not work."""


def step(text: str) -> None:
    """Print a header."""
    print(f"\n==> {text}", flush=True)


def train_once() -> None:
    """Train the checkpoint unless an earlier run has. Raises DemoError when the training fails."""
    step("The checkpoint: trained once, in about half a minute")
    training = subprocess.run([sys.executable, MODEL_DIR / "train.py"], check=False)
    if training.returncode != 0:
        raise DemoError(f"training ended with exit code {training.returncode}")


def free_address() -> str:
    """Return a loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def is_ready(address: str) -> bool:
    """Ask the server's standard health service whether the model has loaded."""
    with grpc.insecure_channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def wait_until_ready(server: "subprocess.Popen[bytes]", address: str) -> None:
    """Wait for the model, counting the seconds on a terminal. Raises DemoError when it ends or takes too long."""
    started = time.monotonic()
    while (waited_s := time.monotonic() - started) < READY_TIMEOUT_S:
        if server.poll() is not None:
            raise DemoError(f"the server ended with exit code {server.returncode} before it was ready")
        if is_ready(address):
            print(f"\rready after {waited_s:.1f} s ", flush=True)
            return
        if sys.stdout.isatty():
            print(f"\rloading, {waited_s:.0f} s ", end="", flush=True)
        time.sleep(0.1)
    raise DemoError(f"the server was not ready after {READY_TIMEOUT_S} s")


def group_is_alive(group: int) -> bool:
    """Tell whether any process of a group, the server or a child it started, still runs."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def stop(server: "subprocess.Popen[bytes]") -> int | None:
    """End the server and everything it started; returns its exit code, None where it had to be killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave it running
    server.terminate()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        return None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return server.returncode


@contextmanager
def serving(log: IO[bytes]) -> Iterator[str]:
    """Serve the model for as long as the block runs; yields the address."""
    address = free_address()
    command = [str(MODELKIT), "serve", str(MODEL_DIR), "--local", "--port", address.partition(":")[2]]
    step(f"Serving it: {shlex.join(['modelkit', *command[1:]])}")
    # In a session of its own: Ctrl-C reaches this script, which then stops the server in order.
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    exit_code: int | None = None
    try:
        wait_until_ready(server, address)
        yield address
    finally:
        exit_code = stop(server)
    if exit_code != 0:
        raise DemoError(f"the server did not end in order (exit code {exit_code})")
    if group_is_alive(server.pid):
        raise DemoError("the server left a process behind")


def ask(question: str, address: str) -> None:
    """Ask on the command line, as a person would; the answer streams to this terminal."""
    step(f"Asking it: modelkit predict {shlex.quote(question)} --address {address}")
    asking = subprocess.run([MODELKIT, "predict", question, "--address", address], check=False)
    if asking.returncode != 0:
        raise DemoError(f"modelkit predict ended with exit code {asking.returncode}")


def end_in_order(_signal: int, _frame: object) -> NoReturn:
    """Make SIGTERM unwind like Ctrl-C."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the command line; returns the exit code."""
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, end_in_order)
    question = sys.argv[1] if len(sys.argv) > 1 else QUESTION
    with tempfile.TemporaryFile() as log:
        try:
            train_once()
            with serving(log) as address:
                ask(question, address)
        except DemoError as error:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            print(f"\ndemo failed: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ninterrupted; nothing is left running", file=sys.stderr)
            return 130
    step("Stopped; nothing is left running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
