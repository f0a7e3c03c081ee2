"""Who we are to a registry, found where docker and podman keep it; nothing is ever written there.

In this order: MODELKIT_REGISTRY_USERNAME and _PASSWORD (for MODELKIT_REGISTRY_HOST alone, so that they go nowhere
else), DOCKER_AUTH_CONFIG, docker's config.json (its credential helpers first), podman's auth.json.
Source: https://docs.docker.com/reference/cli/docker/login/, containers-auth.json(5)
"""

import base64
import binascii
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelkit.errors import UsageError
from modelkit.registry.failures import AccessError

__all__ = ["Credential", "find_credential"]

_HELPER_TIMEOUT_S = 60.0  # it may ask a person to unlock a keychain
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")
# What a helper names an identity token with: https://github.com/docker/docker-credential-helpers
_TOKEN_USER = "<token>"  # noqa: S105 - a name


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name with a password, or a token that stands for both. `origin` says where it was found."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    origin: str = ""

    @property
    def basic(self) -> str:
        """The value of an `Authorization: Basic` header."""
        return base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def find_credential(registry: str, repository: str = "") -> Credential | None:
    """Return the credential for a registry, None where there is none.

    Raises UsageError where the environment or a file is malformed, AccessError where a helper fails.
    """
    return _from_environment(registry) or next(
        filter(None, (found(registry, repository) for found in _places())), None
    )


def _from_environment(registry: str) -> Credential | None:
    host = os.environ.get("MODELKIT_REGISTRY_HOST", "")
    username = os.environ.get("MODELKIT_REGISTRY_USERNAME", "")
    password = os.environ.get("MODELKIT_REGISTRY_PASSWORD", "")
    if password and not host:
        raise UsageError(
            "MODELKIT_REGISTRY_PASSWORD is set, and MODELKIT_REGISTRY_HOST does not say for which registry",
            cure=f"export MODELKIT_REGISTRY_HOST={registry}",
        )
    if not password or host != registry:
        return None
    return Credential(username, password, origin="MODELKIT_REGISTRY_USERNAME")


@dataclass(frozen=True, slots=True)
class _Config:
    """One parsed config.json or auth.json; called, it looks a registry up."""

    document: Mapping[str, Any]
    origin: str

    def __call__(self, registry: str, repository: str) -> Credential | None:
        return self._from_helper(registry) or self._from_auths(registry, repository)

    def _from_helper(self, registry: str) -> Credential | None:
        helpers = self.document.get("credHelpers") or {}
        for key in _keys(registry, ""):
            helper = helpers.get(key) or self.document.get("credsStore")
            found = _ask_helper(str(helper), key, self.origin) if helper else None
            if found is not None:
                return found
        return None

    def _from_auths(self, registry: str, repository: str) -> Credential | None:
        auths = {_bare(key): value for key, value in (self.document.get("auths") or {}).items()}
        for key in _keys(registry, repository):
            entry = auths.get(_bare(key))
            if entry:
                return self._read_entry(entry, key)
        return None

    def _read_entry(self, entry: Mapping[str, Any], key: str) -> Credential | None:
        username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
        if entry.get("auth"):
            try:
                username, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError, TypeError):
                raise UsageError(
                    f"the entry of {key} in {self.origin} is damaged",
                    cure=f"`docker login {key}` writes it anew",
                ) from None
        tokens = str(entry.get("identitytoken") or ""), str(entry.get("registrytoken") or "")
        if not password and not any(tokens):
            return None  # docker leaves an empty entry where a helper has the password
        return Credential(username, password.rstrip("\0"), *tokens, origin=self.origin)


def _places() -> Iterator[_Config]:
    inline = os.environ.get("DOCKER_AUTH_CONFIG")
    if inline:
        yield _Config(_parse(inline, "DOCKER_AUTH_CONFIG"), "DOCKER_AUTH_CONFIG")
    for path in _paths():
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            continue
        yield _Config(_parse(text, str(path)), str(path))


def _paths() -> Iterator[Path]:
    docker = os.environ.get("DOCKER_CONFIG")
    yield (Path(docker) if docker else Path.home() / ".docker") / "config.json"
    if given := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(given)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"
    config = os.environ.get("XDG_CONFIG_HOME")
    yield (Path(config) if config else Path.home() / ".config") / "containers" / "auth.json"


def _parse(text: str, origin: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        # Not the text: it holds passwords.
        raise UsageError(f"{origin} is not valid JSON: {error}", cure="mend or remove it") from None
    if not isinstance(document, dict):
        raise UsageError(f"{origin} holds no JSON object", cure="mend or remove it")
    return document


def _keys(registry: str, repository: str) -> Iterator[str]:
    """Yield what a registry may be listed as, the most particular first: podman has entries for single repositories."""
    parts = repository.split("/") if repository else []
    for num in range(len(parts), 0, -1):
        yield "/".join((registry, *parts[:num]))
    yield from _HUB_KEYS if registry == "docker.io" else (registry, f"https://{registry}")


def _bare(key: str) -> str:
    """Return a key without its scheme and the path of the first API, which docker login has written in its time."""
    bare = key.removeprefix("https://").removeprefix("http://")
    for ending in ("/", "/v1", "/v2"):
        bare = bare.removesuffix(ending)
    return bare


def _ask_helper(helper: str, key: str, origin: str) -> Credential | None:
    """Ask docker-credential-HELPER. None where it has nothing. Raises AccessError where it cannot be run or fails."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(  # noqa: S603 - the user's own configuration names it, as for docker
            [program, "get"],
            input=key,
            capture_output=True,
            text=True,
            timeout=_HELPER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = "it did not answer" if isinstance(error, subprocess.TimeoutExpired) else error.strerror
        raise AccessError(
            f"cannot run {program}, which {origin} names for {key}: {reason}",
            cure=f"install it, or take it out of {origin} and log in again",
        ) from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        if "not found" in said.lower():
            return None
        raise AccessError(
            f"{program} failed for {key}: {said[:200]}", cure=f"try `echo {key} | {program} get`"
        )
    try:
        answer = json.loads(done.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise AccessError(
            f"{program} gave no JSON for {key}", cure=f"try `echo {key} | {program} get`"
        ) from None
    if username == _TOKEN_USER:
        return Credential("", "", identity_token=secret, origin=program)
    return Credential(username, secret, origin=program)
