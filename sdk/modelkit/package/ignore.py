"""What of a model folder is left out: what an author says, what never belongs there, and what looks like a secret.

`.modelkitignore` has the rules of .gitignore; without one, `.dockerignore` holds, with docker's.
"""

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from modelkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

__all__ = ["IGNORE_NAME", "is_never_wanted", "looks_secret", "read_rules"]

IGNORE_NAME = ".modelkitignore"
DOCKER_IGNORE_NAME = ".dockerignore"

_NEVER = (
    *(".git", ".hg", ".svn", ".gitmodules"),
    *(
        "__pycache__",
        "*.pyc",
        "*.pyo",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".cache",
        ".tox",
        ".nox",
    ),
    *("venv", ".venv", "node_modules", "*.egg-info", ".ipynb_checkpoints", ".idea", ".vscode", ".DS_Store"),
    "*.draft",
)
# Private keys and passwords by the names that programs give them. What only looks like one (.env.example) may stay.
_SECRET = (
    *(
        ".env",
        ".env.*",
        "*.env",
        ".envrc",
        ".netrc",
        "_netrc",
        ".pypirc",
        ".npmrc",
        ".git-credentials",
        ".htpasswd",
    ),
    *(
        "id_rsa",
        "id_dsa",
        "id_ecdsa",
        "id_ed25519",
        "*.key",
        "*.p12",
        "*.pfx",
        "*.jks",
        "*.kdbx",
        "kubeconfig",
    ),
    *(
        ".aws",
        ".azure",
        ".docker",
        ".gcloud",
        ".kube",
        ".ssh",
        "service-account*.json",
        "client_secret*.json",
    ),
)
_NOT_SECRET = ("*.example", "*.sample", "*.template")


def is_never_wanted(name: str) -> bool:
    """Tell whether a file or folder of this name belongs to no package: caches, repositories, environments."""
    return any(fnmatch(name, pattern) for pattern in _NEVER)


def looks_secret(name: str) -> bool:
    """Tell whether a file or folder of this name usually holds a secret."""
    is_example = any(fnmatch(name, pattern) for pattern in _NOT_SECRET)
    return not is_example and any(fnmatch(name, pattern) for pattern in _SECRET)


def read_rules(model_dir: Path) -> "GitIgnoreSpec | None":
    """Return the rules of a model folder, None where it has none. Raises ConfigError for a malformed one."""
    for name in (IGNORE_NAME, DOCKER_IGNORE_NAME):
        file = model_dir / name
        if file.is_file():
            return _parse(file, is_docker=name == DOCKER_IGNORE_NAME)
    return None


def _parse(file: Path, *, is_docker: bool) -> "GitIgnoreSpec":
    from pathspec import GitIgnoreSpec

    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        return GitIgnoreSpec.from_lines(_as_git(lines) if is_docker else lines)
    except (OSError, ValueError) as error:
        raise ConfigError(
            [Problem(f"{file.name} cannot be read: {error}", "mend its patterns", file)]
        ) from error


def _as_git(lines: list[str]) -> Iterator[str]:
    """Write docker's patterns as git's: they begin at the top of the folder, whether or not they hold a slash."""
    for line in lines:
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        mark = "!" if pattern.startswith("!") else ""
        path = pattern.removeprefix("!").strip().removeprefix("./").strip("/")
        if path and path != ".":
            yield f"{mark}/{path}"
