"""SGLang: `sglang.launch_server` (https://docs.sglang.ai/advanced_features/server_arguments.html)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from modelkit.engines.child import ChildEngine, room_by_tokenizer
from modelkit.engines.engine_log import Stage
from modelkit.engines.flags import Flags, flag, pairs, speculative, switch
from modelkit.errors import InvalidArgumentError

__all__ = ["SglangEngine"]

_RESERVED_TOKENS = 8


class SglangEngine(ChildEngine):
    """Runs `sglang.launch_server`."""

    name = "sglang"
    streams_usage = True
    key_option = "--api-key"
    flags: ClassVar[Flags] = {
        "tensor_parallel_size": flag("--tp-size"),
        "max_model_len": flag("--context-length"),
        "dtype": flag("--dtype"),
        "quantization": flag("--quantization"),
        "gpu_memory_utilization": flag("--mem-fraction-static"),
        "enable_prefix_caching": switch(None, "--disable-radix-cache"),
        "enable_chunked_prefill": lambda value: [] if value else ["--chunked-prefill-size", "-1"],
        "max_num_seqs": flag("--max-running-requests"),
        "kv_cache_dtype": flag("--kv-cache-dtype"),
        "speculative": speculative("--speculative-draft-model-path", spell_method=str.upper),
        "tool_call_parser": flag("--tool-call-parser"),
        "reasoning_parser": flag("--reasoning-parser"),
        "lora_modules": pairs("--lora-paths", "--enable-lora"),
        "trust_remote_code": switch("--trust-remote-code"),
    }
    stages: ClassVar[Sequence[Stage]] = (
        Stage("reading the config", re.compile(r"server_args=")),
        Stage("loading weights", re.compile(r"Load weight begin|Loading safetensors")),
        Stage(
            "allocating the KV cache", re.compile(r"Load weight end|KV Cache is allocated|Memory pool end")
        ),
        Stage("capturing CUDA graphs", re.compile(r"Capture cuda graph begin|Capturing batches")),
        Stage("starting the server", re.compile(r"Application startup complete|Uvicorn running")),
        Stage("warming up", re.compile(r"POST /generate|ready to roll")),
    )

    def command(self, python: str, port: int) -> list[str]:
        """Return the launch of the server."""
        return [
            *(*self.run_module(python, "sglang.launch_server"), "--model-path", str(self.checkpoint_dir)),
            *("--served-model-name", self.served_name, "--host", "127.0.0.1", "--port", str(port)),
        ]

    @property
    def takes_key(self) -> bool:
        """False for the two ways of serving with which SGLang refuses a key."""
        return int(self.arg("tokenizer-worker-num", 1)) <= 1 and self.arg("grpc-port") is None

    def arguments(self) -> list[str]:
        """Add the metrics route, which is off by default."""
        return ["--enable-metrics", *super().arguments()]

    async def room_for_answer(self, prompt: str | list[int]) -> int | None:
        """Return the room behind a prompt: without max_tokens SGLang would answer with 16 tokens."""
        # SGLang keeps a few tokens of its context for itself.
        room = await room_by_tokenizer(self.upstream, self.served_name, prompt)
        return None if room is None else max(1, room - _RESERVED_TOKENS)

    def name_of_adapter(self, name: str) -> str:
        """Return `served:adapter`, as SGLang wants it."""
        return f"{self.served_name}:{name}"

    def adapt(self, body: dict[str, Any]) -> dict[str, Any]:
        """Spell "from all tokens" its way, and vLLM's structured outputs."""
        if body.get("top_k") == 0:
            body["top_k"] = -1
        constraint = body.pop("structured_outputs", None)
        if isinstance(constraint, Mapping):
            body |= _constraint(constraint)
        return body


def _constraint(constraint: Mapping[str, Any]) -> dict[str, Any]:
    """Return SGLang's fields for vLLM's structured_outputs. Raises InvalidArgumentError for one it does not have."""
    fields: dict[str, Any] = {}
    for kind, value in constraint.items():
        if kind == "regex":
            fields["regex"] = value
        elif kind == "grammar":
            fields["ebnf"] = value
        elif kind == "choice":
            fields["regex"] = "|".join(f"({re.escape(str(choice))})" for choice in value)
        elif kind == "json":
            schema = {"name": "answer", "schema": value}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif value is not None:
            raise InvalidArgumentError(
                f"SGLang has no structured_outputs.{kind}", cure="use json, regex or grammar"
            )
    return fields
