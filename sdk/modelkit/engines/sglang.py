"""SGLang: `sglang.launch_server` (https://docs.sglang.ai/advanced_features/server_arguments.html)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from modelkit.engines.child import ChildEngine
from modelkit.engines.engine_log import Stage
from modelkit.engines.flags import Flags, flag, pairs, switch

__all__ = ["SglangEngine"]


def _speculative(value: Mapping[str, Any]) -> list[str]:
    """Spell vLLM's speculative settings as SGLang's."""
    names = {
        "method": "--speculative-algorithm",
        "model": "--speculative-draft-model-path",
        "num_speculative_tokens": "--speculative-num-draft-tokens",
    }
    arguments: list[str] = []
    for key, item in value.items():
        name = names.get(key, f"--speculative-{key.replace('_', '-')}")
        arguments += [name, str(item).upper() if key == "method" else str(item)]
    return arguments


class SglangEngine(ChildEngine):
    """Runs `sglang.launch_server`."""

    name = "sglang"
    streams_usage = True
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
        "speculative": _speculative,
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
            *(python, "-m", "sglang.launch_server", "--model-path", str(self.checkpoint_dir)),
            *("--served-model-name", self.served_name, "--host", "127.0.0.1", "--port", str(port)),
        ]

    def arguments(self) -> list[str]:
        """Add the metrics route, which is off by default."""
        return ["--enable-metrics", *super().arguments()]
