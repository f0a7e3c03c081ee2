"""Any server that speaks OpenAI's API over HTTP: aiohttp, one pooled connection a request in flight."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any

import aiohttp
import orjson

from modelkit.benchmark.targets.base import Arrivals, RequestFailed, Target, base_url, now_ns
from modelkit.errors import ServeError, UsageError

__all__ = ["OpenAITarget"]

_CONNECT_TIMEOUT_S = 10.0


class OpenAITarget(Target):
    """Streams over server-sent events; what one read of the socket gives is one message."""

    _session: aiohttp.ClientSession

    async def open(self) -> None:
        """Ask for the models, which names the one to measure where nobody has."""
        headers = {"Content-Type": "application/json"}
        if self.spec.api_key:
            headers["Authorization"] = f"Bearer {self.spec.api_key}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=600),
            timeout=timeout,
            headers=headers,
            read_bufsize=2**20,
        )
        self._base = base_url(self.spec.address)
        path = "/completions" if self.spec.endpoint == "completions" else "/chat/completions"
        self._url = f"{self._base}/v1{path}"
        if not self.spec.model:
            try:
                self.spec = replace(self.spec, model=await self._first_model())
            except BaseException:
                await self.close()
                raise

    async def prepare(self, num_connections: int) -> None:
        """Ask that many small things at the same time; the connections stay open."""

        async def touch() -> None:
            with suppress(aiohttp.ClientError, OSError):
                async with self._session.get(f"{self._base}/v1/models") as response:
                    await response.read()

        await asyncio.gather(*(touch() for _ in range(num_connections)))

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    def encode(self, body: dict[str, Any]) -> bytes:
        """Return the JSON."""
        return orjson.dumps(body)

    async def stream(self, encoded: Any, arrivals: Arrivals) -> None:
        """Post the request and read its events."""
        try:
            async with self._session.post(self._url, data=encoded) as response:
                arrivals.record.headers_ns = now_ns()
                if response.status != 200:  # noqa: PLR2004
                    raise RequestFailed(f"HTTP_{response.status}", _message(await response.read()))
                await self._read(response.content, arrivals)
        except aiohttp.ClientConnectorError as error:
            raise RequestFailed("CONNECTION_REFUSED", str(error)) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise RequestFailed("CONNECTION_RESET", f"{type(error).__name__}: {error}") from error

    async def _read(self, content: aiohttp.StreamReader, arrivals: Arrivals) -> None:
        rest = b""
        while True:
            data = await content.readany()
            at_ns = now_ns()
            if not data:
                raise RequestFailed("STREAM_CUT", "the stream ended without [DONE]")
            self.num_bytes += len(data)
            *events, rest = (rest + data.replace(b"\r\n", b"\n")).split(b"\n\n")
            if _take(events, at_ns, arrivals):
                break
        # The end of the response frees the connection for the next request.
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while await content.readany():
                    pass

    async def _first_model(self) -> str:
        url = f"{self._base}/v1/models"
        try:
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=30)) as response:
                content = await response.read()
                if response.status in {401, 403}:
                    raise UsageError(
                        f"{url} answers {response.status}: it wants an API key",
                        cure="export it and name the variable with --api-key-env NAME",
                    )
                return str(orjson.loads(content)["data"][0]["id"])
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServeError(
                f"cannot reach {self._base}: {str(error) or type(error).__name__}",
                cure="start the server, or correct the address",
            ) from error
        except (orjson.JSONDecodeError, LookupError, TypeError) as error:
            raise ServeError(
                f"{url} lists no model", cure="name it with --model, or point at an OpenAI-compatible server"
            ) from error


def _take(events: list[bytes], at_ns: int, arrivals: Arrivals) -> bool:
    """Note the events of one read as one message; return whether the answer is complete."""
    weight, total, text, is_done = 0, None, [], False
    for raw in events:
        data = _data(raw)
        if data == b"[DONE]":
            is_done = True
        elif data:
            event = orjson.loads(data)
            if event.get("error"):
                raise RequestFailed("STREAM_ERROR", _message(data))
            if usage := event.get("usage"):
                total = usage.get("completion_tokens") or 0
                cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                arrivals.usage(usage.get("prompt_tokens") or 0, total, cached)
            for choice in event.get("choices") or ():
                piece = _text(choice)
                text.append(piece)
                # A completion's chunk is a token even where its text is still incomplete; a chat has others too.
                weight += bool(piece) or ("text" in choice and not choice.get("finish_reason"))
    # Totals that come at the end and alone say nothing of when the tokens came, unless the others were told too.
    arrivals.message(at_ns, weight, total if weight or arrivals.is_told else None, "".join(text))
    return is_done


def _data(event: bytes) -> bytes:
    """Return what follows `data:`; comments and event names are skipped."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)


def _text(choice: dict[str, Any]) -> str:
    delta = choice.get("delta") or {}
    return (
        choice.get("text")
        or delta.get("content")
        or delta.get("reasoning_content")
        or delta.get("reasoning")
        or ""
    )


def _message(content: bytes) -> str:
    """Return what an error body says."""
    try:
        error = orjson.loads(content)
        error = error.get("error", error)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (orjson.JSONDecodeError, AttributeError):
        return content.decode(errors="replace")
