"""Fakes and helpers for the tests of people who build on modelkit: `run_server(model)` is the real server, small."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from modelkit.config import Config
from modelkit.model import Model, ModelContext
from modelkit.server import Server, ServerOptions

__all__ = ["RunningServer", "run_server"]

_START_TIMEOUT_S = 120.0


class RunningServer:
    """A server in a thread of this process. `address` is what a client connects to, `http_url` the base of its URLs."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.address = server.address
        self.http_url = server.http_url
        self._loop = loop

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine on the server's event loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_START_TIMEOUT_S)


@contextmanager
def run_server(
    model: Model | type[Model],
    *,
    options: ServerOptions | None = None,
    config: Config | None = None,
    model_dir: Path | None = None,
    load: bool = True,
    http: bool = False,
) -> Iterator[RunningServer]:
    """Serve a model on a free port of the loopback interface until the block ends.

        with run_server(Greeter) as server, Client(server.address) as client:
            assert client.predict(name="Ada", method="greet") == "Hello, Ada!"

    With `http=True` it answers HTTP too, at `server.http_url`. With `load=False` it listens but is not ready: call `server.run(server.server.load())`. Raises what loading raises.
    """
    instance = model() if isinstance(model, type) else model
    config = config or Config.model_validate({"model": {"id": "test"}})
    if not hasattr(instance, "context"):
        instance.context = ModelContext(config, model_dir or Path.cwd())
    options = options or ServerOptions(port=0, drain_timeout_s=2.0)
    if http and options.http_port is None:
        options = replace(options, http_port=0)
    engine = config.engine.name if config.engine else ""
    server = Server(instance, options, model_id=config.model.id, engine=engine)
    with _loop_in_thread() as loop:
        asyncio.run_coroutine_threadsafe(server.startup(), loop).result(_START_TIMEOUT_S)
        running = RunningServer(server, loop)
        try:
            if load:
                running.run(server.load())
            yield running
        finally:
            running.run(server.shutdown())


@contextmanager
def _loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread; what still runs on it at the end is cancelled."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="modelkit-test-server", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_the_rest(), loop).result(_START_TIMEOUT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_the_rest() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
