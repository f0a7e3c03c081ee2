"""The HTTP server: routes, what holds for all of them (key, request id, error shape, CORS), and the port."""

import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import orjson
from aiohttp import hdrs, web

from modelkit import __version__
from modelkit.errors import CallError, InternalError, ServeError
from modelkit.server.auth import ApiKey
from modelkit.server.http.calls import REQUEST_ID, Calls, request_id_of
from modelkit.server.http.errors import error_response, plain_error
from modelkit.server.http.methods import MethodRoutes
from modelkit.server.http.openai import OpenAIRoutes, has_openai
from modelkit.server.http.openapi import openapi_document
from modelkit.server.http.origins import Origins
from modelkit.server.http.probes import ProbeRoutes
from modelkit.server.logs import REQUEST_ID_HEADER
from modelkit.server.predictor import Predictor

__all__ = ["HttpServer", "Identity"]

_log = logging.getLogger("modelkit.server")

# What needs no key: signs of life, and a page that knows nothing until it is given one.
_OPEN_PATHS: Final = frozenset({"/", "/health", "/ready"})
# The page is one file: nothing from elsewhere, and no server but this one.
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}
_CORS_HEADERS: Final = f"authorization, content-type, {REQUEST_ID_HEADER}, x-request-timeout"
# How long a response that has been written may take to reach its reader once the server stops.
_CLOSE_TIMEOUT_S: Final = 2.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a server says of itself."""

    model_id: str = ""
    description: str = ""
    engine: str = ""

    def info(self) -> dict[str, str]:
        """Return it as the HTTP API spells it."""
        return {
            "model_id": self.model_id,
            "description": self.description,
            "engine": self.engine,
            "modelkit_version": __version__,
        }


class HttpServer:
    """One predictor behind one HTTP port.

    `start` listens; `drain` waits for the calls in progress while probes are still answered; `close` ends it.
    """

    def __init__(
        self,
        predictor: Predictor,
        identity: Identity,
        *,
        max_body_bytes: int,
        api_key: str | None = None,
        cors_origins: tuple[str, ...] = (),
    ) -> None:
        self._predictor = predictor
        self._key = ApiKey(api_key) if api_key else None
        self._origins = Origins(cors_origins)
        self._calls = Calls()
        self._info = identity.info()
        self._app = web.Application(client_max_size=max_body_bytes, middlewares=[self._frame])
        self._app.on_response_prepare.append(self._add_headers)
        self._app.add_routes(
            [
                *OpenAIRoutes(predictor, self._calls, identity.model_id).routes(),
                *MethodRoutes(predictor, self._calls, self._info, max_body_bytes).routes(),
                *ProbeRoutes(predictor, self._info).routes(),
                web.get("/openapi.json", self._openapi),
                web.get("/", self._page),
            ]
        )
        self._runner: web.AppRunner | None = None

    async def start(
        self, host: str, port: int, tls: ssl.SSLContext | None = None, *, public_host: str | None = None
    ) -> str:
        """Listen and return the base URL. Raises ServeError where the port is taken.

        `public_host` is where callers reach it, if that is a proxy's host, which passes on what they have called it by.
        """
        runner = web.AppRunner(
            self._app,
            access_log=None,
            # A caller that goes away cancels its call, and with it the request in the engine.
            handler_cancellation=True,
            shutdown_timeout=_CLOSE_TIMEOUT_S,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, ssl_context=tls).start()
        except OSError as error:
            await runner.cleanup()
            raise ServeError(
                f"cannot listen for HTTP on {host}:{port}: {error.strerror or error}",
                cure="choose another with --http-port, or --http-port 0 for any free one; --no-http goes without",
            ) from error
        self._runner = runner
        self._origins.listens_on = public_host or host
        bound: int = runner.addresses[0][1]
        return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{bound}"

    async def drain(self, timeout_s: float) -> None:
        """Wait for the calls in progress; those that outlast the time are cut off."""
        await self._calls.drain(timeout_s)

    def hurry(self) -> None:
        """Cut off the calls that `drain` waits for."""
        self._calls.cut()

    async def close(self) -> None:
        """Stop listening and close every connection."""
        if self._runner is not None:
            await self._runner.cleanup()

    # ------------------------------------------------------------------------------------- what holds for every route

    @web.middleware
    async def _frame(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        request[REQUEST_ID] = request_id_of(request)
        if self._origins and request.method == hdrs.METH_OPTIONS and hdrs.ORIGIN in request.headers:
            return web.Response(status=204)
        try:
            self._origins.check(request.method, request.headers)
            self._check_key(request)
            return await handler(request)
        except ConnectionError:
            raise  # the reader has gone
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer
            return self._fault(request, error)

    def _check_key(self, request: web.Request) -> None:
        if self._key is None or request.path in _OPEN_PATHS:
            return
        refusal = self._key.refusal(request.headers.get(hdrs.AUTHORIZATION, ""))
        if refusal is not None:
            raise refusal

    def _fault(self, request: web.Request, error: Exception) -> web.Response:
        """Return the answer for whatever went wrong before the response began."""
        if isinstance(error, CallError):
            return error_response(error)
        if isinstance(error, web.HTTPException):
            return self._http_fault(request, error)
        _log.error("%s %s failed", request.method, request.path, exc_info=error)
        return error_response(InternalError("the server failed; its log says why"))

    def _http_fault(self, request: web.Request, error: web.HTTPException) -> web.Response:
        """Answer a fault that aiohttp found, in the same shape as every other error."""
        if isinstance(error, web.HTTPRequestEntityTooLarge):
            cure = "send less, or raise server.max_message_bytes in config.yaml"
            return plain_error(413, "request_too_large", error.text or "the request is too large", cure=cure)
        if isinstance(error, web.HTTPMethodNotAllowed):
            message = f"{request.path} does not take {request.method}"
            allowed = ", ".join(sorted(error.allowed_methods))
            return plain_error(
                405, "method_not_allowed", message, cure=f"use {allowed}", headers={"Allow": allowed}
            )
        if isinstance(error, web.HTTPNotFound):
            message = f"there is nothing at {request.path}"
            return plain_error(404, "not_found", message, cure="GET /openapi.json lists what there is")
        return plain_error(error.status, "http_error", error.reason)

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers[hdrs.SERVER] = "modelkit"
        response.headers[REQUEST_ID_HEADER] = request.get(REQUEST_ID, "")
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or not self._origins.has(origin):
            return
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = REQUEST_ID_HEADER
        response.headers["Vary"] = "Origin"
        if request.method == hdrs.METH_OPTIONS:
            response.headers["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
            response.headers["Access-Control-Allow-Headers"] = _CORS_HEADERS
            response.headers["Access-Control-Max-Age"] = "600"

    # ---------------------------------------------------------------------------------------------------- small routes

    async def _openapi(self, _request: web.Request) -> web.Response:
        document: dict[str, Any] = openapi_document(
            self._info,
            self._predictor.signatures,
            openai=has_openai(self._predictor),
            api_key=self._key is not None,
        )
        return web.Response(body=orjson.dumps(document), content_type="application/json")

    async def _page(self, _request: web.Request) -> web.Response:
        page = files("modelkit.server.http").joinpath("playground.html").read_bytes()
        return web.Response(body=page, content_type="text/html", charset="utf-8", headers=_PAGE_HEADERS)
