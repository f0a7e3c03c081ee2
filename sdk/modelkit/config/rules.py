"""Rules that look at more than one key. Each is a generator of findings about a config whose single values are valid."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from modelkit.config.models import CheckpointSourceConfig, Config, EngineConfig
from modelkit.config.tree import Path as TreePath
from modelkit.config.tree import format_path
from modelkit.errors import closest

__all__ = ["RULES", "Finding", "Subject"]

# Those that modelkit finds an environment for; TGI runs where its image has it.
INSTALLED_ENGINES = frozenset({"vllm", "sglang", "lmdeploy"})
ACCELERATOR_ENGINES = INSTALLED_ENGINES | {"tgi"}
WEIGHTLESS_ENGINES = frozenset({"openai", "echo"})

# Options of the engines' servers that take a secret.
_SECRET_ARGS = frozenset({"api_key", "hf_token", "password"})

# What the tokens of Hugging Face, OpenAI and the like look like; such a text is never the name of a variable.
_TOKEN = re.compile(r"(hf|sk|gsk|key)_[A-Za-z0-9]{16,}")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*[0-9A-Za-z.]*(\+[0-9A-Za-z.]+)?")


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule has found: `at` is the key to point at, `because_of` are the other keys it rests on."""

    at: TreePath
    message: str
    cure: str
    because_of: tuple[TreePath, ...] = ()
    severity: Literal["error", "warning"] = "error"


class Subject(NamedTuple):
    """What a rule looks at."""

    config: Config
    model_dir: Path


def engine_has_accelerators(subject: Subject) -> Iterator[Finding]:
    """Engines that live on accelerators get some; engines that cannot use any get none."""
    engine, num = subject.config.engine, subject.config.compute.num_accelerators
    if engine is None:
        return
    at: TreePath = ("compute", "num_accelerators")
    if engine.name in ACCELERATOR_ENGINES and num == 0:
        yield Finding(
            ("engine", "name"),
            f"{engine.name} runs on accelerators, and compute.num_accelerators is 0",
            "set compute.num_accelerators to 1 or more, unless this build of it runs on a CPU",
            (at,),
            "warning",
        )
    if engine.name in WEIGHTLESS_ENGINES and num > 0:
        yield Finding(
            at,
            f"the engine '{engine.name}' uses no accelerators, and compute asks for {num}",
            "remove num_accelerators, or choose another engine",
            (("engine", "name"),),
        )


def accelerators_are_counted(subject: Subject) -> Iterator[Finding]:
    """A kind or a size of accelerators says nothing without their number."""
    compute = subject.config.compute
    if "num_accelerators" in compute.model_fields_set:
        return
    for key, is_set in (
        ("accelerator_type", bool(compute.accelerator_type)),
        ("accelerator_memory", compute.accelerator_memory_bytes is not None),
    ):
        if is_set:
            at: TreePath = ("compute", key)
            cure = "add 'num_accelerators: 1' below 'compute'"
            yield Finding(
                at,
                f"compute.{key} has no effect without num_accelerators",
                cure,
                (("compute", "num_accelerators"),),
            )


def tensor_parallel_fits(subject: Subject) -> Iterator[Finding]:
    """A model is not spread over more accelerators than a replica has."""
    engine, num = subject.config.engine, subject.config.compute.num_accelerators
    size = engine.tensor_parallel_size if engine is not None else None
    if size is not None and size > max(num, 1):
        yield Finding(
            ("engine", "tensor_parallel_size"),
            f"engine.tensor_parallel_size is {size}, and a replica has {num} accelerators (compute.num_accelerators)",
            f"set compute.num_accelerators to {size}, or lower tensor_parallel_size",
            (("compute", "num_accelerators"),),
        )


# How modelkit reaches an engine's server: where it listens, under which name, and the weights it was given.
_RESERVED_ARGS = frozenset(
    {"host", "port", "server_name", "server_port", "model_path", "served_model_name", "model_name"}
)


