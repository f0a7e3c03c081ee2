"""The replica: one model behind Ray Serve, answering the contract and HTTP through the same predictor as `modelkit serve`.

Ray imports `build` on the cluster and makes the replicas from what it returns; nothing here is loaded anywhere else.
"""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from grpc_health.v1 import health_pb2

from modelkit import __version__
from modelkit.checkpoints.resolve import Terms, prepare
from modelkit.deploy.ray_serve.calls import Call, serve_stream, serve_unary
from modelkit.deploy.ray_serve.content import open_content
from modelkit.deploy.ray_serve.forward import Forwarder
from modelkit.deploy.ray_serve.manifest import DEPLOYMENT, read_replica_args
from modelkit.deploy.ray_serve.secrets import SECRETS_DIR_ENV, find_secret, give_secrets
from modelkit.deploy.record import DeploymentSpec
from modelkit.errors import LoadError
from modelkit.inference.v1 import inference_pb2 as pb
from modelkit.server import LIVENESS, SERVICE_NAME, Predictor
from modelkit.server.auth import ApiKey
from modelkit.server.folder import open_model
from modelkit.server.http import HttpServer, Identity
from modelkit.server.logs import configure_logging, new_request_id
from modelkit.server.servicer import Servicer
from modelkit.server.status import status_code, status_message, status_trailer

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["Replica", "build"]

_log = logging.getLogger("modelkit.server")

T = TypeVar("T")

_WATCH_POLL_S: Final = 0.5
_Status = health_pb2.HealthCheckResponse


def build(args: dict[str, Any]) -> Any:
    """Return the application that Ray deploys: `args` are those of the manifest."""
    import ray.serve

    serve: Any = ray.serve
    return serve.deployment(Replica, name=DEPLOYMENT).bind(dict(args))


