"""How a replica gets secrets: from its node's environment, or from files that the cluster's operator has put there.

They never go through Ray, whose dashboard shows every argument and environment variable of an application.
"""

import os
from pathlib import Path

from modelkit.deploy.record import Variables

__all__ = ["SECRETS_DIR_ENV", "find_secret", "give_secrets"]

# A folder with one file per secret, named like the variable: what Kubernetes and systemd mount.
SECRETS_DIR_ENV = "MODELKIT_SECRETS_DIR"


def find_secret(name: str) -> str | None:
    """Return a secret's value by the name of its variable, None where this node has none.

    A file goes before the environment, which is as old as the node: a key that was changed is in the file.
    """
    folder = os.environ.get(SECRETS_DIR_ENV)
    value = _read(Path(folder, name)) if folder else None
    return value or os.environ.get(name) or None


def give_secrets(variables: Variables) -> list[str]:
    """Put every secret that a replica needs into this process's environment; return the needed ones that the node lacks."""
    found = {name: value for name in variables.all if (value := find_secret(name))}
    os.environ.update(found)
    return [name for name in variables.needed if name not in found]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
