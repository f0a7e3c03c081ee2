"""Ray's own HTTP API, as its dashboard serves it: what runs, what is to run, packages and logs. No ray is needed here."""

import json
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from modelkit.computes.endpoint import Endpoint, Route
from modelkit.computes.store import LOCAL_RAY, Compute
from modelkit.errors import DeployError, UnknownDeploymentError

__all__ = ["CANARY_SUFFIX", "RayApi", "endpoint_of", "is_on_this_machine", "local_token", "locate"]

# The canary of a deployment is an application of its own; no deployment can be called so.
CANARY_SUFFIX: Final = ".canary"
# How long callers may go on with the addresses they have: replicas come and go, and one that ends drains for longer.
REFRESH_S: Final = 2.0

_CALLABLE: Final = frozenset({"HEALTHY", "STARTING"})
_TIMEOUT_S: Final = 30.0
_CONNECT_TIMEOUT_S: Final = 5.0
_MAX_SAID_CHARS: Final = 500
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _BAD_REQUEST = 401, 403, 404, 400
_MAX_PACKAGE_BYTES: Final = 100 * 1024 * 1024  # Ray's own limit


class RayApi:
    """The dashboard of one cluster. Every method raises DeployError where it refuses, or cannot be reached."""

    def __init__(self, compute: Compute) -> None:
        import httpx

        self.compute = compute
        token = local_token() if compute.name == LOCAL_RAY and not compute.token_env else compute.token()
        verify: ssl.SSLContext | bool = True
        if compute.ca_path:
            verify = ssl.create_default_context(cafile=compute.ca_path)
        self._client = httpx.Client(
            base_url=compute.address.rstrip("/"),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            verify=verify,
            trust_env=not is_on_this_machine(compute),
        )

    # ---------------------------------------------------------------------------------------------------------- serve

    def version(self) -> str:
        """Return Ray's version."""
        return str(self._get("/api/version").get("ray_version", ""))

    def instance(self) -> dict[str, Any]:
        """Return what the cluster says of its Serve: options, applications, replicas, addresses."""
        return self._get("/api/serve/applications/")

    def put_applications(self, instance: Mapping[str, Any], apps: list[Mapping[str, Any]]) -> None:
        """Make these the applications that were deployed this way; Ray ends those that are left out.

        The options of a Serve that runs already are sent as they are: it would complain of others, and take none.
        """
        kept = ("proxy_location", "http_options", "grpc_options", "controller_options")
        body = {key: instance[key] for key in kept if instance.get(key)}
        self._send("PUT", "/api/serve/applications/", json={**body, "applications": apps})

    # -------------------------------------------------------------------------------------------------------- packages

    def put_package(self, uri: str, data: bytes) -> None:
        """Keep a package in the cluster's store, where it is not there already."""
        if len(data) >= _MAX_PACKAGE_BYTES:
            raise DeployError(
                f"the model folder packs to {len(data) / 1e6:.0f} MB, and Ray takes packages of less than 100 MiB",
                cure="list what the model does not need in .modelkitignore, or deploy an uploaded version from a registry",
            )
        path = f"/api/packages/{quote(uri.replace('://', '/', 1))}"
        answer = self._request("GET", path)
        if answer.status_code == _NOT_FOUND:
            self._send("PUT", path, content=data)
        else:
            self._check(answer)

    # ----------------------------------------------------------------------------------------------------------- nodes

    def nodes(self) -> list[dict[str, Any]]:
        """Return every node that is alive, with its resources and labels."""
        found = self._get(
            "/api/v0/nodes?detail=1&limit=1000&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        )
        rows: list[dict[str, Any]] = found["data"]["result"]["result"]
        return rows

    def usage(self) -> dict[str, tuple[float, float]]:
        """Return how much of each resource is taken, and how much there is; {} where the head has not counted yet."""
        found = self._get("/api/cluster_status")
        report = ((found.get("data") or {}).get("clusterStatus") or {}).get("loadMetricsReport") or {}
        return {
            name: (float(used), float(total)) for name, (used, total) in (report.get("usage") or {}).items()
        }

    # ------------------------------------------------------------------------------------------------------------ logs

    def dead_actors(self, class_name: str) -> list[dict[str, Any]]:
        """Return the actors of a class that have ended and that the cluster still remembers, with `end_time_ms`."""
        filters = [("class_name", class_name), ("state", "DEAD")]
        query = [
            pair
            for key, value in filters
            for pair in (("filter_keys", key), ("filter_predicates", "="), ("filter_values", value))
        ]
        found = self._get(f"/api/v0/actors?{urlencode([('detail', 1), ('limit', 100), *query])}")
        rows: list[dict[str, Any]] = found["data"]["result"]["result"]
        return [{**row, "end_time_ms": ended} for row, ended in zip(rows, self._end_times(rows), strict=True)]

    def _end_times(self, actors: list[dict[str, Any]]) -> list[int]:
        """Return when actors have ended, 0 where that is not known: of the two lists only the dashboard's own says it."""
        if not actors:
            return []
        ids = [str(each["actor_id"]) for each in actors]
        found = self._get(f"/logical/actors?{urlencode({'ids': ','.join(ids), 'nocache': 1})}")
        known = (found.get("data") or {}).get("actors") or {}
        return [int((known.get(each) or {}).get("endTime") or 0) for each in ids]

    def log_lines(self, actor_id: str, *, num_lines: int, follow: bool = False) -> Iterator[str]:
        """Yield the last lines that an actor's process wrote; with `follow` those that come, until it ends."""
        import httpx

        media = "stream" if follow else "file"
        parameters: dict[str, str | int] = {
            "actor_id": actor_id,
            "suffix": "err",
            "lines": num_lines,
        }
        timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S) if follow else _TIMEOUT_S
        try:
            with self._client.stream(
                "GET", f"/api/v0/logs/{media}", params=parameters, timeout=timeout
            ) as answer:
                if answer.is_error:
                    answer.read()
                    self._check(answer)
                yield from _chunks_to_lines(answer.iter_bytes())
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def close(self) -> None:
        """Release the connections."""
        self._client.close()

    # ------------------------------------------------------------------------------------------------------------- wire

    def _get(self, path: str) -> dict[str, Any]:
        answer = self._send("GET", path)
        try:
            content = answer.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise DeployError(
                f"what answers at {self.compute.address} is not Ray's dashboard",
                cure=f"give the dashboard's address: `modelkit compute add {self.compute.name} --replace --address http://head:8265`",
            )
        return content

    def _send(self, method: str, path: str, **options: Any) -> Any:
        answer = self._request(method, path, **options)
        self._check(answer)
        return answer

    def _request(self, method: str, path: str, **options: Any) -> Any:
        import httpx

        try:
            return self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> DeployError:
        import httpx

        where = f"compute {self.compute.name} ({self.compute.address})"
        if isinstance(error, httpx.TimeoutException):
            return DeployError(
                f"{where} does not answer in time",
                cure="see whether the head of the cluster is up, and its dashboard's port open from here",
            )
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return DeployError(
                f"the certificate of {where} is not trusted", cure="name its authority with --ca FILE"
            )
        return DeployError(
            f"{where} cannot be reached: {error}",
            cure="see whether the cluster runs, and whether the address is that of its dashboard (port 8265 by default)",
        )

    def _check(self, answer: Any) -> None:
        """Raise DeployError for an answer that says that something is wrong, with the cure."""
        if not answer.is_error:
            return
        where, status = f"compute {self.compute.name}", answer.status_code
        said = answer.text.strip()[:_MAX_SAID_CHARS]
        if status in {_UNAUTHORIZED, _FORBIDDEN}:
            if "Authorization" in self._client.headers:
                raise DeployError(
                    f"{where} does not take the token", cure="give the one that the cluster was started with"
                )
            raise DeployError(
                f"{where} asks for a token",
                cure=f"`modelkit compute add {self.compute.name} --replace --token-env NAME`, with the token in that variable",
            )
        if status == _NOT_FOUND:
            raise DeployError(
                f"{where} has no {answer.request.url.path}",
                cure="give the address of Ray's dashboard (port 8265 by default), of Ray 2.60 or later with ray[serve]",
            )
        raise DeployError(f"{where} refuses ({status}): {said}", cure="")


