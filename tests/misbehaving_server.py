"""A server of OpenAI's API that misbehaves as it is told, and keeps the truth: when it sent each token, by the same clock.

    python misbehaving_server.py [--strict] [--pace FIRST_S GAP_S]          prints its port; ends with its stdin
    python misbehaving_server.py --grpc                                     `Misbehaving` in a process of its own

The request says how to answer, in its prompt: a JSON object of `Script`'s fields. GET /truth returns what was sent, by the
script's `name`: client and server read CLOCK_MONOTONIC, so the two can be compared to the microsecond. `Misbehaving` is
the same behind gRPC, as a model for `modelkit.testing.run_server`.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from modelkit import Model, current_request, method
from modelkit.errors import UnavailableError


@dataclass
class Script:
    """How one request is answered."""

    name: str
    tokens: int = 8
    first_s: float = 0.02  # before the first token
    gap_s: float = 0.01  # before each other one
    stall_before: int = -1  # this token waits...
    stall_s: float = 0.0  # ...so much longer
    coalesce: int = 1  # so many tokens leave in one write
    per_chunk: int = 1  # so many tokens are in one chunk
    running_usage: bool = True
    final_usage: bool = True
    usage_factor: float = 1.0  # what the usage says of the tokens
    reset_before: int = -1  # the connection is cut before this token
    error_before: int = -1  # an error event in place of this token
    status: int = 200
    done: bool = True
    hang: bool = False
    prompt_tokens: int = 5

    def __str__(self):
        return json.dumps(asdict(self))

    def pauses(self) -> Iterator[tuple[float, int]]:
        """Yield (seconds to wait, tokens) for each chunk."""
        for start in range(0, self.tokens, self.per_chunk):
            number = min(self.per_chunk, self.tokens - start)
            pause = self.first_s if start == 0 else self.gap_s * number
            if start <= self.stall_before < start + number:
                pause += self.stall_s
            yield pause, number


@dataclass
class Truth:
    """What the server knows of one request."""

    received_ns: int
    sent: list[list[int]] = field(default_factory=list)  # [when, tokens], a write each
    ended_ns: int = 0


class ConnectionCut(Exception):  # noqa: N818
    """The connection is to be cut."""


class Answers:
    """Plays scripts; what is sent is noted the moment before it is."""

    def __init__(self) -> None:
        self.truth: dict[str, Truth] = {}
        # Where everything stands still until, by the clock's seconds.
        self.frozen_until = 0.0

    async def play(self, script: Script, received_ns: int = 0) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the chunks of each write."""
        truth = self.truth[script.name] = Truth(received_ns or time.perf_counter_ns())
        waiting: list[dict[str, Any]] = []
        num_waiting = total = 0
        for number_of_chunk, (pause_s, number) in enumerate(script.pauses()):
            await asyncio.sleep(pause_s)
            await asyncio.sleep(max(0.0, self.frozen_until - time.perf_counter()))
            if 0 <= script.reset_before <= total:
                raise ConnectionCut
            if 0 <= script.error_before <= total:
                yield [{"error": {"message": "out of luck"}}]
                return
            total += number
            num_waiting += number
            waiting.append(self._chunk(script, total, number))
            is_last = total == script.tokens
            if is_last and script.final_usage:
                waiting.append({"choices": [], "usage": self._usage(script, total)})
            if (number_of_chunk + 1) % script.coalesce == 0 or is_last:
                truth.sent.append([time.perf_counter_ns(), num_waiting])
                yield waiting
                waiting, num_waiting = [], 0
        truth.ended_ns = time.perf_counter_ns()

    @staticmethod
    def _usage(script: Script, total: int) -> dict[str, Any]:
        return {
            "prompt_tokens": script.prompt_tokens,
            "completion_tokens": round(total * script.usage_factor),
            "prompt_tokens_details": {"cached_tokens": 2},
        }

    def _chunk(self, script: Script, total: int, number: int) -> dict[str, Any]:
        reason = "length" if total == script.tokens else None
        chunk = {"choices": [{"index": 0, "text": "word " * number, "finish_reason": reason}]}
        return chunk | ({"usage": self._usage(script, total)} if script.running_usage else {})


# How a prompt that is no script is answered: seconds before the first token, and before each other one.
PACE = [0.002, 0.001]


