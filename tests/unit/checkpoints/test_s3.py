"""A checkpoint in a bucket of moto's S3 server, over real HTTP."""

import random
import sys

import boto3
import pytest
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from modelkit.checkpoints import open_source, partial
from modelkit.checkpoints.base import BrokenTransferError, ChangedFileError
from modelkit.checkpoints.fetch import fetch
from modelkit.checkpoints.resolve import Terms, check_lock, prepare
from modelkit.config import CheckpointConfig, load_config
from modelkit.errors import LoadError

WEIGHTS = random.Random(6).randbytes(1_000_000)


@pytest.fixture
def bucket(monkeypatch):
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    objects = {
        "chat/config.json": b"{}",
        "chat/model.safetensors": WEIGHTS,
        "chat/": b"",
        "chatter/other.json": b"{}",
    }
    for key, body in objects.items():
        client.put_object(Bucket="models", Key=key, Body=body)
    yield client
    client.delete_bucket_policy(Bucket="models")
    client.close()
    server.stop()


def source_of(path, tmp_path):
    return open_source(CheckpointConfig(type="s3", path=path), tmp_path)


def test_the_objects_below_a_prefix_are_the_files(bucket, tmp_path):
    with source_of("s3://models/chat", tmp_path) as source:
        files = source.list_files().files
        assert {file.path: file.size_bytes for file in files} == {
            "config.json": 2,
            "model.safetensors": len(WEIGHTS),
        }
        weights = next(file for file in files if file.path == "model.safetensors")
        with source.open(weights, 10, 20) as blocks:
            assert b"".join(blocks) == WEIGHTS[10:20]


def test_a_folder_is_fetched_locked_and_used_offline(bucket, tmp_path, cache, write_folder, monkeypatch):
    monkeypatch.setattr(partial, "PART_BYTES", 300_000)
    folder = write_folder("type: s3, path: s3://models/chat")
    config = load_config(folder)
    dirs = prepare(config, folder, Terms(cache=cache, offline=False))
    assert (dirs["default"] / "model.safetensors").read_bytes() == WEIGHTS
    bucket.put_object(Bucket="models", Key="chat/config.json", Body=b"{ }")
    assert check_lock(config, folder, Terms(cache=cache, offline=False)).moved == (
        "s3://models/chat has other files now than are locked",
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert prepare(config, folder, Terms(cache=cache, offline=True)) == dirs


def test_an_object_that_changes_under_way_is_noticed(bucket, tmp_path, cache):
    with source_of("s3://models/chat", tmp_path) as source:
        files = source.list_files().files
        bucket.put_object(Bucket="models", Key="chat/model.safetensors", Body=WEIGHTS[::-1])
        with pytest.raises(ChangedFileError, match=r"model\.safetensors changed at s3://models/chat"):
            fetch(source, files, cache)


@pytest.mark.parametrize(
    ("path", "message", "cure"),
    [
        ("s3://nowhere/chat", "NoSuchBucket", "the bucket in checkpoints.path"),
        ("s3://models/absent", "there is nothing below s3://models/absent", "checkpoints.path"),
        ("models/chat", "needs 'checkpoints.path'", "s3://bucket/prefix"),
    ],
)
def test_what_goes_wrong_is_said(bucket, tmp_path, path, message, cure):
    with pytest.raises(LoadError, match=message) as caught:
        source_of(path, tmp_path).list_files()
    assert cure in caught.value.cure


def test_without_credentials_the_cure_names_them(bucket, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(LoadError, match="credentials") as caught:
        source_of("s3://models/chat", tmp_path).list_files()
    assert "AWS_ACCESS_KEY_ID" in caught.value.cure


def test_a_server_that_is_not_there_may_come_back(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(BrokenTransferError, match="broke"):
        source_of("s3://models/chat", tmp_path).list_files()


def test_without_boto3_the_cure_is_the_extra(tmp_path, monkeypatch):
    for name in ("boto3", "botocore"):
        monkeypatch.setitem(sys.modules, name, None)
    config = CheckpointConfig(type="s3", path="s3://models/chat")
    with pytest.raises(LoadError, match="needs boto3") as caught, open_source(config, tmp_path) as source:
        source.list_files()
    assert caught.value.cure == "pip install 'modelkit-sdk[s3]'"
