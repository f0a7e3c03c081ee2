"""config.yaml as frozen pydantic models: the one place where a key, its limits and its meaning are written.

The loader, the JSON Schema and docs/config.md are all made from these models. Rules that look at more than one key are
in `rules`.
"""

from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictStr, model_validator

from modelkit.config.quantities import Cpu, Duration, Memory

__all__ = [
    "BuildConfig",
    "CheckpointConfig",
    "CheckpointFileConfig",
    "CheckpointSourceConfig",
    "ComputeConfig",
    "ConceptConfig",
    "Config",
    "DeploymentConfig",
    "EngineConfig",
    "EngineName",
    "ModelConfig",
    "SecretConfig",
    "Section",
    "ServerConfig",
]

EngineName = Literal["vllm", "sglang", "lmdeploy", "tgi", "transformers", "openai", "echo"]

_Text = Annotated[StrictStr, Field(min_length=1)]
# The models are strict (a string is no number), but a YAML list has to become a tuple.
_Texts = Annotated[tuple[_Text, ...], Field(strict=False)]
_EnvVar = Annotated[StrictStr, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=256)]

_MIB = 1024**2
_DAY_S = 86_400


class Section(BaseModel):
    """Base of every section: frozen, strict about types, and closed to unknown keys.

    A key without a value (`revision:`) means the default, as if the line were not there.
    """

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _null_means_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = set(cls.yaml_keys())
        return {key: value for key, value in data.items() if value is not None or key not in known}

    @classmethod
    def yaml_keys(cls) -> dict[str, str]:
        """Return each key of this section as config.yaml spells it, with the name of its attribute."""
        return {
            alias if isinstance(alias := field.validation_alias, str) else name: name
            for name, field in cls.model_fields.items()
        }


class ModelConfig(Section):
    """What the model is called."""

    id: str = Field(
        description="Name of the model: letters, digits, '-', '_' and '.', at most 64 of them.",
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
        max_length=64,
        examples=["tiny-chat"],
    )
    name: _Text | None = Field(default=None, description="Name for people, where it differs from the id.")
    description: str = Field(default="", description="What the model does, in a sentence or two.")
    notes: str = Field(default="", description="Anything else worth knowing; shown nowhere but here.")
    user_id: _Text | None = Field(
        default=None, description="Owner, for clients that speak Clarifai's protocol."
    )
    app_id: _Text = Field(default="main", description="App, for clients that speak Clarifai's protocol.")
    model_type_id: _Text = Field(
        default="any-to-any", description="Model type, for clients that speak Clarifai's protocol."
    )


