"""What names a version or an image: a repository of a registry, or a folder on this machine.

Images are named the way docker does: `python:3.12-slim` is in library/python on Docker Hub. Models are not looked for
there: a name without a registry, `chat:v3`, is a layout on this machine, below MODELKIT_REGISTRY_DIR.
Source: https://github.com/distribution/reference
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from modelkit.errors import UsageError

__all__ = ["LayoutReference", "Reference", "parse_image", "parse_reference", "registry_dir"]

DOCKER_HUB = "docker.io"

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PATH_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.?)+(?::[0-9]+)?|\[[0-9A-Fa-f:.]+\](?::[0-9]+)?"
)
_LOOPBACK = re.compile(r"localhost|127(?:\.\d+){3}|\[::1\]")
_MAX_REPOSITORY_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of a registry, with the tag or the digest that is meant there."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """The repository with its registry, as people write it."""
        return f"{self.registry}/{self.repository}"

    @property
    def is_loopback(self) -> bool:
        """Whether the registry runs on this machine, where plain HTTP is no risk."""
        return _LOOPBACK.fullmatch(re.sub(r":\d+$", "", self.registry)) is not None

    def __str__(self) -> str:
        return self.name + _suffix(self.tag, self.digest)

    def at(self, *, tag: str | None = None, digest: str | None = None) -> "Reference":
        """Return the same repository at another tag or digest."""
        return replace(self, tag=tag, digest=digest)


@dataclass(frozen=True, slots=True)
class LayoutReference:
    """An OCI image layout, a folder on this machine, with the tag or the digest that is meant there."""

    folder: Path
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """The folder as people write it: short where it is in the usual place."""
        root = registry_dir()
        if self.folder.is_relative_to(root) and _REPOSITORY.fullmatch(str(self.folder.relative_to(root))):
            return str(self.folder.relative_to(root))
        return f"oci:{self.folder}"

    def __str__(self) -> str:
        return self.name + _suffix(self.tag, self.digest)

    def at(self, *, tag: str | None = None, digest: str | None = None) -> "LayoutReference":
        """Return the same layout at another tag or digest."""
        return replace(self, tag=tag, digest=digest)


def registry_dir() -> Path:
    """Return where versions are kept when no registry is named: MODELKIT_REGISTRY_DIR, or ~/.modelkit/registry."""
    given = os.environ.get("MODELKIT_REGISTRY_DIR")
    return Path(given).expanduser().absolute() if given else Path.home() / ".modelkit" / "registry"


def parse_reference(text: str) -> Reference | LayoutReference:
    """Read what a person wrote for a model: `registry.example.com/chat:v3`, `chat:v3`, `oci:DIR:v3`, `./DIR:v3`.

    Raises UsageError, which names the part that is wrong and how to mend it.
    """
    if text.startswith("oci:"):
        return _parse_layout(text.removeprefix("oci:"), text)
    if text.startswith(("/", "./", "../", "~")) or text in {".", ".."}:
        return _parse_layout(text, text)
    host, rest = _split_host(text)
    if host:
        return _parse_repository(host, rest, text)
    found = _parse_repository("", rest, text)
    return LayoutReference(registry_dir() / found.repository, found.tag, found.digest)


def parse_image(text: str) -> Reference:
    """Read an image's name the way docker does: `python:3.12-slim` is docker.io/library/python:3.12-slim.

    Raises UsageError.
    """
    host, rest = _split_host(text)
    if not host or host in {"index.docker.io", "registry-1.docker.io"}:
        host = DOCKER_HUB
    found = _parse_repository(host, rest, text)
    if host == DOCKER_HUB and "/" not in found.repository:
        found = replace(found, repository=f"library/{found.repository}")
    return found if found.tag or found.digest else replace(found, tag="latest")


def _split_host(text: str) -> tuple[str, str]:
    """Return the registry and the rest. As docker has it, a first part with a dot or a port, or localhost, is one."""
    first, slash, rest = text.partition("/")
    is_host = slash and ("." in first or ":" in first or first == "localhost")
    return (first, rest) if is_host else ("", text)


def _parse_repository(host: str, rest: str, text: str) -> Reference:
    if host and not _HOST.fullmatch(host):
        raise UsageError(f"'{host}' in '{text}' is not a registry", cure="write HOST[:PORT]/NAME[:TAG]")
    repository, tag, digest = _split_suffix(rest, text)
    _check_repository(repository, text)
    return Reference(host, repository, tag, digest)


def _parse_layout(path: str, text: str) -> LayoutReference:
    folder, tag, digest = _split_suffix(path, text)
    if not folder:
        raise UsageError(f"'{text}' names no folder", cure="write oci:FOLDER:TAG")
    return LayoutReference(Path(folder).expanduser().absolute(), tag, digest)


def _split_suffix(text: str, whole: str) -> tuple[str, str | None, str | None]:
    """Take `:tag` and `@digest` off the end. Raises UsageError where either is malformed."""
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise UsageError(
            f"'@{digest}' in '{whole}' is not a digest",
            cure="a digest is sha256: and 64 hexadecimal digits; `modelkit versions` prints them",
        )
    name, tag = rest, None
    head, colon, tail = rest.rpartition(":")
    if colon and "/" not in tail:
        name, tag = head, tail
        if not _TAG.fullmatch(tag):
            raise UsageError(
                f"'{tag}' in '{whole}' is not a tag",
                cure="a tag has up to 128 letters, digits, '.', '_' and '-', and does not begin with '.' or '-'",
            )
    return name, tag, digest or None


def _check_repository(repository: str, text: str) -> None:
    if _REPOSITORY.fullmatch(repository) and len(repository) <= _MAX_REPOSITORY_CHARACTERS:
        return
    if repository != repository.lower() and _REPOSITORY.fullmatch(repository.lower()):
        raise UsageError(
            f"the repository name '{repository}' has upper-case letters, which registries refuse",
            cure=f"write {text.replace(repository, repository.lower(), 1)}",
        )
    raise UsageError(
        f"'{repository}' in '{text}' is not a repository name",
        cure="a name is made of lower-case letters and digits, with '.', '_', '-' between them and '/' between parts",
    )


def _suffix(tag: str | None, digest: str | None) -> str:
    return (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
