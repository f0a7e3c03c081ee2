"""A Kubernetes cluster's API, as plain objects, and where a deployment on it is called.

The `kubernetes` package finds the cluster and the credentials as kubectl does (contexts, certificates, login plugins);
requests and answers are the JSON of the API itself, so that a new version of an object needs no new library.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

from modelkit.computes.endpoint import Endpoint, Route
from modelkit.computes.store import Compute
from modelkit.errors import DeployError, UnknownDeploymentError, UsageError

__all__ = [
    "FIELD_MANAGER",
    "GRPC_PORT",
    "HTTP_PORT",
    "IN_CLUSTER",
    "Kind",
    "KubernetesApi",
    "KubernetesError",
    "find_endpoint",
    "label_selector",
    "locate",
    "replicas_service",
]

GRPC_PORT: Final = 50051
HTTP_PORT: Final = 8000
# Who owns the fields that are applied, in the words of server-side apply.
FIELD_MANAGER: Final = "modelkit"

_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 10.0
_READ_ATTEMPTS = 3
_RETRY_PAUSE_S = 0.5
_PROBE_TIMEOUT_S = 1.0
# How long the addresses of replicas hold. A replica that ends still takes calls for longer than that.
_REFRESH_S = 3.0
_IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TLS_PORT = "443"
_NOT_FOUND = 404
# The address of a compute that is the cluster around this process.
IN_CLUSTER: Final = "in-cluster"


class KubernetesError(DeployError):
    """The API refused a request; `status` is HTTP's, `reason` its own word, such as NotFound or Conflict."""

    def __init__(self, message: str, *, status: int, reason: str = "", cure: str = "") -> None:
        super().__init__(message, cure=cure)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object and its place in the API."""

    api_version: str
    name: str
    plural: str

    def path(self, namespace: str, name: str = "") -> str:
        """Return where objects of it are in a namespace, or one of them."""
        base = f"api/{self.api_version}" if self.api_version == "v1" else f"apis/{self.api_version}"
        return f"/{base}/namespaces/{quote(namespace)}/{self.plural}" + (f"/{quote(name)}" if name else "")


def label_selector(name: str | None = None) -> str:
    """Return what lists the objects of a deployment, or of all that modelkit made."""
    own = "app.kubernetes.io/managed-by=modelkit"
    return own if name is None else f"{own},app.kubernetes.io/instance={name}"


def replicas_service(name: str) -> str:
    """Return the name of the headless service, whose addresses are those of the ready replicas."""
    return f"{name}-replicas"


class KubernetesApi:
    """The API of one cluster, as a compute names it. A context manager; connections are kept until its end.

    Raises UsageError where the `kubernetes` package is missing or the kubeconfig has no such context, DeployError where
    the cluster cannot be reached or refuses who asks.
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self._client, default_namespace = _connect(compute)
        self.namespace = compute.namespace or default_namespace

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release connections."""
        self._client.close()

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """Return what is at a path. Raises KubernetesError."""
        answer: dict[str, Any] = json.loads(self._read("GET", path, query))
        return answer

    def find(self, path: str, **query: str) -> dict[str, Any] | None:
        """Return what is at a path, None where there is nothing."""
        try:
            return self.get(path, **query)
        except KubernetesError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    def has(self, path: str) -> bool:
        """Tell whether an object is there, without its content: of a Secret, that is nobody's business here."""
        accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
        try:
            self._send("GET", path, accept=accept).read()
        except KubernetesError as error:
            if error.status == _NOT_FOUND:
                return False
            raise
        return True

    def items(self, path: str, **query: str) -> list[dict[str, Any]]:
        """Return the objects at a path; none where the cluster has no such kind."""
        found = self.find(path, **query)
        return [] if found is None else list(found.get("items") or ())

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object, or ask a question that the API takes as one."""
        answer: dict[str, Any] = json.loads(self._read("POST", path, body=body))
        return answer

    def apply(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Apply an object on the server's side: the fields in it become ours, all others stay as they are."""
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        content = "application/apply-patch+yaml"
        answer: dict[str, Any] = json.loads(self._read("PATCH", path, query, body=body, content=content))
        return answer

    def merge(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change some fields of an object (JSON merge patch)."""
        content = "application/merge-patch+json"
        query = {"fieldManager": FIELD_MANAGER}
        answer: dict[str, Any] = json.loads(self._read("PATCH", path, query, body=body, content=content))
        return answer

    def delete(self, path: str, *, foreground: bool = False) -> bool:
        """Delete an object; with `foreground` it stays until what it owns is gone. False where it was not there."""
        policy = "Foreground" if foreground else "Background"
        try:
            self._read("DELETE", path, {"propagationPolicy": policy})
        except KubernetesError as error:
            if error.status == _NOT_FOUND:
                return False
            raise
        return True

    def lines(
        self,
        path: str,
        *,
        timeout_s: float | None = _TIMEOUT_S,
        stop: threading.Event | None = None,
        **query: str,
    ) -> Iterator[str]:
        """Yield lines of text, such as a log, as they come; with `timeout_s` None however long that takes.

        Where `stop` is set from another thread, the connection is closed and this ends.
        """
        response = self._send("GET", path, query, read_timeout_s=timeout_s)
        if stop is not None:
            threading.Thread(target=_shut, args=(response.response, stop), daemon=True).start()
        try:
            rest = b""
            for piece in response.response.stream(amt=None, decode_content=True):
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace")
            if rest:
                yield rest.decode(errors="replace")
        finally:
            response.response.close()

    def served(self) -> frozenset[str]:
        """Return the API groups with versions that the cluster serves, such as "policy/v1"."""
        groups = self.get("/apis").get("groups") or ()
        return frozenset({"v1"} | {each["groupVersion"] for group in groups for each in group["versions"]})

    def version(self) -> str:
        """Return the cluster's version, such as "v1.31.2"."""
        return str(self.get("/version").get("gitVersion", ""))

    def _read(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
    ) -> bytes:
        response = self._send(method, path, query, body=body, content=content)
        return bytes(response.read())

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
        accept: str = "application/json, */*",
        read_timeout_s: float | None = _TIMEOUT_S,
    ) -> Any:
        """Send a request and return its response, unread. What only reads is repeated where the connection broke."""
        client = self._client
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = content
        client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        headers.update(client.default_headers)
        url = f"{client.configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        attempts = _READ_ATTEMPTS if method == "GET" else 1
        for attempt in range(attempts):
            try:
                response = client.rest_client.request(
                    method,
                    url,
                    headers=headers,
                    body=body,
                    _request_timeout=(_CONNECT_TIMEOUT_S, read_timeout_s),
                )
            except Exception as error:
                if attempt + 1 < attempts and _is_passing(error):
                    time.sleep(_RETRY_PAUSE_S)
                    continue
                raise _unreachable(self.compute, client.configuration.host, error) from error
            break
        if not 200 <= response.status < 300:  # noqa: PLR2004 - HTTP's success
            raise _refusal(self.compute, method, path, response.status, response.read())
        return response


