"""A small real engine server, OpenAI's API over HTTP, that can be told to misbehave. Run as a process:

    python fake_engine.py --port 8000 --print "Loading weights" --start-delay 0.2 --worker

It answers with the words of the last message, a word a token. While it runs, POST /control changes its behaviour
(any field of `Behaviour`) and GET /state says what it has seen.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, fields

from aiohttp import web


@dataclass
class Behaviour:
    delay_s: float = 0.0  # before each token
    healthy: bool = True
    health_hangs: bool = False
    fail: int = 0  # this status on every request
    error_body: str = ""  # instead of the usual error
    hang: bool = False  # requests get no answer
    die_after: int = -1  # tokens, then SIGKILL to itself
    break_after: int = -1  # tokens, then the connection is cut
    end_without_done: bool = False
    error_after: int = -1  # tokens, then an error event
    cut: int = 0  # write this many bytes at a time
    crlf: bool = False
    continuous_usage: bool = True
    usage: bool = True
    finish_reason: str = "stop"


def parse(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--start-delay", type=float, default=0.0)
    parser.add_argument("--print", action="append", default=[], dest="lines")
    parser.add_argument("--exit", type=int, default=None)
    parser.add_argument("--worker", action="store_true", help="start a worker in a session of its own")
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM, in the worker too")
    parser.add_argument("--behave", default="{}")
    return parser.parse_args(arguments)


class FakeEngine:
    def __init__(self, behaviour):
        self.behaviour = behaviour
        self.running = 0
        self.num_requests = 0
        self.num_disconnects = 0
        self.connections = set()
        self.last_body = {}

    def app(self):
        app = web.Application(client_max_size=2**26)
        app.add_routes(
            [
                web.get("/health", self.health),
                web.get("/metrics", self.metrics),
                web.get("/state", self.state),
                web.post("/control", self.control),
                web.get("/v1/models", self.models),
                web.post("/v1/chat/completions", self.answer),
                web.post("/v1/completions", self.answer),
                web.post("/v1/embeddings", self.embed),
            ]
        )
        return app

    async def health(self, _request):
        if self.behaviour.health_hangs:
            await asyncio.sleep(3600)
        return web.Response(status=200 if self.behaviour.healthy else 503)

    async def metrics(self, _request):
        return web.Response(text=f"fake:num_requests_running {self.running}\n")

    async def state(self, _request):
        return web.json_response(
            {
                "running": self.running,
                "num_requests": self.num_requests,
                "num_disconnects": self.num_disconnects,
                "num_connections": len(self.connections),
                "last_body": self.last_body,
            }
        )

    async def control(self, request):
        for name, value in (await request.json()).items():
            setattr(self.behaviour, name, value)
        return web.json_response({})

    async def models(self, _request):
        return web.json_response({"object": "list", "data": [{"id": "fake-1"}, {"id": "fake-2"}]})

    async def embed(self, request):
        self.last_body = await request.json()
        return web.json_response(
            {"object": "list", "data": [{"embedding": [1.0, 2.0]}], "usage": {"prompt_tokens": 2}}
        )

    async def answer(self, request):
        body = self.last_body = await request.json()
        self.num_requests += 1
        self.connections.add(request.transport.get_extra_info("peername"))
        if self.behaviour.hang:
            await asyncio.sleep(3600)
        if self.behaviour.fail:
            text = self.behaviour.error_body or json.dumps(
                {"error": {"message": "it is broken inside", "code": 500}}
            )
            return web.Response(status=self.behaviour.fail, text=text, content_type="application/json")
        is_chat = request.path.endswith("/chat/completions")
        words = list(_words(body["messages"][-1]["content"] if is_chat else body["prompt"]))
        if body.get("max_tokens"):
            words = words[: body["max_tokens"]]
        self.running += 1
        try:
            if body.get("stream"):
                return await self._stream(request, body, words, is_chat)
            await asyncio.sleep(self.behaviour.delay_s * len(words))
            message = (
                {"message": {"role": "assistant", "content": "".join(words)}}
                if is_chat
                else {"text": "".join(words)}
            )
            choice = {"index": 0, **message, "finish_reason": "stop"}
            return web.json_response({"choices": [choice], "usage": _usage(len(words))})
        except (asyncio.CancelledError, ConnectionError):
            self.num_disconnects += 1
            raise
        finally:
            self.running -= 1

    async def _stream(self, request, body, words, is_chat):
        behaviour = self.behaviour
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        options = body.get("stream_options") or {}
        if is_chat:
            await self._send(
                response, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
            )
        for number, word in enumerate(words):
            await asyncio.sleep(behaviour.delay_s)
            if number == behaviour.die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == behaviour.break_after:
                request.transport.close()
                return response
            if number == behaviour.error_after:
                await self._send(response, {"error": {"message": "the KV cache is gone", "code": 500}})
                return response
            content = {"delta": {"content": word}} if is_chat else {"text": word}
            event = {"choices": [{"index": 0, **content, "finish_reason": None}]}
            if options.get("continuous_usage_stats") and behaviour.continuous_usage:
                event["usage"] = _usage(number + 1)
            await self._send(response, event)
        last = {"delta": {}} if is_chat else {"text": ""}
        await self._send(
            response, {"choices": [{"index": 0, **last, "finish_reason": behaviour.finish_reason}]}
        )
        if options.get("include_usage") and behaviour.usage:
            await self._send(response, {"choices": [], "usage": _usage(len(words))})
        if not behaviour.end_without_done:
            await self._write(response, b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _send(self, response, event):
        await self._write(response, b"data: " + json.dumps(event).encode() + b"\n\n")

    async def _write(self, response, content):
        if self.behaviour.crlf:
            content = content.replace(b"\n", b"\r\n")
        size = self.behaviour.cut or len(content)
        for start in range(0, len(content), size):
            await response.write(content[start : start + size])
            if self.behaviour.cut:
                await asyncio.sleep(0)


def _usage(num_tokens):
    return {
        "prompt_tokens": 3,
        "completion_tokens": num_tokens,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


def _words(text):
    if isinstance(text, list):
        text = "".join(part.get("text", "") if isinstance(part, dict) else f" {part}" for part in text)
    for number, word in enumerate(text.split(" ")):
        yield word if number == 0 else f" {word}"


def main():
    options = parse(sys.argv[1:])
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.worker:
        # In a session of its own, and not ending with its parent: what the worst engines do.
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    for line in options.lines:
        print(line, flush=True)
    time.sleep(options.start_delay)
    if options.exit is not None:
        sys.exit(options.exit)
    known = {field.name for field in fields(Behaviour)}
    given = json.loads(options.behave)
    assert set(given) <= known
    engine = FakeEngine(Behaviour(**given))
    with contextlib.suppress(KeyboardInterrupt):
        web.run_app(
            engine.app(),
            host="127.0.0.1",
            port=options.port,
            print=None,
            handler_cancellation=True,
            handle_signals=not options.stubborn,
            shutdown_timeout=0.1,
            keepalive_timeout=5.0,
        )


if __name__ == "__main__":
    main()
