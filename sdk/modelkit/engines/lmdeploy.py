"""LMDeploy: `lmdeploy serve api_server`, with the TurboMind or the PyTorch back end.

https://lmdeploy.readthedocs.io/en/latest/llm/api_server.html
"""

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar

import orjson

from modelkit.engines.base import Chunk, GenerationRequest
from modelkit.engines.child import ChildEngine
from modelkit.engines.engine_log import Deviation, Stage
from modelkit.engines.flags import Flags, choice, flag, pairs, speculative, switch
from modelkit.engines.stops import StopMatcher
from modelkit.errors import InvalidArgumentError, UsageError

__all__ = ["LmdeployEngine"]

BACKENDS = ("turbomind", "pytorch")

# LMDeploy up to 0.5 also tries what it does not know, in these words.
_TAKES_PYTORCH = re.compile(r"(?:fall ?back to|try to run with) (?:the )?pytorch engine", re.IGNORECASE)


class LmdeployEngine(ChildEngine):
    """Runs LMDeploy's API server. `engine.args.backend` is turbomind (the default) or pytorch."""

    name = "lmdeploy"
    key_option = "--api-keys"
    flags: ClassVar[Flags] = {
        "tensor_parallel_size": flag("--tp"),
        "max_model_len": flag("--session-len"),
        "dtype": choice("--dtype", {"auto": "auto", "float16": "float16", "bfloat16": "bfloat16"}),
        "quantization": flag("--model-format"),
        "gpu_memory_utilization": flag("--cache-max-entry-count"),
        "enable_prefix_caching": switch("--enable-prefix-caching"),
        "enable_chunked_prefill": lambda _: [],  # always on; its size is --max-prefill-token-num
        "max_num_seqs": flag("--max-batch-size"),
        "kv_cache_dtype": choice(
            "--quant-policy", {name: name for name in ("int4", "int8", "fp8", "fp8_e5m2")} | {"auto": ""}
        ),
        "speculative": speculative("--speculative-draft-model"),
        "tool_call_parser": flag("--tool-call-parser"),
        "reasoning_parser": flag("--reasoning-parser"),
        "lora_modules": pairs("--adapters"),
        "trust_remote_code": switch("--trust-remote-code"),
    }
    stages: ClassVar[Sequence[Stage]] = (
        Stage(
            "loading weights",
            re.compile(r"Loading weights|Convert to turbomind|loading checkpoint", re.IGNORECASE),
        ),
        Stage(
            "allocating the KV cache", re.compile(r"BlockManager|max_block_count|num_gpu_blocks|cache_config")
        ),
        Stage("warming up", re.compile(r"[Ww]armup|capture graph", re.IGNORECASE)),
        Stage("starting the server", re.compile(r"HINT:|Uvicorn running|Application startup complete")),
    )

    @property
    def backend(self) -> str:
        """Which of LMDeploy's two engines runs the model."""
        backend = self.arg("backend", BACKENDS[0])
        if backend not in BACKENDS:
            raise UsageError(
                f"LMDeploy has no backend '{backend}'", cure=f"use one of: {', '.join(BACKENDS)}"
            )
        return str(backend)

    @property
    def deviations(self) -> Sequence[Deviation]:
        """LMDeploy runs on PyTorch what its TurboMind does not run, whatever `--backend` says, and warns in its log."""
        if self.backend == "pytorch":  # of which some versions warn just so
            return ()
        version = f" {self.version}" if self.version else ""
        return (
            Deviation(
                pattern=_TAKES_PYTORCH,
                message=f"TurboMind of LMDeploy{version} does not run {self._architecture()}, and LMDeploy runs it on "
                "PyTorch in its place",
                cure="set engine.args.backend: pytorch, or use `--engine lmdeploy:pytorch`",
                is_fatal=self.arg("backend") is not None,
            ),
        )

    def command(self, python: str, port: int) -> list[str]:
        """Return the launch of the API server."""
        return [
            *(*self.run_module(python, "lmdeploy"), "serve", "api_server", str(self.checkpoint_dir)),
            *("--backend", self.backend, "--model-name", self.served_name),
            *("--server-name", "127.0.0.1", "--server-port", str(port)),
        ]

    def arguments(self) -> list[str]:
        """Leave `backend` out: it is in the command."""
        arguments = super().arguments()
        if "--backend" in arguments:
            at = arguments.index("--backend")
            del arguments[at : at + 2]
        return arguments

    def _architecture(self) -> str:
        assert self.checkpoint_dir is not None
        try:
            content = orjson.loads((self.checkpoint_dir / "config.json").read_bytes())
            return str(content["architectures"][0])
        except (OSError, ValueError, LookupError, TypeError):
            return "the model"

    def adapt(self, body: dict[str, Any]) -> dict[str, Any]:
        """Spell min_tokens its way; and say so where its server would ignore a field without a word."""
        if "messages" not in body and (body.get("n") or 1) != 1:
            raise InvalidArgumentError("LMDeploy makes one completion a request", cure="send n requests")
        for penalty in ("presence_penalty", "frequency_penalty"):
            if body.get(penalty):
                raise InvalidArgumentError(f"LMDeploy has no {penalty}", cure="use repetition_penalty")
        if "min_tokens" in body:
            body["min_new_tokens"] = body.pop("min_tokens")
        return body

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Cut at stop strings here: LMDeploy ignores those of more than one token."""
        matcher = StopMatcher(request.sampling.stop)
        async with aclosing(super().generate(request)) as chunks:
            async for chunk in chunks:
                text = matcher.feed(chunk.text)
                if matcher.stopped:
                    yield replace(chunk, text=text, finish_reason="stop")
                    return
                if chunk.finish_reason:
                    text += matcher.flush()
                if text or chunk.finish_reason:
                    yield replace(chunk, text=text)

    async def openai(self, endpoint: str, body: bytes) -> bytes:
        """Cut the choices of a whole response at stop strings."""
        response = await super().openai(endpoint, body)
        stops = _stops(body)
        if not stops:
            return response
        parsed = orjson.loads(response)
        for answer in parsed.get("choices") or ():
            holder = answer.get("message") or answer
            key = "content" if "message" in answer else "text"
            matcher = StopMatcher(stops)
            text = matcher.feed(holder.get(key) or "")
            if matcher.stopped:
                holder[key], answer["finish_reason"] = text, "stop"
        return orjson.dumps(parsed)

    async def openai_stream(self, endpoint: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """Cut each choice of a stream at stop strings; a request without them passes through unread."""
        stops = _stops(body)
        async with aclosing(super().openai_stream(endpoint, body)) as chunks:
            if not stops:
                async for chunk in chunks:
                    yield chunk
                return
            cutter = _StreamCutter(stops)
            async for chunk in chunks:
                if cut := cutter.cut(orjson.loads(chunk)):
                    yield orjson.dumps(cut)


class _StreamCutter:
    """Cuts the choices of streamed chunks. The stream is read to its end, for the usage comes last."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._matchers: dict[int, StopMatcher] = {}
        self._ended: set[int] = set()

    def cut(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """Return the chunk with what of its text counts; None where nothing is left to say."""
        if not chunk.get("choices"):
            return chunk
        chunk["choices"] = [answer for answer in chunk["choices"] if self._keep(answer)]
        return chunk if chunk["choices"] else None

    def _keep(self, answer: dict[str, Any]) -> bool:
        """Cut the piece of one choice; False once that choice has ended."""
        index = answer.get("index", 0)
        if index in self._ended:
            return False
        matcher = self._matchers.setdefault(index, StopMatcher(self._stops))
        holder = answer.get("delta", answer)
        key = "content" if "delta" in answer else "text"
        text = matcher.feed(holder.get(key) or "")
        if matcher.stopped:
            self._ended.add(index)
            answer["finish_reason"] = "stop"
        elif answer.get("finish_reason"):
            text += matcher.flush()
        if key in holder or text:
            holder[key] = text
        return True


def _stops(body: bytes) -> tuple[str, ...]:
    """Return the stop strings of a raw request."""
    stop = orjson.loads(body).get("stop")
    if isinstance(stop, str):
        return (stop,) if stop else ()
    return tuple(item for item in stop if isinstance(item, str) and item) if isinstance(stop, list) else ()
