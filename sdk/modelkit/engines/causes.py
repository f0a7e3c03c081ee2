"""Why engines fail to start, as data: what their logs say, what that means, and the cure.

The patterns were collected from the sources of vLLM, SGLang and LMDeploy and of the libraries below them. The last line
of the log that matches one is the cause: what is printed last is usually closest to the fault. Warnings do not count.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["CAUSES", "Cause", "find_cause"]


@dataclass(frozen=True, slots=True)
class Cause:
    """One well-known failure. `message` may use the first group of `pattern` as {0}; `line` is where it was found."""

    name: str
    pattern: re.Pattern[str]
    message: str
    cure: str
    line: str = ""


def _cause(name: str, patterns: Sequence[str], message: str, cure: str) -> Cause:
    return Cause(name, re.compile("|".join(patterns), re.IGNORECASE), message, cure)


# What a logger marks as a warning is not why the engine ended.
_WARNING = re.compile(r"\bWARN(?:ING)?\b")

# Of two that match the same line the first counts.
CAUSES = (
    _cause(
        "context_longer_than_model",
        [r"user-specified (?:max_model_len|context_length) \((\d+)\) is greater than the derived"],
        "the model's own context is shorter than {0} tokens",
        "lower engine.max_model_len in config.yaml, or leave it out",
    ),
    _cause(
        "context_too_long",
        [r"to serve at least one request with the models?'s max seq len \((\d+)\)"],
        "the KV cache of one request of {0} tokens does not fit into the memory",
        "lower engine.max_model_len in config.yaml, or raise engine.gpu_memory_utilization where there is room",
    ),
    _cause(
        "no_room_for_cache",
        [
            r"no available memory for the cache blocks",
            r"not enough memory\. please try to increase --mem-fraction-static",
            r"loaded weights leave no GPU memory for the KV cache",
            r"no enough gpu memory for",
        ],
        "beside the weights there is no memory left for the KV cache",
        "raise engine.gpu_memory_utilization, take a quantized checkpoint, or spread the model with "
        "engine.tensor_parallel_size",
    ),
    _cause(
        "host_memory",
        [r"available memory on node .{0,200}is less than desired CPU memory utilization"],
        "the machine's free memory is not enough for the share of it that the engine wants",
        "set the size of the KV cache, for example engine.args: {kv-cache-memory-bytes: 1073741824}, or end other "
        "processes",
    ),
    _cause(
        "out_of_memory",
        [
            r"free memory on device .{0,200}is less than desired",
            r"out of memory",
            r"OutOfMemoryError",
            r"memory capacity is unbalanced",
            r"cudaMalloc.*failed",
        ],
        "the accelerator's free memory is not enough",
        "lower engine.gpu_memory_utilization or engine.max_model_len, end other processes on the accelerator "
        "(nvidia-smi lists them), or spread the model with engine.tensor_parallel_size",
    ),
    _cause(
        "shared_memory",
        [
            r"no space left on device.{0,80}/dev/shm",
            r"unable to allocate shared memory",
        ],
        "the shared memory (/dev/shm) is full",
        "give the container more of it: docker run --shm-size 16g, or --ipc host",
    ),
    _cause(
        "no_accelerator",
        [
            r"no CUDA GPUs are available",
            r"found no NVIDIA driver",
            r"failed to infer device type",
            r"no accelerator \(",
            r"cuda driver version is insufficient",
            r"no CUDA-capable device",
            r"not compiled with CUDA enabled",
            r"libcuda\.so[.\d]*: cannot open shared object",
        ],
        "the engine finds no accelerator that it can use",
        "check nvidia-smi and CUDA_VISIBLE_DEVICES; without an accelerator use engine.name: transformers",
    ),
    _cause(
        "too_few_accelerators",
        [r"world size \((\d+)\) is larger than the number of available GPUs", r"invalid device ordinal"],
        "there are fewer accelerators than engine.tensor_parallel_size asks for",
        "lower engine.tensor_parallel_size (and compute.num_accelerators, its default), or check CUDA_VISIBLE_DEVICES",
    ),
    _cause(
        "indivisible",
        [r"attention heads \((\d+)\) must be divisible by tensor parallel size"],
        "the model's {0} attention heads cannot be spread evenly",
        "set engine.tensor_parallel_size to a divisor of the number of heads",
    ),
    _cause(
        "compute_capability",
        [
            r"no kernel image is available",
            r"is not compatible with the current PyTorch installation",
            r"only supported on GPUs with compute capability of at least ([\d.]+)",
            r"is not supported for the current GPU\. minimum capability: (\d+)",
            r"(?:requires?|minimum) .{0,40}compute capability",
        ],
        "this build of the engine, or the number format, does not suit the accelerator's compute capability",
        "try engine.dtype: float16, a checkpoint that is quantized otherwise, or another version of the engine",
    ),
    _cause(
        "illegal_instruction",
        [r"fatal python error: illegal instruction"],
        "the engine used an instruction that this CPU, or the virtual machine around it, does not permit",
        "set engine.dtype: float32, with which the engine takes other kernels",
    ),
    _cause(
        "unknown_option",
        [r"error: unrecognized arguments?: (.+)", r"error: (argument .+)", r"error: (ambiguous option: .+)"],
        "the engine refuses an option: {0}",
        "correct engine.args in config.yaml; the names there are the engine's own",
    ),
    _cause(
        "port_in_use",
        [r"address already in use", r"port is already in use", r"port at \d+ is not available"],
        "the engine's port was taken by another process",
        "start again: a free port is chosen each time",
    ),
    _cause(
        "gated",
        [r"GatedRepoError", r"access a gated repo", r"access to model .{0,120}is restricted", r"401 client error"],
        "the checkpoint is gated and no token gives access",
        "accept its terms on the hub, then set the variable that checkpoints.token_env names",
    ),
    _cause(
        "damaged_weights",
        [r"error while deserializing header", r"SafetensorError"],
        "a file of the checkpoint is damaged or cut off",
        "fetch or copy the checkpoint again: each file has to be as long as at its source",
    ),
    _cause(
        "absent_weights",
        [
            r"(cannot find any (?:model|safetensors) weights)",
            r"no such file or directory: '([^']*(?:safetensors|\.bin|config\.json|tokenizer)[^']*)'",
            r"does not appear to have a file named (\S+?)\.?(?:\s|$)",
            r"(invalid repository ID or local directory)",
            r"RepositoryNotFoundError",
            r"(is not a valid model identifier)",
        ],
        "the checkpoint is incomplete: {0}",
        "look into the checkpoint's folder; it needs config.json, the tokenizer and all weights",
    ),
    _cause(
        "remote_code",
        [r"contains custom code which must be executed", r"set (?:the option )?`?trust_remote_code=True"],
        "the checkpoint comes with Python code of its own",
        "read that code; if you trust it, set engine.trust_remote_code: true",
    ),
    _cause(
        "missing_compiler",
        [
            r"could not find nvcc",
            r"nvcc.{0,40}(?:not found|no such file)",
            r"failed to find C compiler",
            r"'ninja'",
            r"ninja is required",
            r"CUDA_HOME.{0,40}not set",
        ],
        "the engine wants to compile a kernel and finds no compiler",
        "install the CUDA toolkit, ninja and gcc, or choose a backend that needs none in engine.args",
    ),
    _cause(
        "missing_library",
        [
            r"no module named '?([\w.]+)'?",
            r"(lib[\w.+-]+\.so[\d.]*): cannot open shared object",
        ],
        "the engine's environment lacks {0}",
        "install the engine with `modelkit engines install NAME`, or point engine.python at an interpreter that has it",
    ),
    _cause(
        "unsupported_model",
        [
            r"model architectures? \[?'?(\w+)'?\]?.{0,80}not supported",
            r"can not found rewrite for architectures: \[?'?(\w+)",
            r"model type `(\w+)` but transformers does not recognize",
            r"unsupported model type:? '?(\w+)",
        ],
        "the engine does not support the architecture {0}",
        "try another engine, or a newer version of this one",
    ),
)  # fmt: skip


def find_cause(log: Sequence[str]) -> Cause | None:
    """Return the cause that a log names, its texts filled in; None where it names no known one."""
    for line in reversed(log):
        if _WARNING.search(line):
            continue
        for cause in CAUSES:
            match = cause.pattern.search(line)
            if match is not None:
                found = next((group for group in match.groups() if group), match.group(0)).strip()
                return replace(cause, message=cause.message.replace("{0}", found), line=line)
    return None
