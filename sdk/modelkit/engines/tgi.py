"""TGI: `text-generation-launcher`, which exists in its container image only.

https://huggingface.co/docs/text-generation-inference/reference/launcher
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from modelkit.engines.child import ChildEngine
from modelkit.engines.engine_log import Stage
from modelkit.engines.flags import Flags, choice, flag, refuse, switch
from modelkit.errors import EngineError

__all__ = ["TgiEngine"]

LAUNCHER = "text-generation-launcher"


class TgiEngine(ChildEngine):
    """Runs TGI's launcher where it is on the PATH: inside TGI's image."""

    name = "tgi"
    # The launcher hands it to its router as an option, which `ps` shows inside of the container.
    key_variable = "API_KEY"
    flags: ClassVar[Flags] = {
        "tensor_parallel_size": flag("--num-shard"),
        "max_model_len": flag("--max-total-tokens"),
        "dtype": choice("--dtype", {"auto": "", "float16": "float16", "bfloat16": "bfloat16"}),
        "quantization": flag("--quantize"),
        "gpu_memory_utilization": flag("--cuda-memory-fraction"),
        "max_num_seqs": flag("--max-batch-size"),
        "kv_cache_dtype": choice(
            "--kv-cache-dtype", {"auto": "", "fp8": "fp8_e4m3fn", "fp8_e4m3fn": "fp8_e4m3fn"}
        ),
        "speculative": lambda value: ["--speculate", str(value.get("num_speculative_tokens", 2))],
        "tool_call_parser": refuse("TGI reads tool calls without a parser"),
        "reasoning_parser": refuse("TGI has no reasoning parsers"),
        "lora_modules": lambda value: [
            "--lora-adapters",
            ",".join(f"{key}={item}" for key, item in value.items()),
        ],
        "trust_remote_code": switch("--trust-remote-code"),
    }
    stages: ClassVar[Sequence[Stage]] = (
        Stage("preparing weights", re.compile(r"Starting (?:check and )?download|Files are already present")),
        Stage("loading weights", re.compile(r"Starting shard|Waiting for shard")),
        Stage("warming up", re.compile(r"Warming up model|Cuda Graphs are enabled")),
        Stage("starting the server", re.compile(r"Connected|Starting HTTP backend")),
    )

    def command(self, python: str, port: int) -> list[str]:
        """Return the launcher's command. Raises EngineError outside of TGI's image."""
        del python
        launcher = shutil.which(LAUNCHER)
        if launcher is None:
            raise EngineError(
                f"{LAUNCHER} is not on the PATH",
                cure="TGI comes as a container image only: run modelkit inside it, or use vllm, sglang or lmdeploy",
            )
        return [
            *(launcher, "--model-id", str(self.checkpoint_dir)),
            *("--hostname", "127.0.0.1", "--port", str(port)),
        ]

    def environment(self) -> Mapping[str, str]:
        """Return the environment: prefix caching is a variable, and no usage reports."""
        environment = {"USAGE_STATS": "off"}
        if self.config.enable_prefix_caching is not None:
            environment["USE_PREFIX_CACHING"] = "1" if self.config.enable_prefix_caching else "0"
        return environment

    def adapt(self, body: dict[str, Any]) -> dict[str, Any]:
        """Leave out what asks for nothing: TGI takes top_p below 1 only."""
        for name, nothing in (("top_p", 1), ("top_k", 0), ("min_p", 0), ("repetition_penalty", 1)):
            if body.get(name) == nothing:
                del body[name]
        return body