class Replica:
    """Answers the contract, health checks and HTTP. The names of its methods are those of the RPCs."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc] # Ray awaits it
        spec, public_host = read_replica_args(args)
        content = await asyncio.to_thread(open_content, spec)
        self._log_to_stderr(content.folder)
        _log.info("starting %s %s with modelkit %s", spec.model_id, spec.version, __version__)
        config = content.config
        _give_secrets(spec)
        # Without it anyone could call the model; it is there, for it is one of the secrets.
        self._key = ApiKey(find_secret(spec.api_key_env) or "") if spec.api_key_env else None
        model = await asyncio.to_thread(
            open_model,
            content.folder,
            config,
            lambda stage: _log.info("%s", stage),
            lambda: prepare(config, content.folder, Terms(writes_lock=False)),
        )
        limits = config.server
        self._predictor = Predictor(model, max_concurrency=limits.max_concurrency, max_queue=limits.max_queue)
        identity = Identity(
            config.model.id, config.model.description or "", config.engine.name if config.engine else ""
        )
        self._servicer = Servicer(
            self._predictor,
            pb.DescribeResponse(
                model_id=identity.model_id,
                description=identity.description,
                engine=identity.engine,
                modelkit_version=__version__,
            ),
            max_message_bytes=limits.max_message_bytes,
        )
        await self._predictor.load()
        self._http = HttpServer(
            self._predictor,
            identity,
            max_body_bytes=limits.max_message_bytes,
            api_key=find_secret(spec.api_key_env) if spec.api_key_env else None,
        )
        self._forward = Forwarder(await self._http.start("127.0.0.1", 0, public_host=public_host))
        _log.info("%s is ready", spec.model_id)

    # -------------------------------------------------------------------------------------------- modelkit.inference.v1

    async def Describe(self, request: Any, grpc_context: Any) -> pb.DescribeResponse:  # noqa: N802
        """Say what the model is."""
        return await self._unary(grpc_context, self._servicer.Describe, request, pb.DescribeResponse())

    async def Predict(self, request: Any, grpc_context: Any) -> pb.PredictResponse:  # noqa: N802
        """Call a unary method."""
        return await self._unary(grpc_context, self._servicer.Predict, request, pb.PredictResponse())

    async def Generate(self, request: Any, grpc_context: Any) -> AsyncGenerator[Any, None]:  # noqa: N802
        """Call a server-streaming method."""
        async for message in self._stream(
            grpc_context, self._servicer.Generate, request, pb.GenerateResponse()
        ):
            yield message

    async def Stream(self, requests: AsyncIterator[Any], grpc_context: Any) -> AsyncGenerator[Any, None]:  # noqa: N802
        """Call a bidirectional method."""
        async for message in self._stream(grpc_context, self._servicer.Stream, requests, pb.StreamResponse()):
            yield message

    async def _unary(
        self, grpc_context: Any, method: Callable[[Any, Any], Awaitable[T]], request: Any, empty: T
    ) -> T:
        async def answer(call: Call) -> T:
            await self._check_key(call)
            return await method(request, call)

        return await serve_unary(grpc_context, answer, empty)

    def _stream(
        self, grpc_context: Any, method: Callable[[Any, Any], Awaitable[None]], request: Any, empty: T
    ) -> AsyncGenerator[T, None]:
        async def answer(call: Call) -> None:
            await self._check_key(call)
            await method(request, call)

        return serve_stream(grpc_context, answer, empty)

    async def _check_key(self, call: Call) -> None:
        refusal = None if self._key is None else self._key.refusal(call.authorization())
        if refusal is not None:
            trailer = status_trailer(refusal, new_request_id())
            await call.abort(status_code(refusal), status_message(refusal), [trailer])

    # --------------------------------------------------------------------------------------------------- grpc.health.v1

    async def Check(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802
        """Say whether calls are taken now."""
        status = self._health(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            import grpc

            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
        return _Status(status=status)

    async def List(self, _request: Any) -> Any:  # noqa: N802
        """Say so of every service."""
        names = ("", SERVICE_NAME, LIVENESS)
        return health_pb2.HealthListResponse(
            statuses={name: _Status(status=self._health(name)) for name in names}
        )

    async def Watch(self, request: Any) -> AsyncGenerator[Any, None]:  # noqa: N802
        """Say so now and at each change."""
        told = None
        while True:
            status = self._health(request.service)
            if status != told:
                told = status
                yield _Status(status=status)
            await asyncio.sleep(_WATCH_POLL_S)

    def _health(self, service: str) -> Any:
        if service == LIVENESS:
            is_well = not self._predictor.dead_reason()
        elif service in {"", SERVICE_NAME}:
            is_well = not self._predictor.unready_reason()
        else:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if is_well else _Status.NOT_SERVING

    # -------------------------------------------------------------------------------------------- what Ray calls itself

    async def __call__(self, request: "Request") -> Any:
        """Answer HTTP."""
        return await self._forward(request)

    def reconfigure(self, _record: Any) -> None:
        """Take in a new record, which is kept with the deployment and changes nothing in a replica."""

    def check_health(self) -> None:
        """Raise where this replica is of no use any more, so that Ray starts another."""
        reason = self._predictor.dead_reason()
        if reason:
            raise RuntimeError(reason)

    async def __del__(self) -> None:  # Ray awaits it, once the calls have ended
        if hasattr(self, "_forward"):
            self._predictor.drain()
            await self._forward.close()
            await self._http.close()
        if hasattr(self, "_predictor"):
            await self._predictor.close()

    @staticmethod
    def _log_to_stderr(folder: Path) -> None:
        # Ray keeps a file for each of the two: what the model prints is to be found beside what it logs.
        sys.stdout.flush()
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        level = os.environ.get("MODELKIT_LOG_LEVEL", "INFO").upper()
        configure_logging(logging.getLevelNamesMapping().get(level, logging.INFO), author_dir=folder)


def _give_secrets(spec: DeploymentSpec) -> None:
    """Put the secrets into the environment. Raises LoadError where this node lacks one that is needed."""
    missing = give_secrets(spec.variables())
    if missing:
        raise LoadError(
            f"this node does not have {', '.join(missing)}, which {spec.model_id} needs",
            cure=f"start Ray with it in its environment, or put it into a file of that name in {SECRETS_DIR_ENV}",
        )