def read_script(body: dict[str, Any]) -> Script:
    """Read the prompt; a plain one is answered with as many tokens as it asks for."""
    prompt = body.get("prompt") or body["messages"][-1]["content"]
    if isinstance(prompt, str) and prompt.startswith('{"name"'):
        script = Script(**json.loads(prompt))
        script.running_usage &= bool((body.get("stream_options") or {}).get("continuous_usage_stats"))
        return script
    text = prompt if isinstance(prompt, str) else prompt[-1]["text"]
    history = body.get("messages") or []
    return Script(
        name=text[:80],
        tokens=body["max_tokens"],
        first_s=PACE[0],
        gap_s=PACE[1],
        prompt_tokens=len(text.split()) + 10 * len(history),
    )


class HttpServer:
    """The routes."""

    def __init__(self, *, strict: bool = False) -> None:
        self.answers = Answers()
        self.strict = strict  # refuses what OpenAI's own API does not know

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.add_routes(
            [
                web.get("/v1/models", self.models),
                web.get("/truth", self.told),
                web.get("/metrics", self.metrics),
                web.post("/freeze", self.freeze),
                web.post("/v1/completions", self.answer),
                web.post("/v1/chat/completions", self.answer),
            ]
        )
        return app

    async def models(self, _request):
        return web.json_response({"data": [{"id": "misbehaving"}]})

    async def told(self, _request):
        return web.json_response({name: asdict(truth) for name, truth in self.answers.truth.items()})

    async def metrics(self, _request):
        return web.Response(text="vllm:num_requests_running 3.0\nvllm:num_requests_waiting 2.0\n")

    async def freeze(self, request):
        self.answers.frozen_until = time.perf_counter() + (await request.json())["seconds"]
        return web.json_response({})

    async def answer(self, request):
        received_ns = time.perf_counter_ns()
        body = await request.json()
        if self.strict and (
            "ignore_eos" in body or "continuous_usage_stats" in body.get("stream_options", {})
        ):
            return web.json_response({"error": {"message": "unrecognized argument"}}, status=400)
        script = read_script(body)
        if script.status != 200:
            return web.json_response({"error": {"message": "not today"}}, status=script.status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if script.hang:
            await asyncio.sleep(60)
        try:
            async for chunks in self.answers.play(script, received_ns):
                await response.write(
                    b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
                )
        except ConnectionCut:
            request.transport.abort()
            return response
        if script.done:
            await response.write(b"data: [DONE]\n\n")
        return response


class Misbehaving(Model):
    """The same over gRPC; `answers.truth` is what it sent."""

    def load(self) -> None:
        self.answers = Answers()

    @method
    async def openai_stream_transport(self, msg: str) -> AsyncIterator[str]:
        script = read_script(json.loads(msg))
        if script.status != 200:
            raise UnavailableError("not today")
        call = current_request()
        try:
            async for chunks in self.answers.play(script):
                for chunk in chunks:
                    if "error" in chunk:
                        raise UnavailableError(chunk["error"]["message"])
                    if usage := chunk.get("usage"):
                        call.usage.prompt_tokens = usage["prompt_tokens"]
                        call.usage.output_tokens = usage["completion_tokens"]
                        call.usage.cached_tokens = 2
                # One item a write: of several the server would send the first alone.
                yield json.dumps({"choices": [choice for chunk in chunks for choice in chunk["choices"]]})
        except ConnectionCut:
            raise UnavailableError("cut") from None


@contextmanager
def child(script: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """Run a script of this folder until the block ends: it ends with its stdin."""
    command = [sys.executable, str(Path(script).resolve()), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


@contextmanager
def server_process(*arguments: str) -> Iterator[str]:
    """Run the server in a process of its own and return its HOST:PORT."""
    with child(__file__, *arguments) as process:
        yield f"127.0.0.1:{int(process.stdout.readline())}"


@contextmanager
def http_server(*arguments: str) -> Iterator[str]:
    """Run the HTTP server in a process of its own and return its URL."""
    with server_process(*arguments) as address:
        yield f"http://{address}"


def read_truth(url: str) -> dict[str, Truth]:
    with urllib.request.urlopen(f"{url}/truth") as response:
        return {name: Truth(**truth) for name, truth in json.load(response).items()}


async def main() -> None:
    if "--pace" in sys.argv:
        at = sys.argv.index("--pace")
        PACE[:] = map(float, sys.argv[at + 1 : at + 3])
    runner = web.AppRunner(HttpServer(strict="--strict" in sys.argv).app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    # Its requests may hang, as they were told to; nothing waits for them.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    await asyncio.Event().wait()


def serve_grpc() -> None:
    from modelkit.testing import run_server

    with run_server(Misbehaving) as server:
        print(server.address.rpartition(":")[2], flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    import uvloop

    serve_grpc() if "--grpc" in sys.argv else uvloop.run(main())
