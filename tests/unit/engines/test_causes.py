import pytest

from modelkit.engines.causes import CAUSES, find_cause

# Lines as the engines print them, taken from their sources (vLLM 0.26, SGLang 0.5.16, LMDeploy 0.18, torch, hub).
LINES = {
    "context_longer_than_model": [
        ("ValueError: User-specified max_model_len (32768) is greater than the derived max_model_len "
        "(max_position_embeddings=1024.0 or model_max_length=None in model's config.json)."),
        ("ValueError: Warning: User-specified context_length (4096) is greater than the derived context_length (1024). "
        "This may lead to incorrect model outputs or CUDA errors."),
    ],
    "context_too_long": [
        ("(EngineCore pid=12) ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB "
        "KV cache is needed, which is larger than the available KV cache memory (2.1 GiB)."),
    ],
    "no_room_for_cache": [
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
        "initializing the engine"),
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current value: mem_fraction_static=0.1",
        "ValueError: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=0.1.",
        "RuntimeError: No enough gpu memory for kv cache.",
    ],
    "host_memory": [
        ("ValueError: Available memory on node 0 (18.19/19.96 GiB) on startup is less than desired CPU memory utilization "
        "(0.92, 18.37 GiB). Decrease CPU memory utilization or reduce CPU memory used by other processes.")
    ],
    "out_of_memory": [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.81 GiB",
        ("ValueError: Free memory on device cuda:0 (3.5/139.81 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 125.8 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."),
        "RuntimeError: [TM][ERROR] CUDA runtime error: out of memory /lmdeploy/src/turbomind/core/allocator.cc:47",
    ],
    "shared_memory": ["OSError: [Errno 28] No space left on device: '/dev/shm/psm_21'"],
    "no_accelerator": [
        "RuntimeError: No CUDA GPUs are available",
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
        "RuntimeError: No accelerator (CUDA, XPU, HPU, NPU, MUSA, MPS) or platform plugin is available.",
        "AssertionError: Torch not compiled with CUDA enabled",
        "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",
    ],
    "too_few_accelerators": [
        "ValueError: World size (8) is larger than the number of available GPUs (1) in this node.",
        "RuntimeError: CUDA error: invalid device ordinal",
    ],
    "indivisible": ["ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2)."],
    "compute_capability": [
        "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device",
        ("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has "
        "compute capability 7.5. You can use float16 instead by explicitly setting the `dtype` flag"),
        ("ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 89. "
        "Current capability: 75."),
    ],
    "illegal_instruction": ["Fatal Python error: Illegal instruction"],
    "unknown_option": [
        "api_server.py: error: unrecognized arguments: --no-such-option 3",
        "launch_server.py: error: argument --dtype: invalid choice: 'x' (choose from 'auto', 'half')",
    ],
    "port_in_use": [
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use",
        "OSError: [Errno 98] Address already in use",
    ],
    "gated": [
        "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-66)",
        "OSError: You are trying to access a gated repo.",
    ],
    "damaged_weights": ["safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata"],
    "absent_weights": [
        "RuntimeError: Cannot find any model weights with `/models/chat`",
        "OSError: /models/chat does not appear to have a file named config.json. Checkout 'https://hub/x' for files.",
        "FileNotFoundError: [Errno 2] No such file or directory: '/models/chat/model-00001-of-00002.safetensors'",
        "ValueError: Invalid repository ID or local directory specified: '/models/chat'.",
    ],
    "remote_code": [
        "ValueError: The repository /models/chat contains custom code which must be executed to correctly load the model.",
    ],
    "missing_compiler": [
        "RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist",
        "FileNotFoundError: [Errno 2] No such file or directory: 'ninja'",
        "RuntimeError: Failed to find C compiler. Please specify via CC environment variable",
    ],
    "missing_library": [
        ("/usr/bin/python3: Error while finding module specification for 'vllm.entrypoints.openai.api_server' "
        "(ModuleNotFoundError: No module named 'vllm')"),
        "/usr/bin/python3: No module named lmdeploy",
        "ImportError: libcublas.so.12: cannot open shared object file: No such file or directory",
    ],
    "unsupported_model": [
        ("ValueError: Model architectures ['NoSuchForCausalLM'] are not supported for now. Supported architectures: "
        "dict_keys(['LlamaForCausalLM'])"),
        "RuntimeError: Can not found rewrite for architectures: ['NoSuchForCausalLM']",
        ("ValueError: The checkpoint you are trying to load has model type `nosuch` but Transformers does not recognize "
        "this architecture."),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in LINES.items() for line in lines])
def test_a_line_of_an_engine_names_its_cause(name, line):
    cause = find_cause(["INFO starting", line, "", "RuntimeError: Engine core initialization failed."])
    assert cause is not None
    assert (cause.name, cause.line) == (name, line)
    assert "{0}" not in cause.message
    assert cause.cure


def test_every_cause_has_a_line():
    assert set(LINES) == {cause.name for cause in CAUSES}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x: error: unrecognized arguments: --no-such 3", "the engine refuses an option: --no-such 3"),
        ("ModuleNotFoundError: No module named 'vllm'", "the engine's environment lacks vllm"),
        (
            "OSError: /m does not appear to have a file named config.json. See",
            "the checkpoint is incomplete: config.json",
        ),
        ("Model architectures ['Foo'] are not supported", "the engine does not support the architecture Foo"),
    ],
)
def test_the_message_has_what_the_line_names(line, message):
    cause = find_cause([line])
    assert cause is not None
    assert cause.message == message


def test_the_last_cause_counts_and_warnings_do_not():
    log = [
        "ModuleNotFoundError: No module named 'flashinfer'",
        "torch.OutOfMemoryError: CUDA out of memory.",
        "WARNING 01-01 No module named 'deep_gemm'",
    ]
    cause = find_cause(log)
    assert cause is not None
    assert cause.name == "out_of_memory"


def test_an_unknown_log_has_no_cause():
    assert find_cause(["Traceback (most recent call last):", "KeyError: 'x'"]) is None
    assert find_cause([]) is None