class EngineConfig(Section):
    """The engine that runs a language model, and the options common to all of them."""

    name: EngineName = Field(
        description="vllm, sglang, lmdeploy: a server process on accelerators. tgi: the same, inside TGI's image only. "
        "transformers: in this process, on a CPU or one accelerator. openai: a server that is already running. "
        "echo: answers with its prompt, for tests."
    )
    version: _Text | None = Field(
        default=None,
        description="vllm, sglang, lmdeploy: the engine's version. Default: the one that `modelkit engines` shows.",
        examples=["0.26.0"],
    )
    max_model_len: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens of prompt and answer together. Default: what the checkpoint says.",
    )
    tensor_parallel_size: int | None = Field(
        default=None,
        ge=1,
        description="Accelerators that share each layer. Default: compute.num_accelerators.",
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        default="auto",
        description="Number format of the weights in memory; auto takes the checkpoint's, except that the engine "
        "transformers on a CPU takes float32 for models of fewer than 50 million parameters, which is faster.",
    )
    quantization: _Text | None = Field(
        default=None,
        description="How the weights are quantized, in the engine's own word. Default: what the checkpoint says.",
        examples=["awq"],
    )
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of each accelerator's memory that the engine may take; "
        "with lmdeploy the share of what the weights leave free, for the KV cache.",
    )
    max_num_seqs: int | None = Field(
        default=None,
        ge=1,
        description="Requests that are answered at the same time; further ones wait in the engine.",
    )
    enable_prefix_caching: bool | None = Field(
        default=None,
        description="Keep the KV cache of prompts that begin the same. Default: what the engine does.",
    )
    enable_chunked_prefill: bool | None = Field(
        default=None,
        description="Read long prompts in pieces, so that answers in progress go on. Default: what the engine does.",
    )
    kv_cache_dtype: _Text | None = Field(
        default=None,
        description="Number format of the KV cache, in the engine's own word. Default: that of the weights.",
        examples=["fp8"],
    )
    speculative: dict[_Text, JsonValue] | None = Field(
        default=None,
        description="Speculative decoding: `method`, `model` and `num_speculative_tokens`, and what else the engine "
        "knows about it.",
        examples=[{"method": "ngram", "num_speculative_tokens": 4}],
    )
    tool_call_parser: _Text | None = Field(
        default=None,
        description="How tool calls are read from the model's text, in the engine's own word; turns them on.",
        examples=["hermes"],
    )
    reasoning_parser: _Text | None = Field(
        default=None,
        description="How reasoning is told from the answer, in the engine's own word.",
        examples=["qwen3"],
    )
    lora_modules: dict[_Text, _Text] | None = Field(
        default=None,
        description="LoRA adapters: the name that a request gives as its model, and the adapter's folder, relative "
        "to the model folder, or the name of one of `checkpoints.additional`.",
        examples=[{"support": "adapters/support"}],
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code that comes with the checkpoint. Only for checkpoints you trust.",
    )
    python: _Text | None = Field(
        default=None,
        description="vllm, sglang, lmdeploy: Python interpreter that has the engine installed. Default: the one that "
        "runs modelkit where it has it, else one that modelkit makes and keeps.",
        examples=["/opt/vllm/bin/python"],
    )
    start_timeout_s: Duration = Field(
        default=1800.0,
        gt=0,
        le=7 * _DAY_S,
        validation_alias="start_timeout",
        description="How long the engine may take until it answers. Default: 30m.",
    )
    url: _Text | None = Field(
        default=None,
        description="openai: base URL of the server. Default: the environment variable OPENAI_BASE_URL.",
        examples=["http://127.0.0.1:8000/v1"],
    )
    api_key_env: _EnvVar | None = Field(
        default=None,
        description="openai: environment variable that holds the API key; never the key itself. "
        "Default: OPENAI_API_KEY.",
        examples=["OPENAI_API_KEY"],
    )
    model: _Text | None = Field(
        default=None,
        description="openai: name of the model on that server. Default: its first.",
        examples=["gpt-5-mini"],
    )
    args: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Further options, passed on as the engine spells them.",
        examples=[{"seed": 7}],
    )


class ComputeConfig(Section):
    """What one replica needs."""

    cpu_limit_cores: Cpu | None = Field(
        default=None,
        gt=0,
        validation_alias="cpu_limit",
        description='CPU cores, such as "4" or 500m. Default: no limit.',
    )
    cpu_memory_bytes: Memory | None = Field(
        default=None,
        ge=_MIB,
        validation_alias="cpu_memory",
        description="Main memory, such as 16Gi. Default: no limit.",
    )
    cpu_request_cores: Cpu | None = Field(
        default=None,
        gt=0,
        validation_alias="cpu_requests",
        description="CPU cores to reserve. Default: cpu_limit.",
    )
    cpu_memory_request_bytes: Memory | None = Field(
        default=None,
        ge=_MIB,
        validation_alias="cpu_memory_requests",
        description="Main memory to reserve. Default: cpu_memory.",
    )
    num_accelerators: int = Field(
        default=0, ge=0, le=1024, description="Accelerators (GPUs) per replica; 0 runs on the CPU."
    )
    accelerator_fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of one accelerator that a replica takes, so that several share it: 0.5. On computes of kind "
        "ray; goes with num_accelerators: 1. What each takes of its memory is engine.gpu_memory_utilization.",
    )
    accelerator_type: _Texts = Field(
        default=(),
        description="Kinds that will do, best first; * stands for anything. Empty: any kind.",
        examples=[["NVIDIA-H200", "NVIDIA-*"]],
    )
    accelerator_memory_bytes: Memory | None = Field(
        default=None,
        ge=_MIB,
        validation_alias="accelerator_memory",
        description="Least memory of each accelerator, such as 80Gi.",
    )
    instance: _Text | None = Field(
        default=None,
        description="Machine type of a cloud; fills in whatever of the keys above is not given.",
        examples=["g5.xlarge"],
    )


