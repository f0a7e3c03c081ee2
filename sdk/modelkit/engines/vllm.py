"""vLLM: `vllm serve` (https://docs.vllm.ai/en/latest/cli/serve/)."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from modelkit.config import EngineConfig
from modelkit.engines.child import ChildEngine, room_by_tokenizer
from modelkit.engines.engine_log import Stage
from modelkit.engines.flags import Flags, flag, json_flag, pairs, switch
from modelkit.engines.machine import has_nvidia_gpu

__all__ = ["VllmEngine"]

_CPU_KV_CACHE_BYTES = 2 * 1024**3


class VllmEngine(ChildEngine):
    """Runs `vllm serve`; modelkit's names of the common options are vLLM's."""

    name = "vllm"
    streams_usage = True
    key_variable = "VLLM_API_KEY"
    # Its processes leave the sockets between them where they end.
    scratch_variable = "VLLM_RPC_BASE_PATH"
    flags: ClassVar[Flags] = {
        "tensor_parallel_size": flag("--tensor-parallel-size"),
        "max_model_len": flag("--max-model-len"),
        "dtype": flag("--dtype"),
        "quantization": flag("--quantization"),
        "gpu_memory_utilization": flag("--gpu-memory-utilization"),
        "enable_prefix_caching": switch("--enable-prefix-caching", "--no-enable-prefix-caching"),
        "enable_chunked_prefill": switch("--enable-chunked-prefill", "--no-enable-chunked-prefill"),
        "max_num_seqs": flag("--max-num-seqs"),
        "kv_cache_dtype": flag("--kv-cache-dtype"),
        "speculative": json_flag("--speculative-config"),
        "tool_call_parser": lambda value: ["--enable-auto-tool-choice", "--tool-call-parser", str(value)],
        "reasoning_parser": flag("--reasoning-parser"),
        "lora_modules": pairs("--lora-modules", "--enable-lora"),
        "trust_remote_code": switch("--trust-remote-code"),
    }
    stages: ClassVar[Sequence[Stage]] = (
        Stage("reading the config", re.compile(r"non-default args|vLLM API server version")),
        Stage("starting the engine", re.compile(r"Initializing a V\d LLM engine|Waiting for .*engine core")),
        Stage("loading weights", re.compile(r"Starting to load model|Loading safetensors|Loading weights")),
        Stage("compiling", re.compile(r"Dynamo bytecode transform|Compiling a graph|Start compiling")),
        Stage("measuring memory", re.compile(r"Available KV cache memory|GPU KV cache size")),
        Stage("capturing CUDA graphs", re.compile(r"Capturing CUDA graph|Graph capturing")),
        Stage("starting the server", re.compile(r"Starting vLLM API server|Application startup complete")),
    )

    def __init__(self, config: EngineConfig, checkpoint_dir: Path | None, model_id: str) -> None:
        # vLLM's own `auto` on a CPU is the checkpoint's bfloat16: slower there, and a virtual machine may not permit
        # the instructions that its kernels use.
        self._is_on_cpu = not has_nvidia_gpu()
        if config.dtype == "auto" and self._is_on_cpu:
            config = config.model_copy(update={"dtype": "float32"})
        super().__init__(config, checkpoint_dir, model_id)

    def arguments(self) -> list[str]:
        """On a CPU, say how much memory the KV cache takes: vLLM's default is nearly all that the machine has."""
        arguments = super().arguments()
        is_said = self.config.gpu_memory_utilization is not None or "--kv-cache-memory-bytes" in arguments
        if not is_said and self._is_on_cpu:
            arguments += ["--kv-cache-memory-bytes", str(_CPU_KV_CACHE_BYTES)]
        return arguments

    def command(self, python: str, port: int) -> list[str]:
        """Return `vllm serve` by its module, which needs no script on the PATH."""
        return [
            *self.run_module(python, "vllm.entrypoints.openai.api_server"),
            *("--model", str(self.checkpoint_dir), "--served-model-name", self.served_name),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]

    def environment(self) -> Mapping[str, str]:
        """Return the environment: no usage reports."""
        return {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

    def adapt(self, body: dict[str, Any]) -> dict[str, Any]:
        """Say "the likeliest token" otherwise where several answers are asked for: vLLM makes one with temperature 0."""
        if (body.get("n") or 1) > 1 and body.get("temperature") == 0:
            body |= {"temperature": 1.0, "top_k": 1}
        return body

    async def room_for_answer(self, prompt: str | list[int]) -> int | None:
        """Return the room behind a prompt: without max_tokens vLLM would answer with 16 tokens."""
        return await room_by_tokenizer(self.upstream, self.served_name, prompt)
