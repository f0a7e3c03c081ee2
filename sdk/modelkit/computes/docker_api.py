"""A Docker host as a compute: how its daemon is reached, what the containers of deployments are known by, where they answer.

Everything that is known of a deployment lies in labels on the host itself, so that whoever reaches the daemon sees it.
"""

import contextlib
import http.client
import os
import re
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelkit.computes.endpoint import Endpoint, Route
from modelkit.computes.identity import DEPLOYMENT_METADATA
from modelkit.computes.ssh_tunnel import parse_ssh, ssh_tunnel
from modelkit.computes.store import Compute
from modelkit.errors import DeployError, UnknownDeploymentError, UsageError

__all__ = [
    "DEPLOYMENT",
    "DRAINING",
    "GRPC_PORT",
    "HTTP_PORT",
    "REPLICA",
    "REVISION",
    "VERSION",
    "DockerHost",
    "Published",
    "bind_address",
    "caller_host",
    "check_address",
    "docker_host",
    "endpoint_of",
    "is_draining",
    "locate",
    "port_range",
    "published",
    "ready_ones",
]

# Labels of containers, and of the volumes that keep the record of a deployment.
DEPLOYMENT = "modelkit.deployment"
VERSION = "modelkit.deployment.version"
REPLICA = "modelkit.deployment.replica"
REVISION = "modelkit.deployment.revision"

# At the end of the name of a container that has been told to end: a rename is seen by everybody, and done only once.
DRAINING = "-draining"

# In a container; the image's own (`modelkit.image`, which nothing here may import).
GRPC_PORT = 50051
HTTP_PORT = 8000

_TIMEOUT_S = 60.0
_PROBE_TIMEOUT_S = 2.0
_REFRESH_S = 15.0
_MAX_API_VERSION = "1.44"  # the newest that is used here, and the oldest that a new daemon takes

# What the daemon or its transport says (the first that matches counts), what that means, and the cure.
_FAULTS = (
    (r"permission denied|errno 13|permissionerror", "this user may not talk to its Docker daemon", "add the user to the group docker on that machine (sudo usermod -aG docker USER), and log in again"),
    (r"https server|server gave http response|wrong_version_number|record layer failure", "one side speaks TLS and the other does not", "set DOCKER_CERT_PATH to the folder with ca.pem, cert.pem and key.pem, or give the CA: `modelkit compute add ... --ca FILE`"),
    (r"certificate_verify_failed|certificate verify failed|unknown ca|bad certificate|certificate required", "one of the two certificates is not trusted", "DOCKER_CERT_PATH has to name the folder with ca.pem, cert.pem and key.pem for this daemon"),
    (r"no such file|filenotfounderror|connection refused|errno 111", "no Docker daemon answers there", "start it (sudo systemctl start docker), or correct the address: `modelkit compute list`"),
    (r"remote end closed|connection aborted|remotedisconnected|connection reset", "its Docker daemon does not answer", "see whether it runs: `docker version` on that machine; a port that speaks TLS needs DOCKER_CERT_PATH, the folder with ca.pem, cert.pem and key.pem"),
    (r"name or service not known|name resolution|nodename nor servname|getaddrinfo", "there is no host of that name", "correct the address: `modelkit compute list`"),
    (r"timed out|timeout", "its Docker daemon has not answered in time", "see whether the machine is up, and whether a firewall lets this one through"),
)  # fmt: skip


class DockerHost:
    """A connection to a daemon. `client` is the docker SDK's."""

    def __init__(self, compute: Compute, client: Any, cli_environment: dict[str, str]) -> None:
        self.compute = compute
        self.client = client
        self.cli_environment = cli_environment

    @contextlib.contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """Turn what the SDK raises in the block into DeployError, which begins with what was asked for."""
        with _translated(self.compute, what):
            yield

    def containers(self, *labels: str) -> list[dict[str, Any]]:
        """Return the containers that have all these labels (NAME or NAME=VALUE), running or not."""
        with self.asking("list containers"):
            found: list[dict[str, Any]] = self.client.api.containers(
                all=True, filters={"label": list(labels)}
            )
        return found

    def names(self) -> list[str]:
        """Return the names of all deployments."""
        with self.asking("list deployments"):
            volumes = self.client.api.volumes(filters={"label": [DEPLOYMENT]})["Volumes"] or []
        labels = [each["Labels"] or {} for each in [*volumes, *self.containers(DEPLOYMENT)]]
        return sorted({each[DEPLOYMENT] for each in labels})