class CheckpointFileConfig(Section):
    """One file of a checkpoint of type http."""

    url: Annotated[StrictStr, Field(pattern=r"^https?://[^/?#\s]+/\S+$")] = Field(
        description="Where the file is.", examples=["https://example.com/model.safetensors"]
    )
    sha256: Annotated[StrictStr, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="Its SHA-256, as `sha256sum` prints it: 64 digits."
    )
    path: _Text | None = Field(
        default=None, description="Its name in the checkpoint's folder. Default: the last part of the URL."
    )

    @property
    def name(self) -> str:
        """What the file is called in the checkpoint's folder."""
        return self.path or unquote(urlsplit(self.url).path.rpartition("/")[2])


class CheckpointSourceConfig(Section):
    """Where one checkpoint comes from."""

    type: Literal["huggingface", "s3", "oci", "local", "http"] = Field(
        description="Kind of place the checkpoint is in."
    )
    repo_id: _Text | None = Field(
        default=None,
        description="huggingface: the repository, such as Qwen/Qwen2-7B-Instruct. oci: registry/repository, or oci:FOLDER for a layout on this machine.",
        examples=["Qwen/Qwen2-7B-Instruct"],
    )
    path: _Text | None = Field(
        default=None,
        description="local: a folder, relative to the model folder. s3: s3://bucket/prefix.",
        examples=["checkpoint"],
    )
    files: Annotated[tuple[CheckpointFileConfig, ...], Field(strict=False)] = Field(
        default=(), description="http: the files, each with `url`, `sha256` and, where it differs, `path`."
    )
    revision: _Text | None = Field(
        default=None,
        description="huggingface: branch, tag or commit; default: main. oci: tag or digest; default: latest. It is pinned "
        "in modelkit.lock.",
    )
    token_env: _EnvVar | None = Field(
        default=None,
        description="Environment variable that holds the access token; never the token itself.",
        examples=["HF_TOKEN"],
    )
    allowed_file_patterns: _Texts = Field(
        default=(),
        description="Fetch only files that match one of these. Empty: all files, without older formats of weights "
        "that are there as safetensors too.",
        examples=[["*.safetensors"]],
    )
    ignored_file_patterns: _Texts = Field(
        default=(), description="Leave out files that match one of these.", examples=[["original/*", "*.pth"]]
    )
    allow_pickle: _Texts = Field(
        default=(),
        description="Pickle files (.bin, .pt, .pth, .ckpt, .pkl) to take all the same, by name: loading one can run any "
        "code. They are scanned.",
        examples=[["pytorch_model.bin"]],
    )


class CheckpointConfig(CheckpointSourceConfig):
    """Where the weights, the tokenizer and their config come from."""

    when: Literal["runtime", "build", "upload"] = Field(
        default="runtime",
        description="When the files are fetched: as a replica starts, into the image as it is built, or at upload.",
    )
    additional: dict[_Text, CheckpointSourceConfig] = Field(
        default_factory=dict,
        description="Further checkpoints by name, each with the keys of this section but `when` and `additional`: LoRA "
        "adapters, a draft model. `engine.lora_modules` and `engine.speculative.model` may name them, and model.py "
        "finds them in `self.context.checkpoint_dirs`.",
        examples=[{"support": {"type": "huggingface", "repo_id": "org/support-lora"}}],
    )


class BuildConfig(Section):
    """How the image is built."""

    python_version: Literal["3.11", "3.12", "3.13", "3.14"] = Field(
        default="3.12",
        description='Python in the image. Quote it: YAML reads 3.10 as the number 3.1. Default: "3.12".',
    )
    image: _Text | None = Field(
        default=None,
        description="Base image. Default: the engine's pinned image, or Python's slim image.",
    )
    platform: _Text | None = Field(
        default=None,
        description="Platform to build for, such as linux/amd64. Default: this machine's.",
        examples=["linux/amd64"],
    )
    system_packages: _Texts = Field(
        default=(), description="Debian packages to install in the image.", examples=[["ffmpeg", "libgl1"]]
    )


