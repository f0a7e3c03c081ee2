"""What machines ask a server beside calls: is it alive, does it take calls, what has it done."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from modelkit.engines.llm import LLM
from modelkit.errors import NotFoundError
from modelkit.server.metrics import CONTENT_TYPE, Gauges, render
from modelkit.server.predictor import Predictor

__all__ = ["ProbeRoutes"]


class ProbeRoutes:
    """/health, /ready, /metrics, /metrics/engine."""

    def __init__(self, predictor: Predictor, info: dict[str, str]) -> None:
        self._predictor = predictor
        # A description is a paragraph, not a label.
        self._labels = {name: value for name, value in info.items() if name != "description"}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/health", self._health),
            web.get("/ready", self._ready),
            web.get("/metrics", self._metrics),
            web.get("/metrics/engine", self._engine_metrics),
        ]

    async def _health(self, _request: web.Request) -> web.Response:
        reason = self._predictor.dead_reason()
        if not reason:
            return web.json_response({"status": "ok"})
        return web.json_response({"status": "dead", "reason": reason}, status=503)

    async def _ready(self, _request: web.Request) -> web.Response:
        reason = self._predictor.unready_reason()
        if not reason:
            return web.json_response({"ready": True})
        return web.json_response({"ready": False, "reason": reason}, status=503, headers={"Retry-After": "1"})

    async def _metrics(self, _request: web.Request) -> web.Response:
        body = render(self._predictor.metrics, self._gauges(), self._labels)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    def _gauges(self) -> Gauges:
        predictor, gate = self._predictor, self._predictor.gate
        return {
            "modelkit_ready": ("1 while calls are taken.", lambda: float(not predictor.unready_reason())),
            "modelkit_calls_running": ("Calls in progress.", lambda: gate.num_running),
            "modelkit_calls_waiting": (
                "Calls that wait for one in progress to end.",
                lambda: gate.num_waiting,
            ),
            "modelkit_calls_limit": (
                "Most calls in progress at the same time.",
                lambda: gate.max_concurrency,
            ),
        }

    async def _engine_metrics(self, _request: web.Request) -> web.Response:
        read = self._engine_metrics_source()
        body = await read() if read is not None else b""
        if not body:
            raise NotFoundError("the engine has no metrics of its own", cure="GET /metrics has the server's")
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    def _engine_metrics_source(self) -> Callable[[], Awaitable[bytes]] | None:
        model = self._predictor.model
        if isinstance(model, LLM) and hasattr(model, "engine"):
            return model.engine.metrics
        return None