def args_leave_the_server_alone(subject: Subject) -> Iterator[Finding]:
    """What modelkit itself tells an engine's server is not told again: it would be unreachable, or open to others."""
    engine = subject.config.engine
    for key in engine.args if engine is not None and engine.name in ACCELERATOR_ENGINES else ():
        if key.lstrip("-").replace("-", "_") in _RESERVED_ARGS:
            cure = "remove it; `modelkit serve --host ... --port ...` says where modelkit listens"
            yield Finding(("engine", "args", key), f"'{key}' is set by modelkit itself", cure)


def args_do_not_repeat(subject: Subject) -> Iterator[Finding]:
    """An option that has a key of its own is not passed on a second time."""
    engine = subject.config.engine
    if engine is None:
        return
    own = set(EngineConfig.yaml_keys()) - {"args"}
    for key in engine.args:
        name = key.lstrip("-").replace("-", "_")
        if name in own:
            cure = f"move it up: write '{name}' below 'engine'"
            yield Finding(("engine", "args", key), f"'{key}' has a key of its own in 'engine'", cure)


class _Owned(NamedTuple):
    """Options that only some engines have."""

    options: tuple[str, ...]
    engines: frozenset[str]
    severity: Literal["error", "warning"]


_OWNED = (
    _Owned(("url", "api_key_env", "model"), frozenset({"openai"}), "error"),
    _Owned(("version", "python"), INSTALLED_ENGINES, "warning"),
    # Without these the model would answer something else, ...
    _Owned(("quantization", "lora_modules"), ACCELERATOR_ENGINES, "error"),
    # ... without these not as fast or not as neatly divided; a folder may move between engines with them.
    _Owned(
        (
            "max_num_seqs",
            "enable_prefix_caching",
            "enable_chunked_prefill",
            "kv_cache_dtype",
            "speculative",
            "tool_call_parser",
            "reasoning_parser",
        ),
        ACCELERATOR_ENGINES,
        "warning",
    ),
)


def engine_has_its_options(subject: Subject) -> Iterator[Finding]:
    """An option is given to an engine that has it."""
    engine = subject.config.engine
    if engine is None:
        return
    for owned in _OWNED:
        for key in owned.options if engine.name not in owned.engines else ():
            if getattr(engine, key) is not None:
                yield Finding(
                    ("engine", key),
                    f"engine.{key} has no effect: the engine '{engine.name}' has no such option",
                    f"remove it; it is for {_and(sorted(owned.engines))}",
                    (("engine", "name"),),
                    owned.severity,
                )


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def version_is_exact(subject: Subject) -> Iterator[Finding]:
    """`engine.version` is one version, not a range: a folder gives the same engine everywhere."""
    version = subject.config.engine.version if subject.config.engine is not None else None
    if version is not None and not _VERSION.fullmatch(version):
        cure = "write one exact version, such as 0.26.0; `modelkit engines` shows the default"
        yield Finding(("engine", "version"), f"'{version}' is no version of an engine", cure)


def tgi_has_its_options(subject: Subject) -> Iterator[Finding]:
    """TGI lacks a few options that the other engines on accelerators have."""
    engine = subject.config.engine
    if engine is None or engine.name != "tgi":
        return
    lacking = (
        ("reasoning_parser", "TGI does not tell reasoning from the answer"),
        ("tool_call_parser", "TGI reads tool calls without a parser"),
    )
    for key, reason in lacking:
        if getattr(engine, key) is not None:
            yield Finding(
                ("engine", key), reason, "remove it, or choose another engine", (("engine", "name"),)
            )


