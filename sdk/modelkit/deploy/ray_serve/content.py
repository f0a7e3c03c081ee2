"""What a replica runs, on its node: a package from the cluster's own store, or a version from a registry.

A package is small (the code of a model, never its weights) and lies in the store of Ray's head under a name with its
hash. It is read there by the replica itself: as a `working_dir` of Ray's it would be deleted with the last replica that
used it, and a deployment at zero could never start again.
"""

import hashlib
import io
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from modelkit.checkpoints.cache import cache_dir
from modelkit.checkpoints.lock import DEFAULT_NAME, named_checkpoints
from modelkit.config import Config, load_config
from modelkit.deploy.record import DeploymentSpec
from modelkit.errors import LoadError
from modelkit.package import unpack

__all__ = ["Content", "open_content", "package_uri", "split_package"]

# gcs://modelkit-<sha256>.zip#/home/ada/chat: what follows '#' is the folder, on this machine, that it was made of.
_PACKAGE: Final = re.compile(r"(?P<uri>gcs://modelkit-(?P<sha256>[0-9a-f]{64})\.zip)(?:#(?P<folder>/.*))?")
_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Content:
    """A model folder on this node with its config, and the checkpoints that came with it."""

    folder: Path
    config: Config
    checkpoints: dict[str, Path] = field(default_factory=dict)


def package_uri(data: bytes, folder: Path | None = None) -> str:
    """Return the address of a package: the same for the same content. `folder` has its local checkpoints."""
    uri = f"gcs://modelkit-{hashlib.sha256(data).hexdigest()}.zip"
    return uri if folder is None else f"{uri}#{folder}"


def split_package(artifact: str) -> tuple[str, Path | None] | None:
    """Return a package's address and the folder that it names; None for an artifact of another kind."""
    found = _PACKAGE.fullmatch(artifact)
    if found is None:
        return None
    return found["uri"], Path(found["folder"]) if found["folder"] else None


def open_content(spec: DeploymentSpec) -> Content:
    """Bring a deployment's content onto this node, where it is not there already. Raises LoadError, RegistryError."""
    package = split_package(spec.artifact)
    if package is None:
        return _open_version(spec)
    uri, source = package
    folder = _unpacked(uri)
    config = spec.parsed_config()
    if source is None:
        return Content(folder, config)
    return Content(folder, _with_absolute_paths(config, source))


def _open_version(spec: DeploymentSpec) -> Content:
    from modelkit.versions.local import materialize

    pulled = materialize(spec.artifact)
    overrides = [*pulled.overrides, *spec.overrides]
    return Content(
        pulled.folder, load_config(pulled.folder, environment=spec.environment, overrides=overrides)
    )


def _with_absolute_paths(config: Config, source: Path) -> Config:
    """Return the config with its local checkpoints where they were when it was deployed."""
    assert config.checkpoints is not None
    document = config.model_dump(mode="json")
    for name, checkpoint in named_checkpoints(config.checkpoints).items():
        if checkpoint.type == "local" and checkpoint.path:
            section = document["checkpoints"]
            section = section if name == DEFAULT_NAME else section["additional"][name]
            section["path"] = str((source / Path(checkpoint.path).expanduser()).resolve())
    return Config.model_validate(document)


def _unpacked(uri: str) -> Path:
    """Return the folder with a package's files, made in one step, so that replicas that start together share it."""
    sha256 = uri.removeprefix("gcs://modelkit-").removesuffix(".zip")
    folder = cache_dir() / "packages" / sha256
    if folder.is_dir():
        return folder
    data = _read_package(uri)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise LoadError(f"the cluster's copy of {uri} is damaged", cure="deploy the model again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{sha256[:12]}-", dir=folder.parent))
    unpack(iter(io.BytesIO(data).read, b""), draft)
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another replica was faster
            raise
        import shutil

        shutil.rmtree(draft)
    return folder


def _read_package(uri: str) -> bytes:
    import ray.experimental.internal_kv as store

    read: Any = store._internal_kv_get  # noqa: SLF001 - where Ray's packages are; its own API deletes those it has unpacked
    data = read(uri)
    if data is None:
        raise LoadError(
            f"the cluster has lost {uri}: its head has been started anew since the model was deployed",
            cure="deploy the model again; a registry (`modelkit compute add ... --registry`) outlives the cluster",
        )
    return bytes(data)