def _shut(response: Any, stop: threading.Event) -> None:
    """Close a connection under whoever reads from it, once `stop` is set."""
    stop.wait()
    with suppress(Exception):  # it may have ended by itself
        response.shutdown()


def _connect(compute: Compute) -> tuple[Any, str]:
    """Return the client of a compute's cluster and the namespace that its context names."""
    try:
        from kubernetes import client, config
        from kubernetes.config.config_exception import ConfigException
    except ImportError as error:
        raise UsageError(
            f"compute {compute.name} needs the kubernetes package, which is not installed",
            cure="pip install 'modelkit-sdk[kubernetes]'",
        ) from error
    import urllib3

    configuration = client.Configuration()
    namespace = "default"
    if compute.address == IN_CLUSTER:
        try:
            config.load_incluster_config(configuration)
        except ConfigException as error:
            raise UsageError(
                f"compute {compute.name} is the cluster around this process, and there is none: {error}",
                cure="name a context of your kubeconfig as its address instead",
            ) from error
        with suppress(OSError):
            namespace = _IN_CLUSTER.read_text(encoding="utf-8").strip()
    else:
        namespace = _load_kubeconfig(compute, config, configuration, ConfigException)
    if (token := compute.token()) is not None:
        configuration.api_key = {"authorization": f"Bearer {token}"}
        configuration.api_key_prefix = {}
        configuration.refresh_api_key_hook = None
    if compute.ca_path is not None:
        configuration.ssl_ca_cert = str(Path(compute.ca_path).expanduser())
    configuration.retries = urllib3.Retry(0, redirect=False)  # what is repeated is said here, not in a log
    try:
        return client.ApiClient(configuration), namespace
    except OSError as error:
        raise UsageError(
            f"the files of compute {compute.name}'s TLS cannot be read: {error}",
            cure="mend ca_path, or the certificates that its kubeconfig names",
        ) from error


