"""Why engines fail to start, as data: what their logs say, what that means, and the cure.

The patterns were collected from the engines' own sources and logs. The first that matches, from the end of the log
upwards, is the cause: what is printed last is usually closest to the fault.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CAUSES", "Cause", "find_cause"]


@dataclass(frozen=True, slots=True)
class Cause:
    """One well-known failure. `message` and `cure` may use the groups of `pattern` as {0}, {1}."""

    name: str
    pattern: re.Pattern[str]
    message: str
    cure: str


def _cause(name: str, pattern: str, message: str, cure: str) -> Cause:
    return Cause(name, re.compile(pattern, re.IGNORECASE), message, cure)


CAUSES = (
    _cause(
        "context_too_long",
        r"(?:max seq len|max_seq_len|max_model_len|context length) \(?(\d+)\)? is (?:larger|greater) than the maximum"
        r"|to serve at least one request with the models?'s max seq len \((\d+)\)"
        r"|user-specified max_model_len \((\d+)\) is greater than",
        "the model's context does not fit",
        "lower engine.max_model_len in config.yaml, or raise engine.gpu_memory_utilization where there is room",
    ),
    _cause(
        "out_of_memory",
        r"out of memory|OutOfMemoryError|no available memory for the cache blocks"
        r"|free memory on device .{0,200}is less than desired|not enough memory.{0,80}mem[-_]fraction"
        r"|failed to allocate memory|cudaMalloc.*failed",
        "the accelerator's memory is not enough",
        "lower engine.gpu_memory_utilization or engine.max_model_len, end other processes on the accelerator "
        "(nvidia-smi lists them), or spread the model with engine.tensor_parallel_size",
    ),
    _cause(
        "no_accelerator",
        r"no CUDA GPUs are available|found no NVIDIA driver|failed to infer device type|cuda driver version is insufficient"
        r"|CUDA_ERROR_NO_DEVICE|no CUDA-capable device|not compiled with CUDA enabled",
        "the engine finds no accelerator that it can use",
        "check nvidia-smi and CUDA_VISIBLE_DEVICES; without an accelerator use engine.name: transformers",
    ),
    _cause(
        "compute_capability",
        r"no kernel image is available|is not compatible with the current PyTorch|(?:minimum|requires).{0,40}compute capability"
        r"|only supported on GPUs with compute capability",
        "the accelerator is too old, or too new, for this build of the engine",
        "use another version of the engine, or set engine.dtype: float16 or another engine.args attention backend",
    ),
    _cause(
        "unknown_option",
        r"unrecognized arguments?: (.+)|error: (argument .+)|no such option: (\S+)|unexpected keyword argument '(\w+)'",
        "the engine does not know the option: {0}",
        "correct engine.args in config.yaml; the names are the engine's own",
    ),
    _cause(
        "port_in_use",
        r"address already in use",
        "the engine's port was taken by another process",
        "start again: a free port is chosen each time",
    ),
    _cause(
        "gated",
        r"GatedRepoError|access to model .{0,120}is restricted|401 client error|awaiting a review from the repo authors",
        "the checkpoint is gated and no token gives access",
        "accept its terms on the hub, then set the variable that checkpoints.token_env names",
    ),
    _cause(
        "absent_weights",
        r"cannot find any model weights|no such file or directory: '([^']*(?:safetensors|config\.json|tokenizer)[^']*)'"
        r"|does not appear to have a file named (\S+)|RepositoryNotFoundError|not a valid model identifier",
        "the checkpoint is incomplete: {0}",
        "look into the checkpoint's folder; it needs config.json, the tokenizer and all weights",
    ),
    _cause(
        "missing_compiler",
        r"nvcc.{0,40}not found|could not find nvcc|failed to find C compiler|ninja.{0,30}not found|CUDA_HOME.{0,40}not set",
        "the engine wants to compile a kernel and finds no compiler",
        "install the CUDA toolkit and gcc, or choose a backend that needs none in engine.args",
    ),
    _cause(
        "missing_library",
        r"ModuleNotFoundError: No module named '([\w.]+)'|(lib[\w.+-]+\.so[\d.]*): cannot open shared object"
        r"|No module named ([\w.]+)$",
        "the engine's environment lacks {0}",
        "install the engine with `modelkit engines install NAME`, or point engine.python at an interpreter that has it",
    ),
    _cause(
        "unsupported_model",
        r"model architectures? \[?'?(\w+)'?\]?.{0,60}(?:not supported|are not supported)|unsupported model type:? '?(\w+)",
        "the engine does not support the architecture {0}",
        "try another engine, or a newer version of this one",
    ),
)  # fmt: skip


def find_cause(log: Sequence[str]) -> Cause | None:
    """Return the cause that a log names, its texts filled in; None where it names no known one."""
    for line in reversed(log):
        for cause in CAUSES:
            match = cause.pattern.search(line)
            if match is not None:
                found = next((group for group in match.groups() if group), match.group(0)).strip()
                return Cause(cause.name, cause.pattern, cause.message.replace("{0}", found), cause.cure)
    return None
