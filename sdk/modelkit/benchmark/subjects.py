"""From what the command line names to what is measured: running servers as they are, folders served with each engine."""

import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from modelkit.benchmark.machine import Sampler
from modelkit.benchmark.roofline import read_architecture
from modelkit.benchmark.runner import Subject
from modelkit.benchmark.serving import Served, serving
from modelkit.benchmark.targets import Protocol, TargetSpec, base_url
from modelkit.benchmark.tokens import open_texts
from modelkit.config import Config, find_config, load_config
from modelkit.errors import ModelkitError, UsageError
from modelkit.fit import config_hash
from modelkit.versions.record import content_digest

__all__ = ["FolderSource", "RandomSource", "ServerSource", "Source"]

# Engines that make weights up themselves, faster than a disk reads them.
_DUMMY_LOADERS: Final = frozenset({"vllm", "sglang"})
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

OnStage = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServerSource:
    """A server that runs already. `tokenizer` makes prompts exact; `base` is what every request has in common."""

    base: TargetSpec
    tokenizer: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The subjects it will give."""
        return (self.base.url,)

    @asynccontextmanager
    async def open(self, folder: Path, on_stage: OnStage) -> AsyncIterator[list[Subject]]:
        """Yield the one subject."""
        del folder, on_stage
        spec = self.base
        is_local = any(host in spec.address for host in _LOOPBACK)
        urls = [f"{base_url(spec.address)}{path}" for path in ("/metrics/engine", "/metrics")]
        yield [
            Subject(
                name=self.names[0],
                spec=spec,
                texts=open_texts(self.tokenizer),
                sampler=Sampler(metrics_urls=urls if spec.protocol == "http" else (), is_local=is_local),
                info={"model": spec.model or None, "tokenizer_hash": _hash(self.tokenizer)},
            )
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSource:
    """A model folder, served with one engine and measured over each protocol."""

    folder: Path
    engine: str | None
    protocols: tuple[Protocol, ...]
    base: TargetSpec
    environment: str | None = None
    overrides: tuple[str, ...] = ()
    prefix: str = ""
    is_random: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The subjects it will give: the engine, with what tells it from the others of the run."""
        name = f"{self.prefix}{self.engine or self._config().model.id}"
        return tuple(f"{name} {protocol}" if len(self.protocols) > 1 else name for protocol in self.protocols)

    @asynccontextmanager
    async def open(self, folder: Path, on_stage: OnStage) -> AsyncIterator[list[Subject]]:
        """Serve it until the block ends; yield a subject for each protocol."""
        log = folder / f"serve-{'-'.join(self.names[0].replace('/', '_').replace(':', '_').split())}.log"
        on_stage(f"{self.names[0]}: looking at what is measured")  # weights are hashed the first time
        before, used_bytes = self._content_digest(), _gpu_used()
        on_stage(f"serving {self.names[0]}")
        async with serving(
            self.folder, self._options(), log, lambda stage: on_stage(f"{self.names[0]}: {stage}")
        ) as served:
            # The server has read the folder at some moment of a start that may take minutes.
            digest = before if before == self._content_digest() else None
            info = {"content_digest": digest, "gpu_used_before_bytes": used_bytes, "log": log.name}
            yield list(self._subjects(served, info))

    def _options(self) -> list[str]:
        # A random folder has its engine in its config.yaml.
        options = ["--engine", self.engine] if self.engine and not self.is_random else []
        options += ["--env", self.environment] if self.environment else []
        for override in self.overrides:
            options += ["--set", override]
        return options

    def _config(self) -> Config:
        config = load_config(self.folder, environment=self.environment, overrides=self.overrides)
        if self.engine and not self.is_random:
            from modelkit.engines.switching import switch_engine

            config, _ = switch_engine(config, self.engine)
        return config

    def _content_digest(self) -> str | None:
        """Return what is measured, but for the engine, which the subject names; None for what could not be uploaded."""
        if self.is_random:
            return None
        with suppress(ModelkitError):
            return content_digest(self.folder, environment=self.environment, overrides=self.overrides)
        return None

    def _subjects(self, served: Served, known: Mapping[str, Any]) -> Iterator[Subject]:
        config = self._config()
        checkpoint = _checkpoint(config, self.folder)
        content = _config_json(checkpoint)
        info = _describe(config, checkpoint, content) | {
            "ready_s": round(served.ready_s, 2),
            "warnings": list(served.warnings),
            **known,
        }
        if self.is_random:
            info["weights"] = "random"
        gpus = _gpu_names()
        for name, protocol in zip(self.names, self.protocols, strict=True):
            tokenizer = checkpoint if checkpoint and (checkpoint / "tokenizer.json").is_file() else None
            yield Subject(
                name=name,
                spec=replace(
                    self.base,
                    protocol=protocol,
                    address=served.address if protocol == "grpc" else served.http_url,
                    model=self.base.model or config.model.id,
                ),
                texts=open_texts(tokenizer),
                sampler=Sampler(metrics_urls=[f"{served.http_url}/metrics/engine"], server_pid=served.pid),
                info={**info, "tokenizer_hash": _hash(tokenizer)},
                architecture=read_architecture(content, bytes_per_weight=_weight_bytes(config))
                if content
                else None,
                gpu_name=gpus[0] if gpus else "",
                num_gpus=config.engine.tensor_parallel_size or 1 if config.engine else 1,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSource:
    """An architecture with random weights, served with one engine."""

    architecture: str
    engine: str
    protocols: tuple[Protocol, ...]
    base: TargetSpec
    max_model_len: int
    overrides: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The subjects it will give."""
        return self._source(Path()).names

    @asynccontextmanager
    async def open(self, folder: Path, on_stage: OnStage) -> AsyncIterator[list[Subject]]:
        """Write the folder, serve it, and remove it at the end: a 7B model is 15 GB."""
        from modelkit.benchmark.random_weights import read_config, write_checkpoint

        config = read_config(self.architecture)
        name = self.engine.partition(":")[0]
        async with AsyncExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelkit-bench-")))
            write_checkpoint(
                work / "checkpoint",
                config,
                weights=name not in _DUMMY_LOADERS,
                on_stage=lambda stage: on_stage(f"{self.names[0]}: {stage}"),
            )
            self._write_folder(work, name)
            yield await stack.enter_async_context(self._source(work).open(folder, on_stage))

    def _source(self, work: Path) -> FolderSource:
        return FolderSource(
            folder=work,
            engine=self.engine,
            protocols=self.protocols,
            base=self.base,
            overrides=self.overrides,
            prefix=f"{_short_name(self.architecture)} ",
            is_random=True,
        )

    def _write_folder(self, work: Path, name: str) -> None:
        engine: dict[str, Any] = {"name": name, "max_model_len": self.max_model_len}
        args = {"load-format": "dummy"} if name in _DUMMY_LOADERS else {}
        if backend := self.engine.partition(":")[2]:
            args["backend"] = backend
        if args:
            engine["args"] = args
        config = {
            "model": {"id": _short_name(self.architecture)},
            "engine": engine,
            "checkpoints": {"type": "local", "path": "checkpoint"},
            "server": {"max_concurrency": 1024, "max_queue": 1024},
        }
        (work / "config.yaml").write_text(json.dumps(config, indent=2), encoding="utf-8")
        (work / "model.py").write_text(
            "from modelkit import LLM\n\n\nclass Random(LLM):\n    pass\n", encoding="utf-8"
        )


Source = ServerSource | FolderSource | RandomSource


def names_by_folder(sources: Sequence[Source]) -> dict[Path, set[str]]:
    """Return the names of what is measured of each model folder, the folders in their order."""
    found: dict[Path, set[str]] = {}
    for source in sources:
        if isinstance(source, FolderSource):
            found.setdefault(source.folder, set()).update(source.names)
    return found


def server_spec(target: str, base: TargetSpec) -> TargetSpec:
    """Return the spec of a server by what a person writes: http://... is OpenAI's API, anything else modelkit's gRPC."""
    if target.startswith(("http://", "https://")):
        return replace(base, protocol="http", address=target.rstrip("/"))
    return replace(base, protocol="grpc", address=target.removeprefix("grpc://"))


def is_folder(target: str) -> bool:
    """Whether a target is a model folder on this machine (or its config.yaml)."""
    return "://" not in target and Path(target).exists()


def model_dir(target: str) -> Path:
    """Return the folder of a target that is one. Raises ConfigError where it has no config.yaml."""
    load_config(Path(target))
    return find_config(Path(target)).parent


def engine_names(engines: str | None) -> Sequence[str]:
    """Read --engines A,B,...; each once. Raises UsageError."""
    names = [name.strip() for name in (engines or "").split(",") if name.strip()]
    if engines is not None and (not names or len(set(names)) < len(names)):
        raise UsageError(
            f"--engines {engines}: name each engine once",
            cure="such as --engines vllm,sglang,lmdeploy:pytorch",
        )
    return names


def _describe(config: Config, checkpoint: Path | None, content: Mapping[str, Any]) -> dict[str, Any]:
    engine = config.engine
    info: dict[str, Any] = {
        "model": config.model.id,
        "architecture": (content.get("architectures") or [None])[0],
        "config_hash": config_hash(content) if content else None,
        "revision": _revision(config),
        "weights": "checkpoint" if checkpoint else None,
        "engine": engine.name if engine else None,
    }
    if engine is not None:
        info |= {
            "engine_version": _engine_version(config),
            "engine_args": engine.model_dump(mode="json", exclude_defaults=True, exclude={"name", "python"}),
            "dtype": content.get("torch_dtype") or content.get("dtype")
            if engine.dtype == "auto"
            else engine.dtype,
            "tensor_parallel_size": engine.tensor_parallel_size or 1,
        }
    return info


def _engine_version(config: Config) -> str | None:
    from modelkit.engines.environments import installed_version

    assert config.engine is not None
    return installed_version(config.engine.name, config.engine)


def _revision(config: Config) -> str | None:
    return config.checkpoints.revision if config.checkpoints else None


def _checkpoint(config: Config, folder: Path) -> Path | None:
    if config.checkpoints is None:
        return None
    from modelkit.checkpoints.lock import DEFAULT_NAME
    from modelkit.checkpoints.resolve import Terms, prepare

    # The server, which runs already, has written modelkit.lock where the settings allow it.
    return prepare(config, folder, Terms(writes_lock=False))[DEFAULT_NAME]


def _config_json(checkpoint: Path | None) -> dict[str, Any]:
    if checkpoint is None:
        return {}
    with suppress(OSError, ValueError):
        content: dict[str, Any] = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        return content
    return {}


def _weight_bytes(config: Config) -> float:
    """Return the bytes of a weight: two, unless the folder asks for less or more."""
    engine = config.engine
    if engine is None:
        return 2.0
    if engine.quantization:
        return 0.5 if any(four in engine.quantization for four in ("awq", "gptq", "int4", "w4")) else 1.0
    return 4.0 if engine.dtype == "float32" else 2.0


def _gpu_names() -> list[str]:
    from modelkit.engines.machine import nvidia_gpus

    return [gpu.name for gpu in nvidia_gpus()]


def _gpu_used() -> int | None:
    """Return the memory that others have in use on the GPUs; None without a GPU."""
    from modelkit.engines.machine import nvidia_gpus

    gpus = nvidia_gpus()
    return sum(gpu.used_bytes for gpu in gpus) if gpus else None


def _hash(tokenizer: Path | None) -> str | None:
    if tokenizer is None:
        return None
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UsageError(
            f"cannot read {os.fspath(file)}: {error.strerror}",
            cure="name a tokenizer.json, or a folder that has one",
        ) from error


def _short_name(architecture: str) -> str:
    """Return the architecture's name; of a config.json that of its folder."""
    path = Path(architecture)
    return path.parent.name or path.stem if path.suffix == ".json" else path.name