def _load_kubeconfig(compute: Compute, config: Any, configuration: Any, failure: type[Exception]) -> str:
    """Fill in the configuration from the compute's context and return that context's namespace. Raises UsageError."""
    place = compute.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = os.pathsep.join(str(Path(each).expanduser()) for each in place.split(os.pathsep))
    try:
        merged = config.kube_config.KubeConfigMerger(files).config
        found = (merged.safe_get("contexts") or ()) if merged is not None else ()
        contexts = {str(each["name"]): each.safe_get("context") or {} for each in found}
        if compute.address in contexts:
            config.load_kube_config(files, context=compute.address, client_configuration=configuration)
            return str(contexts[compute.address].get("namespace") or "default")
    except (failure, OSError) as error:
        raise UsageError(
            f"compute {compute.name} cannot be read from {place}: {error}",
            cure="name the file with --kubeconfig, and check that `kubectl config get-contexts` reads it",
        ) from error
    raise UsageError(
        f"{place} has no context '{compute.address}', which compute {compute.name} names; it has: "
        + (", ".join(sorted(contexts)) or "none"),
        cure=f"`modelkit compute add {compute.name} --replace --address CONTEXT` names another",
    )


def _is_passing(error: Exception) -> bool:
    """Tell whether the same request may work in a moment: a connection that broke, or was refused."""
    text = str(error)
    return not any(word in text for word in ("CERTIFICATE", "certificate", "Name or service not known"))


def _unreachable(compute: Compute, host: str, error: Exception) -> DeployError:
    from urllib3.exceptions import HTTPError, MaxRetryError, SSLError

    cause: object = error.reason if isinstance(error, MaxRetryError) else error
    text = str(cause).rpartition("): ")[2] or str(cause)
    if isinstance(cause, SSLError) or "certificate" in text.lower():
        return DeployError(
            f"compute {compute.name}: the certificate of {host} is not trusted: {text}",
            cure="name its authority: --ca FILE, or certificate-authority in the kubeconfig",
        )
    if (
        not isinstance(error, (HTTPError, OSError))
        and type(error).__module__.partition(".")[0] != "kubernetes"
    ):
        raise error
    return DeployError(
        f"compute {compute.name} cannot be reached at {host}: {text}",
        cure=f"check that `kubectl --context {compute.address} get nodes` works here: the cluster is up, and a VPN "
        "or a login where it needs one",
    )


