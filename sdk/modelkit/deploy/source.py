"""From what a person names, a model folder or a version, to the specification of its deployment."""

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelkit.config import load_config
from modelkit.deploy.base import Origin
from modelkit.deploy.record import DeploymentSpec, without_scaling
from modelkit.errors import Problem, RegistryError, UsageError
from modelkit.package import read_member
from modelkit.registry import LayoutReference, Reference
from modelkit.registry.content import verified
from modelkit.versions.folder import read_folder
from modelkit.versions.local import looks_like_reference
from modelkit.versions.names import open_version, version_reference
from modelkit.versions.upload import version_numbers
from modelkit.versions.version import Version

__all__ = ["Target", "Wishes", "deployment_name", "read_target"]

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,51}[a-z0-9])?")  # room for what the computes add to it
_SHORT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the command line lays over a folder or a version. `name` of None means the model's id."""

    name: str | None = None
    environment: str | None = None
    overrides: tuple[str, ...] = ()
    api_key_env: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be deployed: the specification, where its content is now, and what is doubtful in it."""

    spec: DeploymentSpec
    origin: Origin
    warnings: tuple[Problem, ...] = ()


def read_target(target: str, wishes: Wishes) -> Target:
    """Read a model folder or a version. Raises ConfigError, RegistryError, UsageError; nothing is sent or changed."""
    if looks_like_reference(target):
        return _read_version(target, wishes)
    return _read_folder(Path(target), wishes)


def deployment_name(model_id: str) -> str:
    """Return what a model's deployment is called by default: its id as a DNS label."""
    return re.sub(r"[^a-z0-9]+", "-", model_id.lower()).strip("-")[:53].rstrip("-")


def _read_folder(path: Path, wishes: Wishes) -> Target:
    folder = read_folder(path, environment=wishes.environment, overrides=wishes.overrides)
    content = folder.content
    # The same model with other bounds is no other version.
    settings = [content.environment, list(without_scaling(content.overrides))]
    identity = json.dumps([content.package.digest, *settings])
    digest = f"sha256:{hashlib.sha256(identity.encode()).hexdigest()}"
    spec = _spec(
        wishes,
        model_id=content.model_id,
        version=f"dev-{_short(digest)}",
        digest=digest,
        config=dict(content.config),
        environment=content.environment,
        overrides=content.overrides,
    )
    return Target(spec, Origin(folder=folder.path.resolve()), folder.warnings)


def _read_version(text: str, wishes: Wishes) -> Target:
    reference = version_reference(text)
    with open_version(reference) as version:
        environment, settings = version.settings
        overrides = (*settings, *wishes.overrides)
        environment = wishes.environment or environment
        config = version.config
        if (environment, overrides) != version.settings:
            config = _laid_over(version, environment, overrides)
        digest = version.index.digest
        spec = _spec(
            wishes,
            model_id=version.model_id,
            version=_number(version, reference),
            digest=digest,
            config=config,
            environment=environment,
            overrides=overrides,
        )
    return Target(spec, Origin(reference=_pinned(reference, digest)))


def _pinned(reference: Reference | LayoutReference, digest: str) -> str:
    """Return the reference without its tag, which may move."""
    return str(reference.at(digest=digest))


def _number(version: Version, reference: Reference | LayoutReference) -> str:
    """Return the number that a version was given, whatever tag or digest it was asked by; else that tag."""
    digest = version.index.digest
    for number in reversed(version_numbers(version.store)):
        found = version.store.find_manifest(f"v{number}")
        if found is not None and found.digest == digest:
            return f"v{number}"
    return reference.tag or _short(digest)


def _laid_over(version: Version, environment: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the config of a version with other settings than it was uploaded with; nothing but its config is read."""
    names = ["config.yaml", *([f"config.{environment}.yaml"] if environment else [])]
    with tempfile.TemporaryDirectory(prefix="modelkit-") as folder:
        for name in names:
            content = read_member(verified(version.store.read_blob(version.bundle), version.bundle), name)
            if content is None:
                raise RegistryError(
                    f"the package of the version has no {name}",
                    cure="leave --env out, or upload it with the file",
                )
            (Path(folder) / name).write_bytes(content)
        config = load_config(Path(folder), environment=environment, overrides=overrides)
    return config.model_dump(mode="json")


def _spec(wishes: Wishes, **fields: Any) -> DeploymentSpec:
    name = wishes.name or deployment_name(fields["model_id"])
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be the name of a deployment",
            cure="use lower-case letters, digits and '-', at most 53, a letter first: --name chat",
        )
    return DeploymentSpec(name=name, api_key_env=wishes.api_key_env, **fields)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:_SHORT]
