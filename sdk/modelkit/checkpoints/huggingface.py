"""A checkpoint from the Hugging Face Hub, kept in its usual cache.

Once a checkpoint has been fetched completely, a note in the repository's cache folder says so, and from then on the
folder is used without a request. A branch therefore stays at the commit it had when it was fetched.
Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from modelkit.config import CheckpointConfig
from modelkit.errors import LoadError

__all__ = ["resolve"]

# The same weights in older formats; with safetensors there is no use for them, and they double the download.
DUPLICATE_FORMATS = ("original/*", "*.pth", "*.bin")


def resolve(config: CheckpointConfig, model_dir: Path) -> Path:  # noqa: ARG001 - every source has this shape
    """Return the snapshot folder of `checkpoints.repo_id`, fetching what is missing; broken downloads go on.

    With HF_HUB_OFFLINE set nothing is fetched. Raises LoadError: no such repository or revision, no access, no network.
    """
    if config.repo_id is None:
        raise LoadError(
            "a checkpoint from Hugging Face needs 'checkpoints.repo_id'",
            cure="name the repository in config.yaml, such as repo_id: Qwen/Qwen2-0.5B-Instruct",
        )
    note = _note(config)
    known = _noted_snapshot(note)
    if known is not None:
        return known
    token = _token(config)
    try:
        snapshot = _fetch(config, token)
    except Exception as error:
        raise _translated(error, config, token) from error
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(snapshot.name, encoding="utf-8")
    return snapshot


def _fetch(config: CheckpointConfig, token: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    offline = bool(constants.HF_HUB_OFFLINE)
    folder = snapshot_download(
        config.repo_id or "",
        revision=config.revision,
        allow_patterns=list(config.allowed_file_patterns) or None,
        ignore_patterns=_ignored(config, token, offline=offline),
        token=token,
        local_files_only=offline,
    )
    return Path(folder).resolve()


def _ignored(config: CheckpointConfig, token: str | None, *, offline: bool) -> list[str] | None:
    """Return the patterns to leave out; where config.yaml has none at all, other formats of the same weights."""
    if config.ignored_file_patterns:
        return list(config.ignored_file_patterns)
    if config.allowed_file_patterns or offline:
        return None
    from huggingface_hub import HfApi

    names = HfApi(token=token).list_repo_files(config.repo_id or "", revision=config.revision)
    return list(DUPLICATE_FORMATS) if any(name.endswith(".safetensors") for name in names) else None


def _token(config: CheckpointConfig) -> str | None:
    """Return the token that `checkpoints.token_env` names; without it, the Hub's own ways of finding one apply."""
    if config.token_env is None:
        return None
    token = os.environ.get(config.token_env)
    if not token:
        raise LoadError(
            f"the environment variable {config.token_env}, which checkpoints.token_env names, is not set",
            cure=f"export {config.token_env}=hf_..., or remove checkpoints.token_env for a public repository",
        )
    return token


def _note(config: CheckpointConfig) -> Path:
    """Return where it is noted which snapshot is complete for this repository, revision and choice of files."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    wanted = repr((config.revision, config.allowed_file_patterns, config.ignored_file_patterns))
    name = hashlib.sha256(wanted.encode()).hexdigest()[:16]
    folder = repo_folder_name(repo_id=config.repo_id or "", repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder / "modelkit" / name


def _noted_snapshot(note: Path) -> Path | None:
    try:
        commit = note.read_text(encoding="utf-8")
    except OSError:
        return None
    snapshot = note.parent.parent / "snapshots" / commit
    return snapshot.resolve() if snapshot.is_dir() else None


def _translated(error: Exception, config: CheckpointConfig, token: str | None) -> LoadError:
    """Return what went wrong in the words of config.yaml."""
    from huggingface_hub import errors

    repo = f"https://huggingface.co/{config.repo_id}"
    login = (
        "set checkpoints.token_env to a variable with your token"
        if token is None
        else "use a token that may read it"
    )
    table: tuple[tuple[tuple[type[Exception], ...], str, str], ...] = (
        (
            (errors.GatedRepoError,),
            "access to it has to be granted",
            f"accept the terms at {repo}, and {login}",
        ),
        (
            (errors.RevisionNotFoundError,),
            f"it has no revision '{config.revision}'",
            "correct checkpoints.revision in config.yaml: a branch, a tag or a commit",
        ),
        (
            (errors.RepositoryNotFoundError, errors.HFValidationError),
            "there is no such repository, or it is private",
            f"correct checkpoints.repo_id in config.yaml, or {login}",
        ),
        (
            (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, *_network_errors()),
            "it is not in the cache, and the Hub cannot be reached",
            "connect to the network and unset HF_HUB_OFFLINE, or copy the files and use checkpoints.type: local",
        ),
    )
    for kinds, reason, cure in table:
        if isinstance(error, kinds):
            return LoadError(f"cannot fetch {config.repo_id}: {reason}", cure=cure)
    return LoadError(f"cannot fetch {config.repo_id}: {error}", cure="try again; what has arrived is kept")


def _network_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the HTTP library that the Hub's client uses: httpx since 1.0, requests before."""
    from importlib.util import find_spec

    kinds: list[type[Exception]] = [ConnectionError, TimeoutError]
    for name, error in (("httpx", "TransportError"), ("requests", "ConnectionError")):
        if find_spec(name) is not None:
            library: Any = __import__(name)
            kinds.append(getattr(library, error))
    return tuple(kinds)