def _refusal(compute: Compute, method: str, path: str, status: int, content: bytes) -> KubernetesError:
    """Return what the API's answer means, with the cure where it is known."""
    try:
        answer = json.loads(content)
        message, reason = str(answer.get("message") or ""), str(answer.get("reason") or "")
    except (ValueError, AttributeError):
        message, reason = content.decode(errors="replace").strip()[:300], ""
    message = message or f"HTTP {status} for {method} {path}"
    prefix = f"compute {compute.name}: "
    cures = {
        401: "log in again, or give a token that is valid: --token-env NAME",
        403: f"ask for the rights in namespace {compute.namespace or 'of the context'}: `modelkit compute check "
        f"{compute.name}` lists those that are missing",
        404: "check the namespace: --namespace NAME",
        409: "somebody else changes it at the same time: run the command again",
        413: "the object is larger than the API takes: shorten its config",
        422: "the cluster does not take it as it is: the message says which field",
        429: "the API is overloaded: run the command again in a moment",
    }
    cure = cures.get(status, "run the command again; `kubectl get events` may say more")
    if status == 401:  # noqa: PLR2004 - HTTP's Unauthorized
        message = "the cluster does not accept the credentials (401 Unauthorized)"
    return KubernetesError(prefix + message, status=status, reason=reason, cure=cure)


# ---------------------------------------------------------------------------------------------------------------- calling


def locate(compute: Compute, name: str) -> Endpoint:
    """Return where a deployment is called from here. Raises UnknownDeploymentError, DeployError where it cannot be.

    In this order: what `compute.endpoint` says; the load balancer or node port of its service; the replicas themselves,
    where they can be reached from here: inside of the cluster, or on a network that has its pods.
    """
    if compute.endpoint:
        return _told_endpoint(compute.endpoint, name)
    try:
        return find_endpoint(_kept_api(compute), name, must_reach=True)
    except KubernetesError:
        _kept_api.cache_clear()  # credentials may have changed
        raise


@lru_cache(maxsize=8)
def _kept_api(compute: Compute) -> KubernetesApi:
    """Return the API of a compute, the same each time: whoever calls a deployment asks every few seconds."""
    return KubernetesApi(compute)


def find_endpoint(api: KubernetesApi, name: str, *, must_reach: bool = False) -> Endpoint:
    """Return where a deployment is called, as the cluster says it; with `must_reach`, DeployError where that is nowhere."""
    compute = api.compute
    if compute.endpoint:
        return _told_endpoint(compute.endpoint, name)
    service = api.find(_SERVICES.path(api.namespace, name))
    if compute.flavor in _OTHERS_ENDPOINTS and (service is None or "clusterIP" not in service["spec"]):
        raise _unknown_endpoint(compute, name)
    if service is None:
        services = api.items(_SERVICES.path(api.namespace), labelSelector=label_selector())
        names = sorted({each["metadata"]["labels"]["app.kubernetes.io/instance"] for each in services})
        raise UnknownDeploymentError(compute.name, name, names)
    if (published := _published(api, service)) is not None:
        return published
    hosts = _replica_hosts(api, name)
    if hosts and must_reach and not _answers(hosts[0], GRPC_PORT):
        raise _out_of_reach(api, name, hosts[0])
    if not hosts and must_reach and compute.flavor:
        raise _unknown_endpoint(compute, name)  # at zero, only what holds calls can be called
    if not hosts:
        return _by_cluster_address(service)
    return Endpoint(
        routes=(Route(targets=tuple(f"{_host(host)}:{GRPC_PORT}" for host in hosts)),),
        http_url=f"http://{_host(service['spec']['clusterIP'])}:{HTTP_PORT}",
        refresh_s=_REFRESH_S,
    )


_SERVICES = Kind("v1", "Service", "services")
_ENDPOINTS = Kind("v1", "Endpoints", "endpoints")


# Flavors whose controllers make services of their own.
_OTHERS_ENDPOINTS: Final = ("knative", "kuberay")


def _unknown_endpoint(compute: Compute, name: str) -> DeployError:
    return DeployError(
        f"{name} may be scaled to zero, and compute {compute.name} does not say where {compute.flavor} takes its calls",
        cure=f"give that address: `modelkit compute add {compute.name} --replace --endpoint '{{name}}.example.com:80'`",
    )


