"""The computes a person has added: one file in the user's config directory, read by the client and by every verb.

It holds addresses and the names of environment variables, never a token. Only its owner can read it.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from modelkit.errors import UsageError, closest

__all__ = [
    "LOCAL_RAY",
    "Compute",
    "ComputeKind",
    "add_compute",
    "computes_path",
    "find_compute",
    "list_computes",
    "remove_compute",
]

ComputeKind = Literal["ray", "kubernetes", "docker"]

# The private Ray of this machine: started by the first deployment to it, ended by `modelkit compute remove`.
LOCAL_RAY = "local-ray"

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ENV_VAR = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """A place where deployments run, and how it is reached.

    `address` is, by kind: the URL of Ray's dashboard (http://head:8265); a Kubernetes context of the kubeconfig; a
    Docker host (ssh://user@host, tcp://host:2376, unix:///var/run/docker.sock).
    """

    name: str
    kind: ComputeKind
    address: str
    token_env: str | None = None  # the variable with the token for its own API
    api_key_env: str | None = None  # the variable with the key that the models ask their callers for
    ca_path: str | None = None  # PEM, trusted for its API
    registry: str | None = (
        None  # where folders are uploaded to before they are deployed: registry.example.com/team
    )
    endpoint: str | None = None  # where callers reach the models, when the compute cannot say: host:port
    namespace: str | None = None  # kubernetes
    kubeconfig: str | None = None  # kubernetes; default: KUBECONFIG, else ~/.kube/config
    flavor: str | None = None  # kubernetes: what runs serverless deployments
    cache_volume: str | None = None  # kubernetes: a PersistentVolumeClaim that keeps weights between replicas

    def token(self) -> str | None:
        """Return the token for the compute's API, None where none is needed. Raises UsageError where it is not set."""
        if self.token_env is None:
            return None
        value = os.environ.get(self.token_env, "").strip()
        if not value:
            raise UsageError(
                f"compute {self.name} needs a token, and the environment variable {self.token_env} is not set",
                cure=f"export {self.token_env}=...",
            )
        return value


def computes_path() -> Path:
    """Return the file: computes.json in MODELKIT_CONFIG_DIR, else in the user's config directory."""
    own = os.environ.get("MODELKIT_CONFIG_DIR")
    if own:
        return Path(own).expanduser() / "computes.json"
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "modelkit" / "computes.json"


def list_computes() -> list[Compute]:
    """Return all computes by name. Raises UsageError for a file that cannot be read."""
    return sorted(_read().values(), key=lambda compute: compute.name)


def find_compute(name: str) -> Compute:
    """Return a compute by name. Raises UsageError where there is none, with the nearest one."""
    computes = _read()
    if name in computes:
        return computes[name]
    guess = closest(name, list(computes))
    if guess:
        cure = f"did you mean {guess}? `modelkit compute list` shows all"
    else:
        cure = f"`modelkit compute add {name} --kind ray|kubernetes|docker --address ...`; for a try: --compute {LOCAL_RAY}"
    raise UsageError(f"there is no compute '{name}'", cure=cure)


def add_compute(compute: Compute, *, replace: bool = False) -> None:
    """Keep a compute. Raises UsageError for one that cannot be, and for a name that is taken unless `replace`."""
    _check(compute)
    with _changing() as computes:
        if compute.name in computes and not replace:
            raise UsageError(
                f"there is a compute '{compute.name}' already",
                cure=f"take another name, or change that one with `modelkit compute add {compute.name} --replace ...`",
            )
        computes[compute.name] = compute


def remove_compute(name: str) -> Compute:
    """Forget a compute and return it; what runs there runs on. Raises UsageError where there is none."""
    compute = find_compute(name)
    with _changing() as computes:
        computes.pop(name, None)
    return compute


def _check(compute: Compute) -> None:
    if not _NAME.fullmatch(compute.name):
        raise UsageError(
            f"'{compute.name}' cannot be the name of a compute",
            cure="use lower-case letters, digits and '-', at most 63 of them",
        )
    if compute.kind not in get_args(ComputeKind):
        raise UsageError(
            f"'{compute.kind}' is no kind of compute", cure=f"one of: {', '.join(get_args(ComputeKind))}"
        )
    if urlsplit(compute.address).password:
        raise UsageError(
            "the address holds a password, which would be kept and shown",
            cure="leave it out, and name the variable that has the token: --token-env NAME",
        )
    for variable in (compute.token_env, compute.api_key_env):
        if variable is not None and not _ENV_VAR.fullmatch(variable):
            raise UsageError(
                "a token is named by its environment variable, and this is no name of one",
                cure="export it, and give the variable's name: --token-env RAY_TOKEN",
            )


@contextmanager
def _changing() -> Iterator[dict[str, Compute]]:
    """Give the computes to change; they are written, whole or not at all, when the block has ended well."""
    path = computes_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            computes = _read()
            yield computes
            content = {
                name: {
                    key: value
                    for key, value in asdict(compute).items()
                    if value is not None and key != "name"
                }
                for name, compute in sorted(computes.items())
            }
            draft = path.with_suffix(".draft")
            draft.touch(mode=0o600)
            draft.chmod(0o600)
            draft.write_text(json.dumps({"computes": content}, indent=2) + "\n", encoding="utf-8")
            draft.replace(path)
    except OSError as error:
        raise UsageError(
            f"cannot write {error.filename or path}: {error.strerror}",
            cure="make it writable, or set MODELKIT_CONFIG_DIR to another folder",
        ) from error


def _read() -> dict[str, Compute]:
    path = computes_path()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: _compute(name, entry) for name, entry in content["computes"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", cure="make it readable") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is not what modelkit has written: {error}",
            cure="mend it, or move it away and add the computes again",
        ) from error


def _compute(name: str, entry: dict[str, Any]) -> Compute:
    known = {field.name for field in fields(Compute)}
    if unknown := sorted(set(entry) - known):
        raise ValueError(f"'{name}' has the unknown key '{unknown[0]}'")
    return Compute(**{**entry, "name": name})
