"""A checkpoint from the Hugging Face Hub, kept in its usual cache.

Once a checkpoint has been fetched completely, a note in the repository's cache folder says so, and from then on the
folder is used without a request. A branch therefore stays at the commit it had when it was fetched.
Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

import hashlib
import os
from pathlib import Path

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
    token = None
    try:
        note = _note(config)
        known = _noted_snapshot(note)
        if known is not None:
            return known
        token = _token(config)
        if _is_offline():
            # Perhaps a part only; the Hub would have to say what the whole is.
            return _snapshot(config, token, config.ignored_file_patterns, offline=True)
        snapshot = _fetch(config, token)
    except LoadError:
        raise
    except Exception as error:
        raise _translated(error, config, token) from error
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(snapshot.name, encoding="utf-8")
    return snapshot


def _fetch(config: CheckpointConfig, token: str | None) -> Path:
    """Return the snapshot with every file that the Hub lists and the config wants."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined, unused-ignore]

    info = HfApi(token=token).model_info(config.repo_id or "", revision=config.revision)
    names = [sibling.rfilename for sibling in info.siblings or ()]
    ignored = config.ignored_file_patterns
    if (
        not ignored
        and not config.allowed_file_patterns
        and any(name.endswith(".safetensors") for name in names)
    ):
        ignored = DUPLICATE_FORMATS
    snapshot = _snapshot(config, token, ignored, offline=False)
    allowed = list(config.allowed_file_patterns) or None
    wanted = filter_repo_objects(names, allow_patterns=allowed, ignore_patterns=list(ignored) or None)
    # Where the network fails half-way, the library may give what it has without a word.
    missing = [name for name in wanted if not (snapshot / name).is_file()]
    if missing:
        raise LoadError(f"cannot fetch {config.repo_id}: {missing[0]} did not arrive", cure="try again")
    return snapshot


def _snapshot(
    config: CheckpointConfig, token: str | None, ignored: tuple[str, ...], *, offline: bool
) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        config.repo_id or "",
        revision=config.revision,
        allow_patterns=list(config.allowed_file_patterns) or None,
        ignore_patterns=list(ignored) or None,
        token=token,
        local_files_only=offline,
    )
    return Path(folder).resolve()


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


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
    )
    for kinds, reason, cure in table:
        if isinstance(error, kinds):
            return LoadError(f"cannot fetch {config.repo_id}: {reason}", cure=cure)
    offline = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    if isinstance(error, offline) or _is_network_error(error):
        return LoadError(
            f"cannot fetch {config.repo_id}: it is not complete in the cache, and the Hub cannot be reached",
            cure="connect to the network; or set HF_HUB_OFFLINE=1 to take what the cache has; or use type: local",
        )
    return LoadError(f"cannot fetch {config.repo_id}: {error}", cure="try again; what has arrived is kept")


def _is_network_error(error: Exception) -> bool:
    """Tell by the names of its classes: the Hub's client has had three HTTP libraries in as many versions."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint({"TransportError", "ConnectionError", "Timeout", "TimeoutError"})
