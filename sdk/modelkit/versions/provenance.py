"""Where a version came from, as an in-toto statement with SLSA's provenance: its sources by digest, and what made it.

Source: https://slsa.dev/spec/v1.0/provenance
"""

import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelkit import __version__
from modelkit.versions.version import VersionContent

__all__ = ["make_provenance"]

_GIT_TIMEOUT_S = 10.0


def make_provenance(content: VersionContent, version_digest: str, model_dir: Path) -> dict[str, Any]:
    """Return the statement about the version `version_digest`, made now."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": content.model_id, "digest": _digest(version_digest)}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://modelkit.dev/upload/v1",
                "externalParameters": {"model": content.model_id},
                "internalParameters": {},
                "resolvedDependencies": _sources(content, model_dir),
            },
            "runDetails": {
                "builder": {"id": "https://modelkit.dev/modelkit", "version": {"modelkit": __version__}},
                "metadata": {"finishedOn": datetime.now(UTC).isoformat(timespec="seconds")},
            },
        },
    }


def _sources(content: VersionContent, model_dir: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "package", "digest": _digest(content.package.digest)}]
    for checkpoint in content.checkpoints:
        found += [
            {"name": f"{checkpoint.name}/{file.path}", "digest": {"sha256": file.sha256}}
            for file in checkpoint.files
        ]
    if content.image is not None:
        found.append({"name": "image", "digest": _digest(content.image.digest)})
    return found + _commit(model_dir)


def _commit(model_dir: Path) -> list[dict[str, Any]]:
    """Return the commit of the model folder's repository, if it is in one and nothing in it has changed since."""
    commit = _git(model_dir, "rev-parse", "HEAD")
    if commit is None or _git(model_dir, "status", "--porcelain", "--", ".") != "":
        return []
    remote = _git(model_dir, "remote", "get-url", "origin")
    source: dict[str, Any] = {"name": "source", "digest": {"gitCommit": commit}}
    if remote:
        source["uri"] = "git+" + _without_login(remote)
    return [source]


def _git(model_dir: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(model_dir), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _without_login(remote: str) -> str:
    """Return an address without what may be a token: https://user:token@host/repo."""
    return re.sub(r"^([a-z+]+://)[^/]*@", r"\1", remote)


def _digest(digest: str) -> dict[str, str]:
    algorithm, _, encoded = digest.partition(":")
    return {algorithm: encoded}