def _told_endpoint(text: str, name: str) -> Endpoint:
    """Return the endpoint that a person gave: host:port, with https:// for TLS, and {name} for the deployment's name."""
    address = text.replace("{name}", name)
    scheme, separator, rest = address.partition("://")
    address = (rest if separator else address).rstrip("/")
    tls = scheme in {"https", "grpcs"} if separator else address.endswith(f":{_TLS_PORT}")
    if not address.rpartition(":")[2].isdecimal():
        address = f"{address}:{_TLS_PORT if tls else GRPC_PORT}"
    http = "https" if tls else "http"
    return Endpoint(routes=(Route(targets=(address,)),), http_url=f"{http}://{address}", tls=tls)


def _published(api: KubernetesApi, service: Mapping[str, Any]) -> Endpoint | None:
    """Return where a service of type LoadBalancer or NodePort is reached; None for any other, or while it has no address."""
    kind = service["spec"].get("type")
    ports = {port["name"]: port for port in service["spec"]["ports"]}
    if kind == "LoadBalancer":
        places = (service.get("status", {}).get("loadBalancer") or {}).get("ingress") or ()
        hosts = [str(place.get("hostname") or place.get("ip")) for place in places]
        numbers = {key: port["port"] for key, port in ports.items()}
    elif kind == "NodePort":
        hosts = _node_hosts(api)
        numbers = {key: port["nodePort"] for key, port in ports.items()}
    else:
        return None
    if not hosts:
        return None
    targets = tuple(f"{_host(host)}:{numbers['grpc']}" for host in hosts)
    return Endpoint(
        routes=(Route(targets=targets),),
        http_url=f"http://{_host(hosts[0])}:{numbers['http']}",
        refresh_s=60.0,
    )


def _node_hosts(api: KubernetesApi) -> list[str]:
    """Return the addresses of all nodes: the outer ones where they have any."""
    found: dict[str, list[str]] = {"ExternalIP": [], "InternalIP": []}
    for node in api.items("/api/v1/nodes"):
        for address in node["status"].get("addresses") or ():
            found.get(address["type"], []).append(address["address"])
    return found["ExternalIP"] or found["InternalIP"]


def _replica_hosts(api: KubernetesApi, name: str) -> list[str]:
    """Return the addresses of the ready replicas."""
    endpoints = api.find(_ENDPOINTS.path(api.namespace, replicas_service(name))) or {}
    return sorted(
        address["ip"]
        for subset in endpoints.get("subsets") or ()
        for address in subset.get("addresses") or ()
    )


def _by_cluster_address(service: Mapping[str, Any]) -> Endpoint:
    """Return the service's own address, for a deployment that has no ready replica at this moment."""
    host = _host(service["spec"]["clusterIP"])
    return Endpoint(
        routes=(Route(targets=(f"{host}:{GRPC_PORT}",)),),
        http_url=f"http://{host}:{HTTP_PORT}",
        refresh_s=1.0,
    )


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_PROBE_TIMEOUT_S):
            return True
    except OSError:
        return False


def _out_of_reach(api: KubernetesApi, name: str, host: str) -> DeployError:
    context = "" if api.compute.address == IN_CLUSTER else f"--context {api.compute.address} "
    return DeployError(
        f"{name} runs on compute {api.compute.name}, but its replicas ({host}) cannot be reached from here: they have "
        "addresses of the cluster's own network",
        cure=f"for a try: `kubectl {context}--namespace {api.namespace} port-forward service/{name} {GRPC_PORT} "
        f"{HTTP_PORT}`, and call localhost:{GRPC_PORT}; for good: `kubectl {context}--namespace {api.namespace} patch "
        f"""service {name} -p '{{"spec":{{"type":"LoadBalancer"}}}}'`, or a Gateway's address as the compute's """
        "--endpoint",
    )


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