def server_is_located(subject: Subject) -> Iterator[Finding]:
    """`engine.url` is a URL of HTTP, and holds no secret."""
    url = subject.config.engine.url if subject.config.engine is not None else None
    if url is None:
        return
    at: TreePath = ("engine", "url")
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an address or a port that is none
        is_http = False
    if not is_http:
        # Not repeated in the message: what is no URL may be a key that was put into the wrong line.
        yield Finding(at, "engine.url is no URL of a server", "write it as http://127.0.0.1:8000/v1")
    elif parts.username is not None or parts.password is not None or _names_a_secret(parts.query):
        yield Finding(
            at,
            "a secret does not belong in engine.url: it would be shipped with the model",
            "export it as OPENAI_API_KEY, or name another variable with engine.api_key_env",
        )


def _names_a_secret(query: str) -> bool:
    names = (part.partition("=")[0].lower() for part in query.split("&"))
    return any(word in name for name in names for word in ("key", "token", "secret", "password"))


def key_is_named(subject: Subject) -> Iterator[Finding]:
    """`api_key_env` holds a variable's name; people paste the key."""
    engine = subject.config.engine
    if engine is not None and engine.api_key_env and _TOKEN.fullmatch(engine.api_key_env):
        yield Finding(
            ("engine", "api_key_env"),
            "engine.api_key_env is the name of an environment variable, and this looks like a key itself",
            "export it as OPENAI_API_KEY and leave api_key_env out; revoke a key that was shared",
        )


def adapters_are_there(subject: Subject) -> Iterator[Finding]:
    """A LoRA adapter is a folder in the model folder, or one of the checkpoints."""
    engine, checkpoints = subject.config.engine, subject.config.checkpoints
    named = checkpoints.additional if checkpoints is not None else {}
    for name, path in (engine.lora_modules or {}).items() if engine is not None else ():
        if path not in named and not _is_dir(subject.model_dir / path):
            guess = closest(path, list(named))
            yield Finding(
                ("engine", "lora_modules", name),
                f"there is no folder '{path}' yet, and no checkpoint of that name",
                f"did you mean the checkpoint '{guess}'?"
                if guess
                else "put the adapter there before serving; the path is relative to the model folder",
                (("checkpoints", "additional"),),
                severity="warning",
            )


def args_hold_no_secrets(subject: Subject) -> Iterator[Finding]:
    """A secret does not reach the engine through the file."""
    engine = subject.config.engine
    for key, value in engine.args.items() if engine is not None else ():
        if key.lstrip("-").replace("-", "_").lower() in _SECRET_ARGS and value:
            message = f"the value of '{key}' does not belong in a file: it would be shipped with the model"
            cure = "remove it, and name the environment variable that holds it under 'secrets'"
            yield Finding(("engine", "args", key), message, cure)


def engine_has_weights(subject: Subject) -> Iterator[Finding]:
    """An engine that runs weights is told where they are."""
    engine = subject.config.engine
    if engine is None or engine.name in WEIGHTLESS_ENGINES or subject.config.checkpoints is not None:
        return
    yield Finding(
        ("engine", "name"),
        f"the engine '{engine.name}' runs a checkpoint, and there is no 'checkpoints' section",
        "add 'checkpoints:' with 'type: huggingface' and 'repo_id: org/name' below it",
        (("checkpoints",),),
    )


def _checkpoints(subject: Subject) -> Iterator[tuple[TreePath, CheckpointSourceConfig]]:
    """Yield every checkpoint with the path of its section, the one of `checkpoints` itself first."""
    checkpoints = subject.config.checkpoints
    if checkpoints is not None:
        yield ("checkpoints",), checkpoints
        for name, each in checkpoints.additional.items():
            yield ("checkpoints", "additional", name), each


