"""modelkit.lock: what config.yaml's checkpoints, engine and image were resolved to, file by file.

The file lies beside config.yaml and is meant to be committed. It is stable: the same pins give the same bytes. Whatever
serves, builds or uploads a folder follows it; only `modelkit lock` moves it on.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from modelkit.checkpoints.base import SourceFile, checked_path
from modelkit.config import CheckpointConfig, CheckpointSourceConfig, Config
from modelkit.engines.catalog import ENGINES, base_image
from modelkit.errors import ConfigError, LoadError, Problem

__all__ = [
    "DEFAULT_NAME",
    "LOCK_NAME",
    "EnginePin",
    "Lock",
    "LockedCheckpoint",
    "LockedFile",
    "named_checkpoints",
]

LOCK_NAME = "modelkit.lock"
LOCK_VERSION: Literal[1] = 1

# What the checkpoint is called that `checkpoints` itself describes.
DEFAULT_NAME = "default"

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    """Base of what the lock is made of: frozen, and closed to unknown keys, so that a damaged file is noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LockedFile(_Part):
    """One file of a checkpoint."""

    path: str
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: _Sha256

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        try:
            return checked_path(path, LOCK_NAME)
        except LoadError as error:
            raise ValueError(error.message) from None

    def as_source_file(self) -> SourceFile:
        """Return it as sources know it."""
        return SourceFile(path=self.path, size_bytes=self.size_bytes, sha256=self.sha256)


class LockedCheckpoint(_Part):
    """What a checkpoint was asked for with (as config.yaml has it), and what that came to."""

    type: Literal["huggingface", "s3", "oci", "local", "http"]
    repo_id: str | None = None
    path: str | None = None
    urls: Mapping[str, str] | None = None
    revision: str | None = None
    allowed_file_patterns: tuple[str, ...] = Field(default=(), strict=False)
    ignored_file_patterns: tuple[str, ...] = Field(default=(), strict=False)
    allow_pickle: tuple[str, ...] = Field(default=(), strict=False)
    commit: str | None = None
    files: tuple[LockedFile, ...] = Field(strict=False)

    @classmethod
    def of(cls, config: CheckpointSourceConfig, commit: str | None, files: tuple[LockedFile, ...]) -> Self:
        """Return the pins of a checkpoint as config.yaml describes it."""
        return cls(**_wanted(config), commit=commit, files=tuple(sorted(files, key=lambda file: file.path)))

    @property
    def size_bytes(self) -> int:
        """How much all files take together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def where(self) -> str:
        """Where it comes from, for people."""
        return self.repo_id or self.path or min((self.urls or {}).values(), default=self.type)

    @property
    def identity(self) -> str:
        """A hash of all of this: what is pinned alike is the same checkpoint."""
        content = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def differences(self, config: CheckpointSourceConfig) -> Iterator[str]:
        """Yield what config.yaml asks for now and these pins were not made for: "repo_id is a, and was b"."""
        for key, value in _wanted(config).items():
            pinned = getattr(self, key)
            if pinned != value:
                yield f"{key} is {_shown(value)}, and was {_shown(pinned)} when it was locked"
        given = {file.name: file.sha256 for file in config.files}
        for file in self.files:
            if file.sha256 != given.get(file.path, file.sha256):
                yield f"files has another sha256 for {file.path} than was locked"


class EnginePin(_Part):
    """The engine that the folder was locked with; no version where requirements.txt decides on it."""

    name: str
    version: str | None = None


class Lock(_Part):
    """The whole of modelkit.lock."""

    lock_version: Literal[1] = LOCK_VERSION
    checkpoints: Mapping[str, LockedCheckpoint] = Field(default_factory=dict)
    engine: EnginePin | None = None
    image: str | None = None

    @classmethod
    def of(cls, config: Config, checkpoints: Mapping[str, LockedCheckpoint]) -> Self:
        """Return the lock of a folder whose checkpoints have been resolved."""
        return cls(checkpoints=dict(checkpoints), engine=_engine_pin(config), image=base_image(config))

    @classmethod
    def read(cls, model_dir: Path) -> Self | None:
        """Return the lock of a model folder, None where it has none. Raises ConfigError where it cannot be understood."""
        file = model_dir / LOCK_NAME
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise _unreadable(file, str(getattr(error, "strerror", None) or error)) from error
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            if (version := _version_of(text)) > LOCK_VERSION:
                cure = "update modelkit: pip install --upgrade modelkit-sdk"
                raise _unreadable(file, f"it is of version {version}, by a newer modelkit", cure) from error
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise _unreadable(file, f"{place}: {first['msg']}" if place else first["msg"]) from error

    def to_text(self) -> str:
        """Return the file's text: sorted, so that the same pins are the same bytes."""
        return json.dumps(_without_defaults(self.model_dump(mode="json")), indent=2, sort_keys=True) + "\n"

    def write(self, model_dir: Path) -> bool:
        """Write the file in one step and return whether that changed it. Raises LoadError where it cannot be written."""
        file, text = model_dir / LOCK_NAME, self.to_text()
        try:
            if file.is_file() and file.read_text(encoding="utf-8", errors="replace") == text:
                return False
            draft = file.with_name(f".{LOCK_NAME}.{os.getpid()}")
            try:
                draft.write_text(text, encoding="utf-8")
                draft.replace(file)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise LoadError(
                f"{file} cannot be written: {error.strerror}", cure="make the model folder writable"
            ) from error
        return True

    def check(self, config: Config) -> list[str]:
        """Return each difference between config.yaml and this lock; nothing is asked of the network.

        Engine and image count too: a lock made for another version of the engine is not the one that will run.
        """
        found = self.check_checkpoints(config)
        for label, now, then in (
            ("the engine", _engine_pin(config), self.engine),
            ("the base image", base_image(config), self.image),
        ):
            if now != then:
                found.append(f"{label} is {_shown(now)}, and was {_shown(then)} when it was locked")
        return found

    def check_checkpoints(
        self, config: Config, is_needed: Callable[[CheckpointSourceConfig], bool] = lambda _: True
    ) -> list[str]:
        """Return the differences that decide which files are used; the pins of one that not `is_needed` decide nothing."""
        wanted = named_checkpoints(config.checkpoints)
        found = [
            f"the checkpoint '{name}' is not locked"
            for name, checkpoint in wanted.items()
            if name not in self.checkpoints and is_needed(checkpoint)
        ]
        found += [
            f"the checkpoint '{name}' is locked, and config.yaml has none of that name"
            for name in self.checkpoints
            if name not in wanted
        ]
        for name, checkpoint in wanted.items():
            if name in self.checkpoints and is_needed(checkpoint):
                label = "checkpoints" if name == DEFAULT_NAME else f"checkpoints.additional.{name}"
                found += [f"{label}.{each}" for each in self.checkpoints[name].differences(checkpoint)]
        return found


