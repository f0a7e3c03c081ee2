"""What is deployed, as the compute itself remembers it: the specification now, and those before it.

A compute keeps the record beside what it runs (an annotation, a label, an argument), so that whoever reaches the
compute can see, scale and roll back a deployment, from any machine. It holds names of secrets, never values.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from modelkit.config import Config

__all__ = ["MAX_HISTORY", "DeploymentSpec", "Record"]

MAX_HISTORY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSpec:
    """The desired state of a deployment.

    `name` is a DNS label. `version` is what people call it ("v3", or "dev-1a2b3c4d" for a folder), `digest` what it is:
    of the version's index, or of the package and its settings. `config` is the checked config.yaml as JSON, everything
    laid over it included. `artifact` is how the compute gets it (an image by digest, a package's address); empty until
    it was delivered. `environment` and `overrides` are the --env and --set that the replica has to repeat.
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


@dataclass(frozen=True, slots=True)
class Record:
    """A specification with the earlier ones, newest first, at most MAX_HISTORY of them."""

    spec: DeploymentSpec
    history: tuple[DeploymentSpec, ...] = ()

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
        """Return the record that `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        content = json.loads(text)
        return cls(_spec(content["spec"]), tuple(_spec(each) for each in content["history"]))


def _spec(content: dict[str, Any]) -> DeploymentSpec:
    return DeploymentSpec(**{**content, "overrides": tuple(content.get("overrides") or ())})