def checkpoint_is_located(subject: Subject) -> Iterator[Finding]:
    """The key that says where a checkpoint of its type is, and no other one."""
    for at, checkpoint in _checkpoints(subject):
        needed, example = _LOCATIONS[checkpoint.type]
        if not getattr(checkpoint, needed):
            message = f"a checkpoint of type {checkpoint.type} needs '{needed}'"
            yield Finding((*at, "type"), message, f"add '{needed}: {example}'", ((*at, needed),))
        for other in ("repo_id", "path", "files"):
            if other != needed and getattr(checkpoint, other):
                message = f"{format_path((*at, other))} has no meaning for the type {checkpoint.type}"
                cure = f"remove it; where the checkpoint is goes into '{needed}'"
                yield Finding((*at, other), message, cure, ((*at, "type"),))


# Type -> the key that says where it is, and what to write there.
_LOCATIONS = {
    "huggingface": ("repo_id", "org/name"),
    "oci": ("repo_id", "registry.example.com/models/name"),
    "local": ("path", "checkpoint"),
    "s3": ("path", "s3://bucket/prefix"),
    "http": ("files", "[{url: https://example.com/model.safetensors, sha256: ...}]"),
}


def checkpoint_location_is_well_formed(subject: Subject) -> Iterator[Finding]:
    """The location looks like what its type stands for, and a local folder is there."""
    for at, checkpoint in _checkpoints(subject):
        yield from _location_problems(at, checkpoint, subject.model_dir)


def _location_problems(
    at: TreePath, checkpoint: CheckpointSourceConfig, model_dir: Path
) -> Iterator[Finding]:
    about_type = ((*at, "type"),)
    repo_id, path = checkpoint.repo_id, checkpoint.path
    if (
        checkpoint.type == "huggingface"
        and repo_id
        and not re.fullmatch(r"[^\W_][\w.-]*(/[\w.-]+)?", repo_id, re.ASCII)
    ):
        cure = "write it as on the Hub: org/name; for a folder use 'type: local' and 'path'"
        yield Finding((*at, "repo_id"), f"'{repo_id}' is no repository id", cure, about_type)
    if checkpoint.type == "s3" and path and not re.match(r"s3://[^/]", path):
        yield Finding((*at, "path"), f"'{path}' is no S3 address", "write s3://bucket/prefix", about_type)
    if checkpoint.type == "local" and path and not _is_dir(model_dir / path):
        cure = "put the files there before serving; the path is relative to the model folder"
        yield Finding((*at, "path"), f"there is no folder '{path}' yet", cure, about_type, "warning")


def files_are_distinct(subject: Subject) -> Iterator[Finding]:
    """Each file of an http checkpoint has a name of its own, inside the checkpoint's folder, and no secret in its URL."""
    for at, checkpoint in _checkpoints(subject):
        seen = set[str]()
        for index, file in enumerate(checkpoint.files):
            here: TreePath = (*at, "files", index)
            if not file.name or {"", ".", ".."} & set(file.name.split("/")):
                key = "path" if file.path else "url"
                cure = "write 'path' as a relative path, such as model.safetensors"
                yield Finding((*here, key), f"'{file.name}' is no name of a file", cure)
            elif file.name in seen:
                message = f"two files would be called '{file.name}'"
                yield Finding(here, message, "give one of them another 'path'")
            seen.add(file.name)
            parts = urlsplit(file.url)
            if parts.username is not None or parts.password is not None or _names_a_secret(parts.query):
                yield Finding(
                    (*here, "url"),
                    "a secret does not belong in a URL: it would be shipped with the model",
                    "name a variable that holds the token with 'token_env'",
                )


def checkpoints_are_named(subject: Subject) -> Iterator[Finding]:
    """The names of additional checkpoints are plain, and none is that of the one that `checkpoints` itself describes."""
    checkpoints = subject.config.checkpoints
    for name in checkpoints.additional if checkpoints is not None else ():
        at: TreePath = ("checkpoints", "additional", name)
        if name == "default":
            message = "'default' is the name of the checkpoint that 'checkpoints' itself describes"
            yield Finding(at, message, "choose another name")
        elif not _NAME.fullmatch(name):
            message = f"'{name}' is no name of a checkpoint"
            yield Finding(at, message, "use letters, digits, '-', '_' and '.', at most 64 of them")


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a path that the system refuses, such as one that is too long
        return False


