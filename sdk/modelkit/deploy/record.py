"""What is deployed, as the compute itself remembers it: the specification now, and those before it.

A compute keeps the record beside what it runs (an annotation, a label, an argument), so that whoever reaches the
compute can see, scale and roll back a deployment, from any machine. It holds names of secrets, never values.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from modelkit.checkpoints.lock import named_checkpoints
from modelkit.config import Config

__all__ = ["MAX_HISTORY", "DeploymentSpec", "Record", "Variables", "without_scaling", "without_secrets"]

MAX_HISTORY = 10

_MIN_SECRET_CHARACTERS = 8
_SCALING = "deployment"  # the section of config.yaml that no replica needs to know


@dataclass(frozen=True, slots=True)
class Variables:
    """The names of environment variables that a replica needs: it fails without the `needed` ones."""

    needed: tuple[str, ...]
    optional: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """All of them."""
        return self.needed + self.optional


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSpec:
    """The desired state of a deployment.

    `name` is a DNS label. `version` is what people call it ("v3", or "dev-1a2b3c4d" for a folder), `digest` what it is:
    of the version's index, or of the package and its settings. `config` is the checked config.yaml as JSON, everything
    laid over it included. `artifact` is how the compute gets it (an image by digest, a package's address); empty until
    it was delivered. `environment` and `overrides` are the --env and --set that were laid over config.yaml.
    """

    name: str
    model_id: str
    version: str
    digest: str
    config: Mapping[str, Any]
    environment: str | None = None
    overrides: tuple[str, ...] = ()
    artifact: str = ""
    api_key_env: str | None = None

    def parsed_config(self) -> Config:
        """Return the config as the models of `modelkit.config`, with all defaults."""
        return Config.model_validate_json(json.dumps(self.config))

    def delivered(self, artifact: str) -> "DeploymentSpec":
        """Return the same with the place its compute gets it from."""
        return replace(self, artifact=artifact)

    def scaled(self, min_replicas: int, max_replicas: int) -> "DeploymentSpec":
        """Return the same with other bounds."""
        bounds = {"min_replicas": min_replicas, "max_replicas": max_replicas}
        scaling = {**(self.config.get(_SCALING) or {}), **bounds}
        return replace(self, config={**self.config, _SCALING: scaling})

    def of_replica(self) -> "DeploymentSpec":
        """Return what a replica is made of: the same for specifications that differ in how many there are of them.

        It is what has to be compared to tell whether replicas have to be replaced.
        """
        config = {key: value for key, value in self.config.items() if key != _SCALING}
        return replace(self, config=config, overrides=without_scaling(self.overrides))

    def serve_options(self) -> list[tuple[str, str]]:
        """Return what a replica's `modelkit serve` has to be told of the settings, as options with their values."""
        options = [("--env", self.environment)] if self.environment else []
        return options + [("--set", override) for override in without_scaling(self.overrides)]

    def variables(self) -> Variables:
        """Return the variables that a replica needs: secrets and the API key; tokens of its weights and its engine."""
        config = self.parsed_config()
        needed = [secret.env_var for secret in config.secrets]
        needed += [self.api_key_env] if self.api_key_env else []
        optional = [each.token_env for each in named_checkpoints(config.checkpoints).values()]
        optional += [config.engine.api_key_env] if config.engine is not None else []
        names = dict.fromkeys(name for name in optional if name and name not in needed)
        return Variables(tuple(dict.fromkeys(needed)), tuple(names))

    def masked(self, text: str) -> str:
        """Return a text, such as a line of a replica's log, without the values of the secrets that are known here."""
        return without_secrets(text, [os.environ.get(name, "") for name in self.variables().all])


def without_secrets(text: str, values: Iterable[str]) -> str:
    """Return a text with *** for each of these values, but for those so short that they would be found by chance."""
    for value in sorted(set(values), key=len, reverse=True):
        if len(value) >= _MIN_SECRET_CHARACTERS:
            text = text.replace(value, "***")
    return text


def without_scaling(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the settings (--set) that are not about how many replicas there are."""
    return tuple(each for each in overrides if not each.startswith(f"{_SCALING}."))


@dataclass(frozen=True, slots=True)
class Record:
    """A specification with the earlier ones, newest first, at most MAX_HISTORY of them."""

    spec: DeploymentSpec
    history: tuple[DeploymentSpec, ...] = ()

    @property
    def is_readable(self) -> bool:
        """Whether this modelkit knows what is deployed; where not, a newer one may."""
        return bool(self.spec.digest)

    def scaled(self, min_replicas: int, max_replicas: int) -> "Record":
        """Return the record with other bounds; its history stays."""
        return Record(self.spec.scaled(min_replicas, max_replicas), self.history)

    def followed_by(self, spec: DeploymentSpec) -> "Record":
        """Return the record once `spec` is in place; a version appears in it once, where it was last."""
        if spec == self.spec:
            return self
        earlier = [self.spec, *self.history]
        kept = [old for old in earlier if (old.version, old.digest) != (spec.version, spec.digest)]
        return Record(spec, tuple(kept[:MAX_HISTORY]))

    def find(self, version: str) -> DeploymentSpec | None:
        """Return an earlier specification by its version or the beginning of its digest."""
        for spec in self.history:
            if version in {spec.version, spec.digest} or spec.digest.removeprefix("sha256:").startswith(
                version
            ):
                return spec
        return None

    def to_json(self) -> str:
        """Return the record as one line of JSON, the same for the same record."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Return the record that `to_json` wrote, whatever a newer modelkit has added to it. Raises ValueError."""
        try:
            content = json.loads(text)
            return cls(_spec(content["spec"]), tuple(_spec(each) for each in content["history"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no record of a deployment: {error}") from error

    @classmethod
    def read(cls, text: str, name: str) -> "Record":
        """Return a record as `from_json` does; for one that cannot be read, one that says no more than the name."""
        try:
            return cls.from_json(text)
        except ValueError:
            return cls.unreadable(name)

    @classmethod
    def unreadable(cls, name: str) -> "Record":
        """Return what stands for a record that cannot be read: it can be listed and stopped, and not more."""
        return cls(
            DeploymentSpec(name=name, model_id="", version="?", digest="", config={"model": {"id": name}})
        )


def _spec(content: dict[str, Any]) -> DeploymentSpec:
    known = {field.name for field in fields(DeploymentSpec)}
    kept = {key: value for key, value in content.items() if key in known}
    return DeploymentSpec(**{**kept, "overrides": tuple(kept.get("overrides") or ())})