def check_address(address: str) -> None:
    """Raise UsageError for what cannot be the address of a Docker host. Nothing is asked."""
    try:
        parts = urlsplit(address)
        port = parts.port if parts.scheme != "unix" else None
    except ValueError:
        raise _no_address(address) from None
    if parts.scheme == "ssh":
        parse_ssh(address)
        return
    is_socket = parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/")
    is_port = (
        parts.scheme in {"tcp", "http", "https"} and parts.hostname and port and not parts.path.strip("/")
    )
    if not (is_socket or is_port):
        raise _no_address(address)


def _no_address(address: str) -> UsageError:
    return UsageError(
        f"'{address}' is not the address of a Docker host",
        cure="write ssh://USER@HOST, tcp://HOST:2376 or unix:///var/run/docker.sock",
    )


@contextlib.contextmanager
def docker_host(compute: Compute, *, timeout_s: float | None = _TIMEOUT_S) -> Iterator[DockerHost]:
    """Connect to the daemon of a compute until the block ends. Raises DeployError, UsageError, each with the cure."""
    with contextlib.ExitStack() as stack:
        check_address(compute.address)
        base_url = compute.address
        if urlsplit(base_url).scheme == "ssh":
            base_url = stack.enter_context(ssh_tunnel(compute.address))
        tls, environment = _tls(compute, base_url)
        with _translated(compute, "connect"):
            _knock(base_url)
            client = _connect(base_url, tls, timeout_s)
        stack.callback(client.close)
        yield DockerHost(compute, client, {"DOCKER_HOST": base_url, "DOCKER_CONTEXT": "", **environment})


def _knock(base_url: str) -> None:
    """Raise OSError where nobody listens on a Unix socket: the SDK would leave a socket of its own open."""
    parts = urlsplit(base_url)
    if parts.scheme == "unix":
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(parts.netloc + parts.path)


def _connect(base_url: str, tls: Any, timeout_s: float | None) -> Any:
    import docker
    from docker.utils import version_lt

    def open_client(version: str) -> Any:
        client = docker.DockerClient(base_url=base_url, version=version, tls=tls, timeout=timeout_s)
        client.api.trust_env = False  # a proxy is for the world outside, not for a daemon
        return client

    client = open_client(_MAX_API_VERSION)
    try:
        known = client.version(api_version=False)["ApiVersion"]
    except BaseException:
        client.close()
        raise
    if not version_lt(known, _MAX_API_VERSION):
        return client
    client.close()
    return open_client(known)


def _tls(compute: Compute, base_url: str) -> tuple[Any, dict[str, str]]:
    """Return the SDK's settings of TLS and the variables that say the same to the docker client."""
    scheme = urlsplit(base_url).scheme
    folder = os.environ.get("DOCKER_CERT_PATH")
    if scheme not in {"tcp", "https"} or not (folder or compute.ca_path):
        return False, {"DOCKER_TLS_VERIFY": "", "DOCKER_CERT_PATH": ""}
    from docker.tls import TLSConfig

    certificates = Path(folder) if folder else None
    pair = None if certificates is None else (str(certificates / "cert.pem"), str(certificates / "key.pem"))
    ca = compute.ca_path or str(Path(folder or "") / "ca.pem")
    for path in [ca, *(pair or ())]:
        if not os.access(path, os.R_OK):
            raise UsageError(
                f"compute {compute.name} needs {path}, which cannot be read",
                cure="DOCKER_CERT_PATH names a folder with ca.pem, cert.pem and key.pem",
            )
    environment = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": folder or str(Path(ca).parent)}
    return TLSConfig(client_cert=pair, ca_cert=ca, verify=True), environment


@contextlib.contextmanager
def _translated(compute: Compute, what: str) -> Iterator[None]:
    import docker.errors
    import requests.exceptions

    try:
        yield
    except docker.errors.APIError as error:
        if "HTTPS server" in str(error):
            raise _unreachable(compute, what, error) from error
        raise DeployError(
            f"the Docker daemon of {compute.name} refuses to {what}: {error.explanation or error}",
            cure="mend what it says; `modelkit compute check` looks at the whole host",
        ) from error
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        raise _unreachable(compute, what, error) from error


def _unreachable(compute: Compute, what: str, error: Exception) -> DeployError:
    text = str(error)
    for sign, meaning, cure in _FAULTS:
        if re.search(sign, text, re.IGNORECASE):
            return DeployError(f"compute {compute.name} ({compute.address}): {meaning}", cure=cure)
    return DeployError(
        f"compute {compute.name} ({compute.address}) fails to {what}: {text}",
        cure=f"see `docker --host {compute.address} version`",
    )


# --------------------------------------------------------------------------------------------------- where they answer


