"""The server process: startup, main loop, shutdown.

The port is open before the model loads, so that health checks and Describe answer from the first moment; readiness
comes when the model has loaded.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from modelkit import __version__
from modelkit.errors import ServeError
from modelkit.inference.contract import add_inference_to_server
from modelkit.inference.v1 import inference_pb2 as pb
from modelkit.model import Model
from modelkit.server.auth import ApiKeyInterceptor, DeploymentInterceptor
from modelkit.server.http import HttpServer, Identity
from modelkit.server.predictor import Predictor, State
from modelkit.server.servicer import Servicer

__all__ = ["LIVENESS", "SERVICE_NAME", "Server", "ServerOptions", "TlsFiles"]

_log = logging.getLogger("modelkit.server")

# How long no call may have come before the ports close, and how long at most they stay open for that.
_QUIET_S = 0.25
_MAX_REFUSING_S = 2.0

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
# Health checks of this name ask whether the process is alive and of use: not once its engine has been given up. Those of
# "" and SERVICE_NAME ask whether it takes calls.
LIVENESS: Final = "liveness"

# How late a health watcher may hear of it; calls and HTTP's /ready ask each time.
_READINESS_POLL_S = 0.2
_LAST_WORDS_S = 0.1

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the server's certificate chain and key; with `client_ca`, clients must have a certificate too."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How a server listens. A port of 0 takes a free one; `http_port` None leaves HTTP out. Bytes and seconds.

    `cors_origins` are the web origins whose pages may call over HTTP, "*" for all; none by default. `deployment` is the
    one that this is a replica of: calls that were meant for another are refused.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    http_port: int | None = None
    cors_origins: tuple[str, ...] = ()
    max_concurrency: int = 128
    max_queue: int = 1024
    max_message_bytes: int = 64 * 1024 * 1024
    drain_timeout_s: float = 30.0
    tls: TlsFiles | None = None
    api_key: str | None = field(default=None, repr=False)
    deployment: str | None = None


class Server:
    """One model behind a gRPC port and, where the options ask for it, an HTTP port.

    server = Server(model, ServerOptions(port=0, http_port=0))
    await server.startup()      # listens; `server.address` and `server.http_url` are known; not ready yet
    await server.load()         # loads the model; ready
    ...
    await server.shutdown()     # drains, closes the model

    """

    def __init__(
        self,
        model: Model,
        options: ServerOptions | None = None,
        *,
        model_id: str = "",
        description: str = "",
        engine: str = "",
    ) -> None:
        self.options = options or ServerOptions()
        self.predictor = Predictor(
            model, max_concurrency=self.options.max_concurrency, max_queue=self.options.max_queue
        )
        self.address = ""
        self.http_url = ""
        self._identity = pb.DescribeResponse(
            model_id=model_id, description=description, engine=engine, modelkit_version=__version__
        )
        self._health = _Health()
        self._grpc: Any = None
        self._http = self._make_http(Identity(model_id, description, engine))
        self._hurrying: asyncio.Future[None] | None = None
        self._following: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Open the ports. Raises ServeError when one is taken or the TLS files cannot be read."""
        interceptors: list[Any] = []
        if self.options.deployment:  # first: another deployment has another key
            interceptors.append(DeploymentInterceptor(self.options.deployment))
        if self.options.api_key:
            interceptors.append(ApiKeyInterceptor(self.options.api_key))
        server = grpc.aio.server(interceptors=interceptors, options=_channel_options(self.options))
        servicer = Servicer(self.predictor, self._identity, max_message_bytes=self.options.max_message_bytes)
        add_inference_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        self.address = _bind(server, self.options)
        await self._start_http()
        await self._set_ready(ready=False)
        await self._health.set(LIVENESS, _SERVING)
        await server.start()
        self._grpc = server

    async def load(self) -> None:
        """Load the model and say that it is ready. Raises what Predictor.load raises."""
        await self.predictor.load()
        await self._set_ready(ready=not self.predictor.unready_reason())
        self._following = asyncio.create_task(self._follow_readiness(), name="modelkit readiness")

    async def shutdown(self) -> int:
        """Drain and stop: refuse new calls, let the running ones end, cancel those that outlast the drain time.

        Returns how many calls are still running in threads, which nothing can stop.
        """
        self.predictor.drain()
        if self._following is not None:
            self._following.cancel()
        draining = []
        if self._grpc is not None:
            await self._set_ready(ready=False)
            await self._health.end_watches()
            await self._outlast_callers()
            draining.append(self._grpc.stop(self.options.drain_timeout_s))
        if self._http is not None:
            draining.append(self._http.drain(self.options.drain_timeout_s))
        await asyncio.gather(*draining)
        if self._http is not None:
            await self._http.close()
        return await self.predictor.close()

    async def _outlast_callers(self) -> None:
        """Refuse calls for as long as some come, briefly: each tells its caller to go elsewhere, and to repeat it.

        One that comes in the moment in which gRPC stops is cancelled instead, and nobody knows whether it has run.
        """
        until = time.monotonic() + min(_MAX_REFUSING_S, self.options.drain_timeout_s)
        while self._hurrying is None and time.monotonic() < until:
            quiet_s = time.monotonic() - self.predictor.called_at
            if quiet_s >= _QUIET_S:
                return
            await asyncio.sleep(_QUIET_S - quiet_s)

    def hurry(self) -> None:
        """Cancel the calls that a shutdown under way still waits for."""
        if self._grpc is not None:
            self._hurrying = asyncio.ensure_future(self._grpc.stop(0))
        if self._http is not None:
            self._http.hurry()

    async def serve(self, stop: asyncio.Event, on_ready: Callable[[], None]) -> int:
        """Run from startup to shutdown: load, call `on_ready`, wait for `stop`. Returns what `shutdown` returns.

        A stop while the model loads ends the loading.
        """
        await self.startup()
        try:
            loading = asyncio.create_task(self.load())
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([loading, stopping], return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                on_ready()
                await stopping
            loading.cancel()
            stopping.cancel()
            # A load that is ended has something to tidy up: an engine that is half started.
            await asyncio.wait([loading], timeout=self.options.drain_timeout_s)
        finally:
            num_stuck = await self.shutdown()
        return num_stuck

    @property
    def state(self) -> State:
        """Where the model is in its life."""
        return self.predictor.state

    def _make_http(self, identity: Identity) -> HttpServer | None:
        options = self.options
        if options.http_port is None:
            return None
        return HttpServer(
            self.predictor,
            identity,
            max_body_bytes=options.max_message_bytes,
            api_key=options.api_key,
            cors_origins=options.cors_origins,
        )

    async def _start_http(self) -> None:
        options = self.options
        if self._http is not None and options.http_port is not None:
            tls = _ssl_context(options.tls) if options.tls else None
            self.http_url = await self._http.start(options.host, options.http_port, tls)

    async def _follow_readiness(self) -> None:
        """Tell health watchers when a loaded model stops and starts answering: its engine dies and comes back, or not."""
        told = ""
        is_dead = False
        while True:
            await asyncio.sleep(_READINESS_POLL_S)
            reason = self.predictor.unready_reason()
            if bool(reason) != bool(told):
                _log.warning("not ready: %s", reason) if reason else _log.info("ready again")
                await self._set_ready(ready=not reason)
            told = reason
            if not is_dead and (dead_reason := self.predictor.dead_reason()):
                is_dead = True
                _log.error("not alive: %s; this process has to be started again", dead_reason)
                await self._health.set(LIVENESS, _NOT_SERVING)

    async def _set_ready(self, *, ready: bool) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, _SERVING if ready else _NOT_SERVING)