def named_checkpoints(config: CheckpointConfig | None) -> dict[str, CheckpointSourceConfig]:
    """Return every checkpoint of a model by its name, the one of `checkpoints` itself first."""
    return {} if config is None else {DEFAULT_NAME: config, **config.additional}


def _wanted(config: CheckpointSourceConfig) -> dict[str, Any]:
    """Return what decides which files a checkpoint has, as the lock spells it."""
    urls = {file.name: file.url for file in sorted(config.files, key=lambda file: file.name)} or None
    revision = (config.revision or "main") if config.type == "huggingface" else config.revision
    return {
        "type": config.type,
        "repo_id": config.repo_id,
        "path": config.path,
        "urls": urls,
        "revision": revision,
        "allowed_file_patterns": config.allowed_file_patterns,
        "ignored_file_patterns": config.ignored_file_patterns,
        "allow_pickle": config.allow_pickle,
    }


def _engine_pin(config: Config) -> EnginePin | None:
    if config.engine is None:
        return None
    info = ENGINES[config.engine.name]
    # The build for GPUs, whatever this machine has: a lock that depends on who wrote it pins nothing.
    build = info.builds.get("gpu")
    version = config.engine.version or (build.version if build is not None else None)
    return EnginePin(name=config.engine.name, version=version)


def _shown(value: object) -> str:
    if isinstance(value, EnginePin):
        return " ".join(filter(None, (value.name, value.version)))
    if isinstance(value, Mapping):
        return f"{len(value)} URLs"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "not given" if value is None else f"'{value}'"


def _without_defaults(value: Any) -> Any:
    """Leave out what says nothing, so that a lock shows what there is."""
    if isinstance(value, dict):
        return {key: _without_defaults(below) for key, below in value.items() if below not in (None, [], {})}
    return [_without_defaults(item) for item in value] if isinstance(value, list) else value


def _version_of(text: str) -> int:
    """Return the version that a lock says it has, 0 where it does not say."""
    try:
        version = json.loads(text)["lock_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
    return version if isinstance(version, int) else 0


def _unreadable(
    file: Path,
    reason: str,
    cure: str = "make it anew with `modelkit lock --update`; it is not meant to be edited",
) -> ConfigError:
    return ConfigError([Problem(f"{LOCK_NAME} cannot be read: {reason}", cure, path=file)])