@dataclass(frozen=True, slots=True)
class Published:
    """Where one replica is reached, in the eyes of a caller."""

    host: str
    grpc_port: int
    http_port: int

    @property
    def target(self) -> str:
        """The gRPC address."""
        return f"{self.host}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """The base of the HTTP URLs."""
        return f"http://{self.host}:{self.http_port}"


def caller_host(compute: Compute) -> str:
    """Return the host that callers connect to: the compute's endpoint, else the machine of its daemon."""
    if compute.endpoint:
        return _bracketed(_split_endpoint(compute.endpoint)[0])
    parts = urlsplit(compute.address)
    return "127.0.0.1" if parts.scheme == "unix" or not parts.hostname else _bracketed(parts.hostname)


def bind_address(compute: Compute) -> str:
    """Return the address of the host that ports are published on.

    Loopback where callers can only be on that machine; the endpoint's own where it names one; else every interface.
    """
    host = caller_host(compute).strip("[]")
    if host == "localhost":
        return "127.0.0.1"
    with contextlib.suppress(ValueError):
        address = ip_address(host)
        if compute.endpoint or address.is_loopback:
            return str(address)
    return "0.0.0.0"  # noqa: S104 - `refuse` asks for an API key then


def port_range(compute: Compute) -> str | None:
    """Return the ports to publish on, FIRST-LAST, where the compute's endpoint names some; else any free ones are taken."""
    return _split_endpoint(compute.endpoint)[1] if compute.endpoint else None


def _split_endpoint(endpoint: str) -> tuple[str, str | None]:
    """Read HOST or HOST:FIRST-LAST. Raises UsageError."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s/]+|[0-9a-fA-F:]+)(?::(\d+-\d+))?", endpoint)
    if match is None:
        raise UsageError(
            f"'{endpoint}' is no endpoint of a Docker host, whose replicas need two ports each",
            cure="write HOST, or HOST:30000-30999 for the ports that a firewall lets through",
        )
    return match[1], match[2]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def published(compute: Compute, container: dict[str, Any]) -> Published | None:
    """Return where a container of a listing is reached, None where it does not run."""
    ports = {each["PrivatePort"]: each.get("PublicPort") for each in container.get("Ports") or ()}
    grpc_port, http_port = ports.get(GRPC_PORT), ports.get(HTTP_PORT)
    if container["State"] != "running" or not grpc_port or not http_port:
        return None
    return Published(caller_host(compute), grpc_port, http_port)


def is_draining(container: dict[str, Any]) -> bool:
    """Tell whether a container of a listing has been told to end."""
    return any(name.endswith(DRAINING) for name in container["Names"] or ())


def ready_ones(compute: Compute, containers: Sequence[dict[str, Any]]) -> set[str]:
    """Return the ids of the containers whose model takes calls, asked all at once.

    Where a port cannot be reached from here, what Docker's own health check has found counts.
    """
    places = [(each, published(compute, each)) for each in containers]
    asked = [(each, place) for each, place in places if place is not None]
    if not asked:
        return set()
    with ThreadPoolExecutor(min(32, len(asked))) as threads:
        answers = list(threads.map(lambda pair: _is_ready(*pair), asked))
    return {each["Id"] for (each, _), answer in zip(asked, answers, strict=True) if answer}


def _is_ready(container: dict[str, Any], place: Published) -> bool:
    connection = http.client.HTTPConnection(place.host.strip("[]"), place.http_port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return "(healthy)" in (container.get("Status") or "")
    finally:
        connection.close()


def endpoint_of(compute: Compute, ready: Sequence[dict[str, Any]]) -> Endpoint:
    """Return where a deployment is called whose replicas that take calls are these; there may be none."""
    places = [place for each in ready if (place := published(compute, each)) is not None]
    places.sort(key=lambda place: place.grpc_port)
    # Docker may give the port of a replica that has gone to the next container, before callers have heard of it.
    metadata = {DEPLOYMENT_METADATA: ready[0]["Labels"][DEPLOYMENT]} if ready else {}
    return Endpoint(
        routes=(Route(targets=tuple(place.target for place in places), metadata=metadata),),
        http_url=places[0].http_url if places else None,
        refresh_s=_REFRESH_S,
    )


def locate(compute: Compute, name: str) -> Endpoint:
    """Return where a deployment is called: the published ports of its replicas that take calls now.

    Raises DeployError where the daemon cannot be reached, UnknownDeploymentError where it has none of that name.
    """
    with docker_host(compute) as host:
        found = host.containers(f"{DEPLOYMENT}={name}")
        names = [] if found else host.names()
        if not found and name not in names:
            raise UnknownDeploymentError(compute.name, name, names)
        candidates = [each for each in found if not is_draining(each)]
        ready = ready_ones(compute, candidates)
        return endpoint_of(compute, [each for each in candidates if each["Id"] in ready])