def _chunks_to_lines(chunks: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def is_on_this_machine(compute: Compute) -> bool:
    """Tell whether a cluster's head is this machine, by its address."""
    return (urlsplit(compute.address).hostname or "") in {"localhost", "127.0.0.1", "::1"}


def local_token() -> str | None:
    """Return the token of this machine's private Ray, None where none runs."""
    from modelkit.computes.store import computes_path

    try:
        content = json.loads(computes_path().with_name(f"{LOCAL_RAY}.json").read_text(encoding="utf-8"))
        return str(content["token"])
    except (OSError, ValueError, KeyError):
        return None


# -------------------------------------------------------------------------------------------------------- where to call


def locate(compute: Compute, name: str) -> Endpoint:
    """Return where a deployment is called. Raises UnknownDeploymentError, DeployError, UsageError."""
    api = RayApi(compute)
    try:
        instance = api.instance()
    finally:
        api.close()
    return endpoint_of(compute, instance, name)


def endpoint_of(compute: Compute, instance: Mapping[str, Any], name: str) -> Endpoint:
    """Return where a deployment is called, from what its cluster says. Raises UnknownDeploymentError."""
    applications: Mapping[str, Any] = instance.get("applications") or {}
    if name not in applications:
        raise UnknownDeploymentError(compute.name, name, sorted(applications))
    canary = applications.get(name + CANARY_SUFFIX)
    percent = _canary_percent(canary) if canary else 0
    shares = [(name, 100 - percent), *([(name + CANARY_SUFFIX, percent)] if percent else [])]
    routes = tuple(_route(compute, instance, app, weight) for app, weight in shares if weight)
    return Endpoint(
        routes=routes,
        http_url=_http_url(compute, instance, name),
        carries_deadline=False,
        refresh_s=REFRESH_S,
    )


def _canary_percent(canary: Mapping[str, Any]) -> int:
    if canary.get("status") != "RUNNING":
        return 0  # it gets calls once it can answer
    try:
        return int(canary["deployed_app_config"]["deployments"][0]["user_config"]["canary_percent"])
    except (KeyError, IndexError, TypeError, ValueError):
        return 0


def _route(compute: Compute, instance: Mapping[str, Any], app: str, weight: int) -> Route:
    metadata = {"application": app}
    if compute.endpoint:  # what is in front of the proxies: the nodes' own addresses mean nothing here
        return Route(targets=(compute.endpoint,), metadata=metadata, weight=weight)
    proxies = _proxies(compute, instance, "grpc_options")
    replicas = tuple(address for address in _targets(compute, instance, app) if address not in proxies)
    return Route(
        targets=replicas or proxies, waiting=proxies if replicas else (), metadata=metadata, weight=weight
    )


def _targets(compute: Compute, instance: Mapping[str, Any], app: str) -> tuple[str, ...]:
    """Return the addresses of an application's replicas, where they answer calls themselves."""
    groups = instance.get("target_groups") or ()
    mine = [group for group in groups if group.get("protocol") == "gRPC" and group.get("app_name") == app]
    targets = [target for group in mine for target in group.get("targets") or ()]
    return tuple(sorted({_address(compute, target["ip"], target["port"]) for target in targets}))


def _proxies(compute: Compute, instance: Mapping[str, Any], options: str) -> tuple[str, ...]:
    """Return the addresses of the proxies, which hold calls while no replica runs."""
    port = (instance.get(options) or {}).get("port")
    proxies = (instance.get("proxies") or {}).values()
    nodes = {
        proxy["node_ip"] for proxy in proxies if proxy.get("node_ip") and proxy.get("status") in _CALLABLE
    }
    return tuple(sorted(_address(compute, node, port) for node in nodes)) if port else ()


def _http_url(compute: Compute, instance: Mapping[str, Any], name: str) -> str | None:
    if compute.endpoint:  # it takes gRPC; where HTTP goes, nobody has said
        return None
    proxies = _proxies(compute, instance, "http_options")
    head = urlsplit(compute.address).hostname or ""
    mine = [address for address in proxies if address.startswith(f"{head}:")]
    return f"http://{(mine or proxies)[0]}/{name}" if proxies else None


def _address(compute: Compute, host: str, port: int) -> str:
    if (
        compute.name == LOCAL_RAY
    ):  # Ray says the machine's address of the network, also where it listens on loopback
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
