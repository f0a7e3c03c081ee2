"""A checkpoint in an S3 bucket, of AWS or of any server that speaks its protocol (AWS_ENDPOINT_URL).

Credentials, region and endpoint are found by boto3 in its usual places: https://docs.aws.amazon.com/boto3 (Configuration).
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from modelkit.checkpoints.base import (
    BLOCK_BYTES,
    BrokenTransferError,
    ChangedFileError,
    CheckpointSource,
    Listing,
    SourceFile,
    checked_path,
)
from modelkit.checkpoints.once import once
from modelkit.config import CheckpointSourceConfig
from modelkit.errors import LoadError

__all__ = ["S3Source"]

_MAX_CONNECTIONS = 32
_BUSY = 500


class S3Source(CheckpointSource):
    """Every object below a prefix."""

    def __init__(self, config: CheckpointSourceConfig, model_dir: Path, revision: str | None = None) -> None:
        del model_dir, revision
        address = config.path or ""
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        if not address.startswith("s3://") or not bucket:
            raise LoadError(
                "a checkpoint of type s3 needs 'checkpoints.path'", cure="write path: s3://bucket/prefix"
            )
        self.where = address
        self._bucket = bucket
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        self._etags: dict[str, str] = {}

    @once
    def _client(self) -> Any:
        try:
            import boto3
            from botocore.config import Config as BotoConfig
        except ModuleNotFoundError as error:
            raise _no_boto3() from error
        settings = BotoConfig(max_pool_connections=_MAX_CONNECTIONS, retries={"mode": "standard"})
        with self._translating(""):
            return boto3.session.Session().client("s3", config=settings)

    def list_files(self) -> Listing:
        """Return the objects below the prefix; a name that ends with a slash is a folder that some console made."""
        files = []
        with self._translating(""):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            )
            for item in (item for page in pages for item in page.get("Contents", ())):
                if not item["Key"].endswith("/"):
                    path = checked_path(item["Key"].removeprefix(self._prefix), self.where)
                    size, etag = int(item["Size"]), str(item["ETag"])
                    files.append(SourceFile(path=path, size_bytes=size, version=etag))
        if not files:
            raise LoadError(
                f"there is nothing below {self.where}", cure="correct checkpoints.path in config.yaml"
            )
        return Listing(None, tuple(files))

    @contextmanager
    def open(self, file: SourceFile, start: int = 0, stop: int | None = None) -> Iterator[Iterator[bytes]]:
        """Return a range of an object, of the version that was listed or first read."""
        end = file.size_bytes if stop is None else min(stop, file.size_bytes)
        if start >= end:
            yield iter(())
            return
        asked = {"Bucket": self._bucket, "Key": self._prefix + file.path, "Range": f"bytes={start}-{end - 1}"}
        etag = file.version or self._etags.get(file.path)
        if etag:
            asked["IfMatch"] = etag
        with self._translating(file.path):
            answer = self._client.get_object(**asked)
            total = int(str(answer["ContentRange"]).rpartition("/")[2])
            if (
                total != file.size_bytes
                or self._etags.setdefault(file.path, answer["ETag"]) != answer["ETag"]
            ):
                raise ChangedFileError(file.path, self.where)
            with closing(answer["Body"]) as body:
                yield self._blocks(body, file.path)

    def _blocks(self, body: Any, path: str) -> Iterator[bytes]:
        with self._translating(path):
            yield from body.iter_chunks(BLOCK_BYTES)

    def close(self) -> None:
        """Close the connections, where there are any."""
        if "_client" in self.__dict__:
            self._client.close()

    @contextmanager
    def _translating(self, path: str) -> Iterator[None]:
        try:
            from botocore import exceptions
        except ModuleNotFoundError as error:
            raise _no_boto3() from error
        broken = (
            exceptions.HTTPClientError,  # and its kind: a cut, a timeout
            exceptions.ConnectionError,
            exceptions.ResponseStreamingError,
            exceptions.IncompleteReadError,
        )
        credentials = (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.ProfileNotFound,
            exceptions.TokenRetrievalError,
        )
        try:
            yield
        except exceptions.ClientError as error:
            raise self._explained(error, path) from error
        except broken as error:
            raise BrokenTransferError(f"the connection to {self.where} broke: {error}") from error
        except credentials as error:
            raise LoadError(
                f"cannot fetch {self.where}: {error}",
                cure="export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or choose a profile with AWS_PROFILE",
            ) from error
        except exceptions.BotoCoreError as error:
            raise LoadError(
                f"cannot fetch {self.where}: {error}",
                cure="see AWS_REGION, AWS_ENDPOINT_URL and ~/.aws/config",
            ) from error

    def _explained(self, error: Any, path: str) -> LoadError:
        """Return what a server's refusal means, by its code and its status."""
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in {"PreconditionFailed", "InvalidRange", "412", "416", "NoSuchKey"} and path:
            return ChangedFileError(path, self.where)
        if status >= _BUSY or code in {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed"}:
            return BrokenTransferError(f"{self.where} answers {status} {code}")
        cures = {
            "NoSuchBucket": "correct the bucket in checkpoints.path",
            "InvalidAccessKeyId": "export the right AWS_ACCESS_KEY_ID",
            "SignatureDoesNotMatch": "export the right AWS_SECRET_ACCESS_KEY",
            "ExpiredToken": "get new credentials, and export AWS_SESSION_TOKEN with them",
        }
        cure = cures.get(code, "see that your credentials may list the bucket and read its objects")
        text = error.response.get("Error", {}).get("Message") or code
        return LoadError(f"cannot fetch {self.where}: {text} ({code})", cure=cure)


def _no_boto3() -> LoadError:
    return LoadError(
        "a checkpoint of type s3 needs boto3, which is not installed", cure="pip install 'modelkit-sdk[s3]'"
    )