def _default_min_replicas(data: dict[str, Any]) -> int:
    return 0 if data.get("mode") == "serverless" else 1


def _default_max_replicas(data: dict[str, Any]) -> int:
    return max(1, int(data.get("min_replicas", 1)))


class DeploymentConfig(Section):
    """How many replicas run, and when there are more of them."""

    mode: Literal["dedicated", "serverless"] = Field(
        default="dedicated",
        description="dedicated: at least one replica always runs. serverless: none may run while idle.",
    )
    min_replicas: int = Field(
        default_factory=_default_min_replicas,
        ge=0,
        le=10_000,
        description="Replicas that always run. Default: 1, or 0 when serverless.",
    )
    max_replicas: int = Field(
        default_factory=_default_max_replicas,
        ge=1,
        le=10_000,
        description="Most replicas at the same time. Default: min_replicas, or 1 where that is 0.",
    )
    target_concurrency: int = Field(
        default=32, ge=1, le=100_000, description="Calls in progress per replica that autoscaling aims at."
    )
    max_surge_percent: int = Field(
        default=100,
        ge=0,
        le=100,
        description="How many replicas more than wanted may run while a new version takes over, in percent. With 0 a "
        "deployment of one replica is down for the time that the new one takes to start.",
    )
    scale_to_zero_after_s: Duration | None = Field(
        default=None,
        gt=0,
        le=30 * _DAY_S,
        validation_alias="scale_to_zero_after",
        description="serverless: idle time after which the last replica ends. Default: the platform's.",
    )


class ServerConfig(Section):
    """Limits of the server in each replica."""

    max_concurrency: int = Field(
        default=128, ge=1, le=100_000, description="Calls in progress at the same time; further ones wait."
    )
    max_queue: int = Field(
        default=1024,
        ge=0,
        le=1_000_000,
        description="Calls that may wait; further ones get RESOURCE_EXHAUSTED at once.",
    )
    max_message_bytes: Memory = Field(
        default=64 * _MIB,
        ge=1024,
        le=1024 * _MIB,
        description="Largest message that is received or sent, such as 64Mi; at most 1Gi. Default: 64Mi.",
    )
    drain_timeout_s: Duration = Field(
        default=30.0,
        ge=0,
        le=_DAY_S,
        validation_alias="drain_timeout",
        description="How long calls in progress may go on after the server was told to stop; at most 1d. "
        "Default: 30s.",
    )


class SecretConfig(Section):
    """A secret the model needs, by the name of its environment variable; never its value."""

    env_var: _EnvVar = Field(
        description="Environment variable that holds the secret.", examples=["OPENAI_API_KEY"]
    )
    id: _Text | None = Field(
        default=None, description="Name of the secret where it is stored. Default: env_var."
    )
    type: Literal["env"] = Field(
        default="env", description="How the model gets it: as an environment variable."
    )
    description: str = Field(default="", description="What it is for.")


class ConceptConfig(Section):
    """One label that a classifier can answer with."""

    id: _Text = Field(description="Id of the label.")
    name: _Text | None = Field(default=None, description="Name for people. Default: the id.")


class Config(Section):
    """A model folder's config.yaml, checked: every value has its type and its default."""

    model: ModelConfig = Field(description="What the model is called.")
    engine: EngineConfig | None = Field(
        default=None, description="The engine that runs a language model. Absent for a plain Python model."
    )
    compute: ComputeConfig = Field(default=ComputeConfig(), description="What one replica needs.")
    checkpoints: CheckpointConfig | None = Field(
        default=None, description="Where the weights come from. Absent where the model needs none."
    )
    build: BuildConfig = Field(default=BuildConfig(), description="How the image is built.")
    deployment: DeploymentConfig = Field(default=DeploymentConfig(), description="How many replicas run.")
    server: ServerConfig = Field(default=ServerConfig(), description="Limits of the server in each replica.")
    secrets: Annotated[tuple[SecretConfig, ...], Field(strict=False)] = Field(
        default=(), description="Secrets the model needs, by environment variable."
    )
    concepts: Annotated[tuple[ConceptConfig, ...], Field(strict=False)] = Field(
        default=(), description="Labels that a classifier can answer with."
    )
