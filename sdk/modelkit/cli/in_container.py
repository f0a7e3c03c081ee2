"""`modelkit serve --in-container`: the folder's image, built when it has changed, run here until Ctrl-C."""

import contextlib
import json
import os
import queue
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from modelkit.cli import console
from modelkit.errors import CallError

if TYPE_CHECKING:
    from modelkit.config import Config
    from modelkit.image import ImagePlan
    from modelkit.image.container import Container, ContainerOptions

__all__ = ["Publishing", "serve_in_container"]

# How long to wait before the container is asked once more whether it is ready: each question starts a client.
_PAUSES_S = (0.1, 0.1, 0.2, 0.3, 0.5)
_LAST_PAUSE_S = 0.5
_STOP_SLACK_S = 5.0
_PREFIX = "│ "
LOOPBACK = ("127.0.0.1", "::1", "localhost")
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Publishing:
    """Where a container's ports are on this machine: 0 is a free port, None publishes no HTTP."""

    host: str
    port: int
    http_port: int | None


def serve_in_container(
    config: "Config",
    model_dir: Path,
    where: Publishing,
    *,
    config_options: Sequence[str] = (),
    server_options: Sequence[str] = (),
    api_key_env: str | None = None,
    as_json: bool = False,
) -> int:
    """Build the image and run it until a signal or its end; return 0 after a drain, 130 when it was still loading.

    `config_options` (--env, --set) decide what the image is, `server_options` only how it serves. Raises BuildError
    and ServeError; the container is gone in every case.
    """
    from modelkit.cli.build import build_with
    from modelkit.image import plan_image
    from modelkit.image.container import Container, docker_builder

    if where.host not in LOOPBACK and api_key_env is None:
        console.warning(
            f"anyone who reaches {where.host} can call the model",
            cure="ask for a key with --api-key-env NAME",
        )
    started = time.perf_counter()
    builder = docker_builder()
    plan = plan_image(config, model_dir.resolve(), serve_options=config_options, mount_local_weights=True)
    built = build_with(builder, plan)
    console.info(f"running {built.reference} ({built.id.removeprefix('sha256:')[:12]})")
    # By its id: another build may give the tag to another image meanwhile.
    options = _options(plan, built.id, where, server_options, api_key_env)
    with (
        _Stop() as stop,
        Container(builder.tool, options, _show_line, lambda: stop.wakes.put(None)) as container,
    ):
        return _watch(container, plan, options, stop, started, as_json=as_json)


def _options(
    plan: "ImagePlan",
    image: str,
    where: Publishing,
    server_options: Sequence[str],
    api_key_env: str | None,
) -> "ContainerOptions":
    from modelkit.cli.build import fetch_weights
    from modelkit.image.container import ContainerOptions, mount_of
    from modelkit.image.plan import local_weights_override

    arguments, mounts, environment = list(server_options), [], {}
    if plan.is_foreign:
        arguments = []  # nobody knows what its entrypoint takes
    elif plan.weights == "mounted":
        mounts = [mount_of(name, folder) for name, folder in fetch_weights(plan, hold=True).items()]
        folders = {name: mount.checkpoint for name, mount in zip(plan.checkpoints, mounts, strict=True)}
        arguments += ["--set", local_weights_override(plan.config, folders)]
        environment = {"HF_HUB_OFFLINE": "1"}
    names = [secret.env_var for secret in plan.config.secrets] + ([api_key_env] if api_key_env else [])
    return ContainerOptions(
        image=image,
        name=plan.tag.partition(":")[0].rpartition("/")[2],
        host=where.host,
        port=where.port,
        http_port=where.http_port,
        num_gpus=plan.config.compute.num_accelerators,
        platform=plan.platform,
        mounts=mounts,
        arguments=arguments,
        variables=[name for name in names if os.environ.get(name)],
        environment=environment,
    )


class _Stop:
    """Counts the signals that ask for an end; a context manager that puts the old handlers back.

    Whoever waits does it at `wakes`, which a signal's handler may put into whatever it has interrupted.
    """

    def __init__(self) -> None:
        self.count = 0
        self.wakes: queue.SimpleQueue[None] = queue.SimpleQueue()

    def wait(self, timeout_s: float | None) -> None:
        """Wait for the next signal, or for what else wakes, and no longer than `timeout_s`."""
        with contextlib.suppress(queue.Empty):
            self.wakes.get(timeout=timeout_s)

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._hear)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _frame: object) -> None:
        # A closed terminal's SIGHUP comes twice, and nobody waits there: it never hurries.
        if number != signal.SIGHUP or self.count == 0:
            self.count += 1
            self.wakes.put(None)


def _watch(
    container: "Container",
    plan: "ImagePlan",
    options: "ContainerOptions",
    stop: _Stop,
    started: float,
    *,
    as_json: bool,
) -> int:
    is_ready, told, pauses_s = False, 0, iter(_PAUSES_S)
    with ExitStack() as loading:
        loading.enter_context(console.status(f"loading {plan.config.model.id}"))
        while (code := container.poll()) is None:
            if stop.count > told:
                told = stop.count
                _tell(container, plan, told)
            elif not is_ready and not told and (address := _ready_address(container)):
                is_ready = True
                loading.close()
                _announce(container, plan, options, address, time.perf_counter() - started, as_json=as_json)
            is_asking = not (is_ready or told)
            stop.wait(next(pauses_s, _LAST_PAUSE_S) if is_asking else None)
    if told:
        console.info("stopped")
        return 0 if is_ready else EXIT_INTERRUPTED
    raise container.failure(code)


def _tell(container: "Container", plan: "ImagePlan", times: int) -> None:
    if times == 1:
        console.info("letting running calls end; once more cancels them")
        container.stop(plan.config.server.drain_timeout_s + _STOP_SLACK_S)
    else:
        container.hurry()


def _ready_address(container: "Container") -> str | None:
    """Return the address when the model takes calls."""
    from modelkit.client import Client
    from modelkit.image.plan import GRPC_PORT

    address = container.address(GRPC_PORT)
    if address is None:
        return None
    with Client(address, timeout_s=1.0, retry=None) as client:
        try:
            return address if client.health() == "SERVING" else None
        except CallError:
            return None


def _announce(
    container: "Container",
    plan: "ImagePlan",
    options: "ContainerOptions",
    address: str,
    took_s: float,
    *,
    as_json: bool,
) -> None:
    from modelkit.image.plan import HTTP_PORT

    http = container.address(HTTP_PORT) if options.http_port is not None else None
    model_id = plan.config.model.id
    console.success(f"serving {model_id} at {address} (gRPC) from {plan.tag}, ready in {took_s:.1f} s")
    if http:
        console.info(f"  HTTP:      http://{http}")
    console.info(f"  container: {container.name}")
    console.info(f"  try it:    modelkit describe --address {address}")
    console.info("  Ctrl-C stops and removes it")
    if as_json:
        line = {
            "model_id": model_id,
            "address": address,
            "http_url": f"http://{http}" if http else None,
            "container": container.name,
            "image": plan.tag,
            "ready_s": took_s,
        }
        console.result(json.dumps(line))


def _show_line(line: str) -> None:
    console.info(console.paint(_PREFIX, "dim") + console.harmless(line))