class _Health(health.aio.HealthServicer):  # type: ignore[misc,unused-ignore]
    """The standard health service; its Watch streams, which have no end, end when the server drains."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[Any]] = set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """Send the status of a service now and at each change."""
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            await super().Watch(request, context)
        except asyncio.CancelledError:
            _log.debug("a health watch of '%s' ended", request.service)
        finally:
            self._watches.discard(task)

    async def end_watches(self) -> None:
        """End all streams, after a moment in which they tell the last change."""
        if self._watches:
            await asyncio.sleep(_LAST_WORDS_S)
        for task in self._watches:
            task.cancel()


def _channel_options(options: ServerOptions) -> Sequence[tuple[str, int]]:
    return (
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        # Without this a second server on the same port would start, and get half of the calls.
        ("grpc.so_reuseport", 0),
        # Beyond 1,000 calls that Python has not seen yet, gRPC drops some with a bare CANCELLED. Whether there is room
        # is for the gate to say, with a status that tells when to come again.
        ("grpc.server.max_pending_requests", 100_000),
        ("grpc.server.max_pending_requests_hard_limit", 100_000),
        # Clients may ask for signs of life as often as every 10 s while a long prompt is read.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    )


def _bind(server: Any, options: ServerOptions) -> str:
    """Bind the port and return `host:port` as a client on this machine would write it."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    target = f"{host}:{options.port}"
    try:
        if options.tls is None:
            port = server.add_insecure_port(target)
        else:
            port = server.add_secure_port(target, _credentials(options.tls))
    except RuntimeError as error:
        raise ServeError(
            f"cannot listen on {target}: the port is taken, or the host is not an address of this machine",
            cure="choose another with --port, or --port 0 for any free one",
        ) from error
    return f"{host}:{port}"


def _check_pair(tls: TlsFiles) -> None:
    """Raise SSLError for files that gRPC would take for a port that cannot be opened."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key, password="")
    if tls.client_ca:
        context.load_verify_locations(tls.client_ca)


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    try:
        chain, key = tls.certificate.read_bytes(), tls.key.read_bytes()
        client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
        _check_pair(tls)
    except ssl.SSLError as error:
        raise ServeError(
            f"the TLS files cannot be used: {error.reason or error} ({tls.certificate}, {tls.key})",
            cure="give PEM files, a certificate and its own key, which must not be encrypted",
        ) from error
    except OSError as error:
        raise ServeError(
            f"cannot read the TLS file {error.filename}: {error.strerror}",
            cure="give PEM files that this user can read",
        ) from error
    return grpc.ssl_server_credentials([(key, chain)], client_ca, require_client_auth=client_ca is not None)


def _ssl_context(tls: TlsFiles) -> ssl.SSLContext:
    """Return what HTTP needs of the same files."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.client_ca)
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except (ssl.SSLError, OSError) as error:
        raise ServeError(
            f"the TLS certificate and key do not fit: {error}", cure="give PEM files that belong together"
        ) from error
    if tls.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
