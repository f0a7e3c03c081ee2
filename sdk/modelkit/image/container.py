"""A container of an image for as long as somebody serves with it, and not a moment longer.

The docker client runs in the foreground behind the guard that engines have: when modelkit ends, however it ends, the
guard ends the client, which hands the signal to the container, which the daemon then removes (`--rm`). What even that
leaves behind, because everything was killed at once, is found by its labels and removed by the next one.
"""

import os
import re
import secrets
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from modelkit.errors import BuildError, ModelkitError, ServeError
from modelkit.image.builders.docker import DockerBuilder
from modelkit.image.plan import CACHE_DIR, GRPC_PORT, HTTP_PORT, weights_dir
from modelkit.image.tool import Tool

__all__ = ["Container", "ContainerOptions", "Mount", "docker_builder", "mount_of"]

CACHE_VOLUME = "modelkit-cache"

_HOST_LABEL = "modelkit.serve.host"
_PROCESS_LABEL = "modelkit.serve.process"
_SHM_SIZE = "16g"
_KEPT_LINES = 40
# What `docker run` exits with where the container could not be started.
_NOT_STARTED = 125


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder of this machine that the container reads at `target`, and where in there the checkpoint is."""

    folder: Path
    target: str
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerOptions:
    """How a container is run. A port of 0 is a free one; an `http_port` of None is not published.

    `arguments` go to the image's entrypoint, `variables` are names whose values it inherits from this process.
    """

    image: str
    name: str
    host: str = "127.0.0.1"
    port: int = 0
    http_port: int | None = 0
    num_gpus: int = 0
    platform: str | None = None
    mounts: Sequence[Mount] = ()
    arguments: Sequence[str] = ()
    variables: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def docker_builder() -> DockerBuilder:
    """Return the builder whose client can also run what it builds. Raises BuildError where there is none."""
    return DockerBuilder()


def mount_of(name: str, checkpoint_dir: Path) -> Mount:
    """Return what has to be mounted for a checkpoint: the files of a Hub's cache are links out of their folder."""
    target = weights_dir(name)
    places = [
        checkpoint_dir.resolve(),
        *(path.resolve() for path in checkpoint_dir.rglob("*") if path.is_file()),
    ]
    folder = Path(os.path.commonpath([places[0], *(place.parent for place in places[1:])]))
    below = places[0].relative_to(folder).as_posix()
    return Mount(folder, target, target if below == "." else f"{target}/{below}")


