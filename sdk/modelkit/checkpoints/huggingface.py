"""A checkpoint from the Hugging Face Hub, or from a mirror of it that HF_ENDPOINT names.

The listing, the addresses and the headers are huggingface_hub's; the bytes come over plain ranges, so that a transfer can
go on anywhere, be checked while it is written, and be the same for every source. Where the hub keeps a file in its xet
storage and hf_xet is installed, that library fetches it: it transfers only chunks that are not on this machine yet.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from modelkit.checkpoints.base import (
    BrokenTransferError,
    CheckpointSource,
    Listing,
    SourceFile,
    checked_path,
    token_of,
)
from modelkit.checkpoints.once import once
from modelkit.checkpoints.ranges import HttpRanges
from modelkit.config import CheckpointSourceConfig
from modelkit.errors import LoadError, UsageError

if TYPE_CHECKING:
    import httpx

__all__ = ["HuggingFaceSource"]

# Below this one request and a few milliseconds do; xet's bookkeeping costs more.
_MIN_XET_BYTES = 16 * 1024**2
_POLL_S = 0.2


class HuggingFaceSource(CheckpointSource):
    """One repository at one revision. `revision` is the commit to read, where config.yaml's is pinned."""

    def __init__(self, config: CheckpointSourceConfig, model_dir: Path, revision: str | None = None) -> None:
        del model_dir
        if config.repo_id is None:
            raise LoadError(
                "a checkpoint from Hugging Face needs 'checkpoints.repo_id'",
                cure="name the repository in config.yaml, such as repo_id: Qwen/Qwen2-0.5B-Instruct",
            )
        self.where = self.repo_id = config.repo_id
        self.revision = revision or config.revision or "main"
        self._token_env = config.token_env

    @once
    def _token(self) -> str | None:
        return token_of(self._token_env)

    @once
    def _ranges(self) -> HttpRanges:
        return HttpRanges(self.repo_id, self._explain)

    @once
    def _headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined, unused-ignore]

        # None lets the library look where `hf auth login` and HF_TOKEN leave one.
        return build_hf_headers(token=self._token)

    def list_files(self) -> Listing:
        """Return the repository's files at the commit that the revision stands for."""
        from huggingface_hub import HfApi

        _check_endpoint()
        token = self._token
        try:
            info = HfApi(token=token).model_info(self.repo_id, revision=self.revision, files_metadata=True)
        except Exception as error:
            raise self._translated(error) from error
        self.revision = info.sha or self.revision
        return Listing(info.sha, tuple(map(self._file, info.siblings or ())))

    def _file(self, sibling: Any) -> SourceFile:
        path = checked_path(sibling.rfilename, self.where)
        if sibling.size is None:
            raise LoadError(
                f"{self.where} does not say how large {path} is", cure="is HF_ENDPOINT a mirror of the Hub?"
            )
        if sibling.lfs is not None:
            return SourceFile(
                path=path, size_bytes=sibling.size, sha256=sibling.lfs["sha256"], version=self.revision
            )
        blob_id = sibling.blob_id or ""
        return SourceFile(
            path=path,
            size_bytes=sibling.size,
            version=blob_id or self.revision,
            git_blob_id=blob_id or None,
        )

    def open(
        self, file: SourceFile, start: int = 0, stop: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Return a range of a file at the pinned commit."""
        return self._ranges.open(file, self._url(file), self._headers, start, stop)

    def _url(self, file: SourceFile) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo_id, file.path, revision=self.revision)

    def copy_on_disk(self, file: SourceFile) -> Path | None:
        """Return the file in the library's own cache, which names large files by their sha256, small ones by git's id."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        name = file.sha256 or file.git_blob_id
        folder = repo_folder_name(repo_id=self.repo_id, repo_type="model")
        blob = Path(constants.HF_HUB_CACHE) / folder / "blobs" / (name or "-")
        return blob if name and blob.is_file() and blob.stat().st_size == file.size_bytes else None

    def download(self, file: SourceFile, target: Path, on_bytes: Callable[[int], None]) -> bool:
        """Let hf_xet write the file, where it can; whatever goes wrong there, plain HTTP has the file too."""
        if file.size_bytes < _MIN_XET_BYTES or file.sha256 is None or not _has_xet():
            return False
        from huggingface_hub import get_hf_file_metadata
        from huggingface_hub.file_download import xet_get
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined, unused-ignore]

        disable_progress_bars()  # it would draw its own beside ours
        try:
            metadata = get_hf_file_metadata(self._url(file), headers=self._headers)
            if metadata.xet_file_data is None:
                return False
            with _watching(target, on_bytes):
                xet_get(
                    incomplete_path=target,
                    xet_file_data=metadata.xet_file_data,
                    headers=self._headers,
                    expected_size=file.size_bytes,
                )
        except Exception:  # noqa: BLE001 - a foreign library in Rust: its errors have no common base
            target.unlink(missing_ok=True)
            return False
        return True

    def close(self) -> None:
        """Close the connections, where there are any."""
        if "_ranges" in self.__dict__:
            self._ranges.close()

    def _explain(self, response: "httpx.Response", path: str) -> LoadError | None:
        code, status = response.headers.get("X-Error-Code", ""), response.status_code
        if code == "GatedRepo":
            return self._failure(
                "access to it has to be granted", f"accept the terms at {self._page()}, and {self._login()}"
            )
        if status == 401:  # noqa: PLR2004
            return self._failure("the hub does not know the token", self._login())
        if status == 403:  # noqa: PLR2004
            return self._failure(f"access to {path} is forbidden", self._login())
        if status == 404:  # noqa: PLR2004
            return self._failure(
                f"{path} is not there at {self.revision}",
                "a commit may have been removed from the hub: `modelkit lock --update` pins what is there now",
            )
        return None

    def _translated(self, error: Exception) -> LoadError:
        """Return what went wrong in the words of config.yaml."""
        from huggingface_hub import errors

        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 429:  # noqa: PLR2004
            after = error.response.headers.get("Retry-After", "")  # type: ignore[attr-defined]
            return BrokenTransferError(
                f"cannot fetch {self.repo_id}: {_endpoint()} answers 429, too many requests",
                cure=f"wait a while; the Hub's limit is higher for those who log in: {self._login()}",
                retry_after_s=float(after) if after.isdigit() else None,
            )
        is_busy = status is not None and status >= 500  # noqa: PLR2004
        if is_busy or _is_network_error(error):
            return BrokenTransferError(
                f"cannot fetch {self.repo_id}: {_endpoint()} cannot be reached ({_short(error)})",
                cure="connect to the network; or name a mirror with HF_ENDPOINT; or use type: local",
            )
        # The Hub hides private repositories from strangers, and says so of one that does not exist too.
        is_stranger = status == 401 and self._has_token()  # noqa: PLR2004
        absent = (errors.RepositoryNotFoundError, errors.HFValidationError)
        table = (
            (
                isinstance(error, errors.GatedRepoError),
                "access to it has to be granted",
                f"accept the terms at {self._page()}, and {self._login()}",
            ),
            (
                isinstance(error, errors.RevisionNotFoundError),
                f"it has no revision '{self.revision}'",
                "correct checkpoints.revision in config.yaml: a branch, a tag or a commit",
            ),
            (is_stranger, "the hub does not know the token", self._login()),
            (
                isinstance(error, absent),
                "there is no such repository, or it is private",
                f"correct checkpoints.repo_id in config.yaml, or {self._login()}",
            ),
            (isinstance(error, errors.OfflineModeIsEnabled), "HF_HUB_OFFLINE is set", "unset it"),
            (True, _short(error), "try again; what has arrived is kept"),
        )
        reason, cure = next((reason, cure) for holds, reason, cure in table if holds)
        return self._failure(reason, cure)

    def _failure(self, reason: str, cure: str) -> LoadError:
        return LoadError(f"cannot fetch {self.repo_id}: {reason}", cure=cure)

    def _has_token(self) -> bool:
        return "authorization" in {name.lower() for name in self._headers}

    def _login(self) -> str:
        if self._has_token():
            return "use a token that may read it"
        return "set checkpoints.token_env to a variable with your token"

    def _page(self) -> str:
        return f"{_endpoint()}/{self.repo_id}"


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _check_endpoint() -> None:
    """Raise UsageError where HF_ENDPOINT is no address: no further try would mend that."""
    address = urlsplit(_endpoint())
    if address.scheme not in {"http", "https"} or not address.hostname:
        raise UsageError(
            f"HF_ENDPOINT is {_endpoint()!r}, which is no address of a hub",
            cure="write it with its scheme, such as https://hf-mirror.example.com, or unset it",
        )


def _has_xet() -> bool:
    from huggingface_hub import constants

    return find_spec("hf_xet") is not None and not constants.HF_HUB_DISABLE_XET


@contextmanager
def _watching(target: Path, on_bytes: Callable[[int], None]) -> Iterator[None]:
    """Report how a file grows that somebody else writes; whatever its length says, by the space it takes."""
    ended = threading.Event()

    def watch() -> None:
        seen = 0
        while not ended.wait(_POLL_S):
            try:
                now = target.stat().st_blocks * 512
            except OSError:
                continue
            on_bytes(now - seen)
            seen = now

    thread = threading.Thread(target=watch, name="modelkit-xet-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_network_error(error: Exception) -> bool:
    """Tell by the names of its classes: the Hub's client has had three HTTP libraries in as many versions."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint({"TransportError", "ConnectionError", "Timeout", "TimeoutError"})


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
