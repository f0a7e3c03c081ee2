"""A checkpoint that is a list of URLs, each with the sha256 of what is there."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from modelkit.checkpoints.base import CheckpointSource, Listing, SourceFile, checked_path, token_of
from modelkit.checkpoints.once import once
from modelkit.checkpoints.ranges import HttpRanges
from modelkit.config import CheckpointSourceConfig
from modelkit.errors import LoadError

if TYPE_CHECKING:
    import httpx

__all__ = ["HttpSource"]

_FORBIDDEN = frozenset({401, 403})


class HttpSource(CheckpointSource):
    """The files of `checkpoints.files`."""

    def __init__(self, config: CheckpointSourceConfig, model_dir: Path, revision: str | None = None) -> None:
        del model_dir, revision
        if not config.files:
            raise LoadError(
                "a checkpoint of type http needs 'checkpoints.files'",
                cure="add below it: - {url: https://example.com/model.safetensors, sha256: ...}",
            )
        self._files = {checked_path(file.name, "config.yaml"): file for file in config.files}
        self.where = str(urlsplit(config.files[0].url).hostname)
        self._token_env = config.token_env

    @once
    def _ranges(self) -> HttpRanges:
        return HttpRanges(self.where, self._explain)

    @once
    def _headers(self) -> dict[str, str]:
        token = token_of(self._token_env)
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def list_files(self) -> Listing:
        """Return the files with the sizes that their servers give."""
        files = (
            SourceFile(
                path=path,
                size_bytes=self._ranges.size_bytes(path, file.url, self._headers),
                sha256=file.sha256,
            )
            for path, file in self._files.items()
        )
        return Listing(None, tuple(files))

    def open(
        self, file: SourceFile, start: int = 0, stop: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Return a range of a file."""
        return self._ranges.open(file, self._files[file.path].url, self._headers, start, stop)

    def close(self) -> None:
        """Close the connections, where there are any."""
        if "_ranges" in self.__dict__:
            self._ranges.close()

    def _explain(self, response: "httpx.Response", path: str) -> LoadError | None:
        if response.status_code in _FORBIDDEN:
            return LoadError(
                f"{response.url.host} does not let {path} be read ({response.status_code})",
                cure="name a variable that holds a token with checkpoints.token_env"
                if self._token_env is None
                else f"see that the token in {self._token_env} may read it",
            )
        if response.status_code in {404, 410}:
            return LoadError(
                f"{response.url.host} has no {path}", cure="correct its url in config.yaml, checkpoints.files"
            )
        return None