class Container:
    """One running container. A context manager: at its end the container is gone, whatever has happened."""

    def __init__(
        self,
        tool: Tool,
        options: ContainerOptions,
        on_line: Callable[[str], None],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = f"modelkit-{options.name}-{secrets.token_hex(3)}"
        self._tool = tool
        self._options = options
        self._on_line = on_line
        self._on_end = on_end
        self._lines: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start it; it may take a while until it can be reached, or it fails."""
        _sweep(self._tool)
        self._process = self._tool.start("run", *self._arguments())
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove it, first as it is, so that nothing starts it while the client ends."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        # Also where the client has ended: a start that failed leaves a container that was only created.
        self._remove()
        process.stdin.close()
        process.wait()
        self._remove()
        if self._reader is not None:
            self._reader.join()
        assert process.stdout is not None
        process.stdout.close()

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None and self._reader is not None:
            self._reader.join()  # the last lines
        return code

    def address(self, port: int) -> str | None:
        """Return where a port of the container is published, such as "127.0.0.1:50051"; None while it is not yet."""
        answer = self._tool.ask("port", self.name, f"{port}/tcp")
        published = answer.stdout.split()
        return published[0] if answer.returncode == 0 and published else None

    def stop(self, timeout_s: float) -> None:
        """Tell it to drain, and return at once; after `timeout_s` it is killed."""
        self._in_background("stop", "--time", str(round(timeout_s)), self.name)

    def hurry(self) -> None:
        """Tell it once more, which cancels the calls that still run."""
        self._in_background("kill", "--signal", "TERM", self.name)

    def failure(self, code: int) -> ModelkitError:
        """Return why it has ended with an exit code, and the cure where the fault is known."""
        text = "\n".join(self._lines)
        if code == _NOT_STARTED:
            for pattern, make in _FAULTS:
                if re.search(pattern, text, re.IGNORECASE):
                    return make(self._options)
            said = next((line for line in reversed(self._lines) if "rror" in line), text)
            return BuildError(
                f"the container could not be started: {said}", cure="see what docker says above"
            )
        return ServeError(
            f"the container of {self._options.name} has ended with exit code {code}",
            cure="its last lines above say why; `docker run --rm -it --entrypoint sh IMAGE` looks around inside",
        )

    def _arguments(self) -> list[str]:
        options = self._options
        arguments = ["--rm", "--name", self.name, "--security-opt", "no-new-privileges"]
        arguments += ["--label", f"{_HOST_LABEL}={socket.gethostname()}"]
        arguments += ["--label", f"{_PROCESS_LABEL}={_process_id(os.getpid())}"]
        arguments += ["--publish", _published(options.host, options.port, GRPC_PORT)]
        if options.http_port is not None:
            arguments += ["--publish", _published(options.host, options.http_port, HTTP_PORT)]
        if options.platform:
            arguments += ["--platform", options.platform]
        if options.num_gpus:
            gpus = (
                ["--gpus", str(options.num_gpus)]
                if self._tool.is_docker
                else ["--device", "nvidia.com/gpu=all"]
            )
            arguments += [*gpus, "--shm-size", _SHM_SIZE]
        arguments += ["--volume", f"{CACHE_VOLUME}:{CACHE_DIR}"]
        for mount in options.mounts:
            arguments += ["--mount", f"type=bind,source={mount.folder},target={mount.target},readonly"]
        for name in options.variables:
            arguments += ["--env", name]  # its value is in no list of processes
        for name, value in options.environment.items():
            arguments += ["--env", f"{name}={value}"]
        return [*arguments, options.image, *options.arguments]

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines = [*self._lines[-_KEPT_LINES:], line.rstrip()]
            self._on_line(line.rstrip())
        self._process.wait()
        self._on_end()

    def _in_background(self, *arguments: str) -> None:
        threading.Thread(
            target=self._tool.ask, args=arguments, kwargs={"timeout_s": 3600.0}, daemon=True
        ).start()

    def _remove(self) -> None:
        self._tool.ask("rm", "--force", self.name)


def _published(host: str, port: int, inside: int) -> str:
    address = f"[{host}]" if ":" in host else host
    return f"{address}:{port or ''}:{inside}"


def _process_id(pid: int) -> str:
    """Return what tells a process from a later one of the same number: its start in clock ticks (Linux), else nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return str(pid)
    return f"{pid}-{stat.rpartition(')')[2].split()[19]}"


def _sweep(tool: Tool) -> None:
    """Remove containers whose modelkit is gone."""
    mine = f"label={_HOST_LABEL}={socket.gethostname()}"
    listing = tool.ask(
        "ps", "--all", "--filter", mine, "--format", f'{{{{.ID}}}} {{{{.Label "{_PROCESS_LABEL}"}}}}'
    )
    for line in listing.stdout.splitlines():
        container, _, process = line.partition(" ")
        pid = process.partition("-")[0]
        if pid.isdigit() and not (_is_alive(int(pid)) and _process_id(int(pid)) == process):
            tool.ask("rm", "--force", container)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _no_gpu_runtime(options: ContainerOptions) -> ModelkitError:
    gpus = "a GPU" if options.num_gpus == 1 else f"{options.num_gpus} GPUs"
    return ServeError(
        f"config.yaml asks for {gpus}, and Docker on this machine cannot give any to a container",
        cure="with an NVIDIA GPU, install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure "
        "--runtime=docker && sudo systemctl restart docker; without one: --set compute.num_accelerators=0",
    )


def _port_in_use(options: ContainerOptions) -> ModelkitError:
    ports = " or ".join(str(port) for port in (options.port, options.http_port) if port)
    return ServeError(
        f"port {ports} of {options.host} is in use", cure="stop what uses it, or choose others: --port 0"
    )


_FAULTS: tuple[tuple[str, Callable[[ContainerOptions], ModelkitError]], ...] = (
    (
        r"could not select device driver|nvidia-container-cli|unresolvable CDI devices|libnvidia-ml",
        _no_gpu_runtime,
    ),
    (r"port is already allocated|address already in use|ports are not available", _port_in_use),
)
