"""How a replica gets secrets: from its node's environment, or from files that the cluster's operator has put there.

They never go through Ray, whose dashboard shows every argument and environment variable of an application.
"""

import os
from pathlib import Path

from modelkit.checkpoints.lock import named_checkpoints
from modelkit.config import Config

__all__ = ["SECRETS_DIR_ENV", "find_secret", "give_secrets", "secret_names"]

# A folder with one file per secret, named like the variable: what Kubernetes and systemd mount.
SECRETS_DIR_ENV = "MODELKIT_SECRETS_DIR"


def find_secret(name: str) -> str | None:
    """Return a secret's value by the name of its variable, None where this node has none."""
    value = os.environ.get(name)
    folder = os.environ.get(SECRETS_DIR_ENV)
    if not value and folder:
        try:
            value = Path(folder, name).read_text(encoding="utf-8").strip()
        except OSError:
            return None
    return value or None


def give_secrets(config: Config) -> list[str]:
    """Put every secret that the config names into this process's environment; return those that the node lacks."""
    missing = []
    for name in secret_names(config):
        value = find_secret(name)
        if value is None:
            missing.append(name)
        else:
            os.environ[name] = value
    return missing


def secret_names(config: Config) -> list[str]:
    """Return the variables of all secrets that a replica needs by its config, each once."""
    names = [secret.env_var for secret in config.secrets]
    names += [each.token_env for each in named_checkpoints(config.checkpoints).values() if each.token_env]
    if config.engine is not None and config.engine.api_key_env:
        names.append(config.engine.api_key_env)
    return list(dict.fromkeys(names))