def token_is_named(subject: Subject) -> Iterator[Finding]:
    """`token_env` holds a variable's name; people paste the token."""
    for at, checkpoint in _checkpoints(subject):
        if checkpoint.token_env and _TOKEN.fullmatch(checkpoint.token_env):
            yield Finding(
                (*at, "token_env"),
                f"{format_path((*at, 'token_env'))} is the name of an environment variable, and this looks like a "
                "token itself",
                "export it as HF_TOKEN and write 'token_env: HF_TOKEN' here; revoke a token that was shared",
            )


def replicas_are_ordered(subject: Subject) -> Iterator[Finding]:
    """min_replicas <= max_replicas, and the bounds fit the mode."""
    deployment = subject.config.deployment
    low, high = deployment.min_replicas, deployment.max_replicas
    at: TreePath = ("deployment", "min_replicas")
    mode: TreePath = ("deployment", "mode")
    if low > high:
        message = f"deployment.min_replicas is {low}, more than max_replicas, which is {high}"
        yield Finding(at, message, f"set max_replicas to {low} or more", (("deployment", "max_replicas"),))
    if deployment.mode == "dedicated" and low == 0:
        cure = "write 'mode: serverless', or set min_replicas to 1 or more"
        yield Finding(
            at, "a dedicated deployment always runs a replica, and min_replicas is 0", cure, (mode,)
        )


def scaling_to_zero_can_happen(subject: Subject) -> Iterator[Finding]:
    """`scale_to_zero_after` needs a deployment that may scale to zero."""
    deployment = subject.config.deployment
    if deployment.scale_to_zero_after_s is not None and deployment.min_replicas > 0:
        yield Finding(
            ("deployment", "scale_to_zero_after"),
            f"scale_to_zero_after has no effect while min_replicas is {deployment.min_replicas}",
            "write 'mode: serverless' and leave min_replicas out, or remove scale_to_zero_after",
            (("deployment", "mode"), ("deployment", "min_replicas")),
            "warning",
        )


def target_is_reachable(subject: Subject) -> Iterator[Finding]:
    """Autoscaling aims at a number of calls that the server lets in."""
    if "target_concurrency" not in subject.config.deployment.model_fields_set:
        return
    target, limit = subject.config.deployment.target_concurrency, subject.config.server.max_concurrency
    if target > limit:
        yield Finding(
            ("deployment", "target_concurrency"),
            f"target_concurrency is {target}, and a replica works on {limit} calls at most (server.max_concurrency)",
            "lower target_concurrency, or raise server.max_concurrency",
            (("server", "max_concurrency"),),
            "warning",
        )


def secrets_are_distinct(subject: Subject) -> Iterator[Finding]:
    """No environment variable is named twice."""
    counts = Counter[str]()
    for index, secret in enumerate(subject.config.secrets):
        counts[secret.env_var] += 1
        if counts[secret.env_var] == 2:  # noqa: PLR2004 - the first repetition
            yield Finding(
                ("secrets", index, "env_var"),
                f"the secret {secret.env_var} is named twice",
                "remove one of the two",
            )


Rule = Callable[[Subject], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    engine_has_accelerators,
    accelerators_are_counted,
    tensor_parallel_fits,
    args_do_not_repeat,
    args_leave_the_server_alone,
    engine_has_its_options,
    version_is_exact,
    tgi_has_its_options,
    server_is_located,
    key_is_named,
    adapters_are_there,
    args_hold_no_secrets,
    engine_has_weights,
    checkpoint_is_located,
    checkpoint_location_is_well_formed,
    files_are_distinct,
    checkpoints_are_named,
    token_is_named,
    replicas_are_ordered,
    scaling_to_zero_can_happen,
    target_is_reachable,
    secrets_are_distinct,
)
