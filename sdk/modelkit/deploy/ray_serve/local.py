"""The private Ray of this machine, for trying things out: started when first used, ended with `end_local_ray`.

It outlives the command that started it. Its processes are known by a mark in their environment and by its folder;
`ray stop` would end every other Ray of this machine too.
"""

import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from modelkit.computes import LOCAL_RAY, Compute, add_compute, computes_path, list_computes, remove_compute
from modelkit.computes.ray_api import RayApi
from modelkit.deploy.base import LineSink
from modelkit.deploy.ray_serve.manifest import serve_options
from modelkit.deploy.ray_serve.ports import free_block
from modelkit.deploy.ray_serve.processes import end_processes, find_processes
from modelkit.deploy.ray_serve.secrets import SECRETS_DIR_ENV
from modelkit.deploy.ray_serve.setup import wait_for_proxies
from modelkit.deploy.record import DeploymentSpec
from modelkit.errors import DeployError, UsageError

__all__ = ["end_local_ray", "ensure_local_ray", "hand_over_secrets", "local_ray", "ray_command"]

MARK: Final = "MODELKIT_LOCAL_RAY"

_START_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.2
_TELL_EVERY_S: Final = 5.0
_OBJECT_STORE_BYTES: Final = 100_000_000
# Replicas of a try-out share the machine as they like; Ray only counts.
_NUM_CPUS: Final = 64
_NUM_LOG_LINES: Final = 15
# Ten for Ray itself; the rest for replicas, two each, also for those that end while others take their place.
_NUM_PORTS: Final = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What is kept of the private Ray, in a file that only its owner can read."""

    mark: str
    token: str
    address: str
    folder: str
    grpc_port: int
    http_port: int
    replica_ports: tuple[int, int]


def ensure_local_ray(on_line: LineSink) -> Compute:
    """Return the private Ray, started where it does not run. Raises UsageError without ray, DeployError where it fails."""
    if find_spec("ray") is None:
        raise UsageError(
            f"--compute {LOCAL_RAY} needs Ray, which is not installed here",
            cure="pip install 'modelkit-sdk[ray]'",
        )
    with _locked():
        state = _read_state()
        if state is None or not _runs(state):
            if state is not None:  # it has crashed, or this machine was started anew
                _end(state)
            on_line("starting Ray on this machine")
            state = _start_and_wait(on_line)
        else:
            _wait_for_running(state, on_line)
        compute = _compute(state)
        add_compute(compute, replace=True)
        return compute


def _start_and_wait(on_line: LineSink) -> _State:
    """Start Ray and wait for it; a second time where the first ends: it gives its parts 15 s, few on a busy machine."""
    try:
        return _start_or_end(on_line)
    except DeployError:
        on_line("Ray has not come up; starting it once more")
        return _start_or_end(on_line)


def _start_or_end(on_line: LineSink) -> _State:
    state = _start()
    try:
        _wait_until_ready(state, on_line)
    except BaseException:
        _end(state)
        raise
    return state


def _wait_for_running(state: _State, on_line: LineSink) -> None:
    """Wait for one that runs already, with what others have deployed there: whatever comes, it is not ended."""
    try:
        _wait_until_ready(state, on_line)
    except DeployError as error:
        raise DeployError(
            f"the Ray that runs on this machine does not answer as it should: {error.message}",
            cure=f"`modelkit compute remove {LOCAL_RAY}` ends it with all that it runs; the next try starts another",
        ) from error


def local_ray() -> Compute | None:
    """Return the private Ray where it runs, None where it does not."""
    state = _read_state()
    return _compute(state) if state is not None and _runs(state) else None


def end_local_ray() -> bool:
    """End the private Ray with all its processes, and forget it; False where there was none."""
    with _locked():
        state = _read_state()
        if state is not None:
            _end(state)
        if any(compute.name == LOCAL_RAY for compute in list_computes()):
            remove_compute(LOCAL_RAY)
        return state is not None


def hand_over_secrets(spec: DeploymentSpec) -> None:
    """Give the private Ray the secrets of a deployment that this environment has: its own was made when it started."""
    state = _read_state()
    if state is None:
        return
    for name in spec.variables().all:
        if value := os.environ.get(name):
            path = _secrets_dir(state) / name
            draft = path.with_name(f"{name}.draft")  # a replica may read it at this moment
            draft.touch(mode=0o600)
            draft.write_text(value, encoding="utf-8")
            draft.replace(path)


def ray_command(arguments: Sequence[str]) -> list[str]:
    """Return the command `ray`, run by this interpreter."""
    return [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *arguments]


# --------------------------------------------------------------------------------------------------------------- start


def _start() -> _State:
    ports = free_block(_NUM_PORTS)
    gcs, dashboard, agent, agent_grpc, runtime_env, metrics, client, grpc_port, http_port = ports[:9]
    folder = Path(tempfile.mkdtemp(prefix="modelkit-ray-"))  # short: Ray puts sockets in it
    state = _State(
        mark=secrets.token_hex(8),
        token=secrets.token_hex(24),
        address=f"http://127.0.0.1:{dashboard}",
        folder=str(folder),
        grpc_port=grpc_port,
        http_port=http_port,
        replica_ports=(ports[10], ports.stop),
    )
    _secrets_dir(state).mkdir(mode=0o700)
    _write_state(
        state
    )  # before there is a process: whatever ends us, the next command finds what we have started
    command = ray_command(
        [
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
            f"--port={gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--runtime-env-agent-port={runtime_env}",
            f"--metrics-export-port={metrics}",
            f"--ray-client-server-port={client}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--num-cpus={_NUM_CPUS}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--temp-dir={folder / 'ray'}",
            "--disable-usage-stats",
        ]
    )
    with (folder / "ray.log").open("wb") as log:
        subprocess.Popen(  # noqa: S603 - lives on, by design
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
            env=_environment(state),
        )
    return state


def _environment(state: _State) -> Mapping[str, str]:
    # Nobody else's Ray: not the cluster that this shell talks to, nor its address.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **inherited,
        MARK: state.mark,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": state.token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_worker_prestart": "0",
        # Two cores may need longer than the 30 s that Ray gives its parts.
        "RAY_raylet_start_wait_time_s": str(int(_START_TIMEOUT_S / 2)),
        "RAY_agent_register_timeout_ms": str(int(_START_TIMEOUT_S * 1000)),
        # Ray makes its workers give way to everything else on the machine, by default.
        "RAY_worker_niceness": "0",
        SECRETS_DIR_ENV: str(_secrets_dir(state)),
    }


def _wait_until_ready(state: _State, on_line: LineSink) -> None:
    """Wait for Ray, set it up, and wait for its proxy."""
    api = RayApi(_compute(state))
    deadline = time.monotonic() + _START_TIMEOUT_S
    told = time.monotonic()
    try:
        while True:
            try:
                instance = api.instance()
                break
            except DeployError as error:
                if not _runs(state) or time.monotonic() > deadline:
                    raise DeployError(
                        f"Ray did not start on this machine: {_last_words(state)}",
                        cure="see whether a firewall or a full /dev/shm is in its way; `ray start --head --block` shows more",
                    ) from error
            if time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                on_line("waiting for Ray's dashboard")
            time.sleep(_POLL_S)
        if not instance.get("grpc_options"):
            on_line("starting Ray Serve")
            options = serve_options(
                grpc_port=state.grpc_port,
                http_port=state.http_port,
                http_host="127.0.0.1",
                every_node=False,
                replica_ports=range(*state.replica_ports),
            )
            api.put_applications(options, [])
        wait_for_proxies(api, on_line)
    finally:
        api.close()


def _last_words(state: _State) -> str:
    try:
        lines = Path(state.folder, "ray.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it has left no log"
    return " | ".join(line.strip() for line in lines[-_NUM_LOG_LINES:] if line.strip())


# ----------------------------------------------------------------------------------------------------------------- end


def _end(state: _State) -> None:
    """End every process of it, whoever its parent is now, and remove its folder and its state."""
    left = end_processes(_mark(state), folder=Path(state.folder))
    if left:
        raise DeployError(
            f"processes of {LOCAL_RAY} do not end: {', '.join(map(str, left))}", cure="see what keeps them"
        )
    shutil.rmtree(state.folder, ignore_errors=True)
    _state_path().unlink(missing_ok=True)


def _mark(state: _State) -> str:
    return f"{MARK}={state.mark}"


def _runs(state: _State) -> bool:
    return bool(find_processes(_mark(state)))


# --------------------------------------------------------------------------------------------------------------- state


def _compute(state: _State) -> Compute:
    return Compute(name=LOCAL_RAY, kind="ray", address=state.address)


def _secrets_dir(state: _State) -> Path:
    return Path(state.folder, "secrets")


def _state_path() -> Path:
    return computes_path().with_name(f"{LOCAL_RAY}.json")


def _read_state() -> _State | None:
    try:
        return _State(**json.loads(_state_path().read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{_state_path()} cannot be read: {error}", cure="remove it") from error


def _write_state(state: _State) -> None:
    path = _state_path()
    draft = path.with_suffix(".draft")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


@contextmanager
def _locked() -> Iterator[None]:
    """Let one process at a time start or end it."""
    path = _state_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = path.with_suffix(".lock").open("w")
    except OSError as error:
        raise UsageError(
            f"cannot write {error.filename}: {error.strerror}",
            cure="make it writable, or set MODELKIT_CONFIG_DIR to another folder",
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
