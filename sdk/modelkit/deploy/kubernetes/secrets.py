"""Where a replica's secrets are: in the cluster's Secret objects, by name; a value never passes through modelkit.

A variable NAME is the key NAME of a Secret called as `secrets[].id` says, else as the variable in small letters:
HF_TOKEN is in hf-token.
"""

import re
from dataclasses import dataclass
from typing import Any

from modelkit.deploy.record import DeploymentSpec

__all__ = ["REGISTRY_SECRET", "SecretRef", "create_command", "secret_refs"]

# A Secret of type kubernetes.io/dockerconfigjson, for images and weights of a registry that asks who one is.
REGISTRY_SECRET = "modelkit-registry"  # noqa: S105 - a name


@dataclass(frozen=True, slots=True)
class SecretRef:
    """An environment variable and the Secret that has its value under the same name; a replica may lack a token."""

    variable: str
    secret: str
    is_optional: bool = False

    def as_env(self) -> dict[str, Any]:
        """Return it as a container has it."""
        reference: dict[str, Any] = {"name": self.secret, "key": self.variable}
        if self.is_optional:
            reference["optional"] = True
        return {"name": self.variable, "valueFrom": {"secretKeyRef": reference}}


def secret_refs(spec: DeploymentSpec) -> list[SecretRef]:
    """Return every secret of a replica, each once: the model's own, the API key, tokens."""
    named = {secret.env_var: secret.id for secret in spec.parsed_config().secrets}
    variables = spec.variables()
    return [
        SecretRef(name, secret_name(named.get(name) or name), is_optional=name in variables.optional)
        for name in variables.all
    ]


def secret_name(text: str) -> str:
    """Return a name as Kubernetes takes it: small letters, digits, '-' and '.'."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


def create_command(reference: SecretRef, namespace: str) -> str:
    """Return the command that makes a Secret of a variable of this shell, without its value in a list of processes."""
    return (
        f'printf %s "${reference.variable}" | kubectl --namespace {namespace} create secret generic '
        f"{reference.secret} --from-file={reference.variable}=/dev/stdin"
    )
