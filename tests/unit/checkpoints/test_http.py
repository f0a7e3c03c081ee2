import hashlib

import pytest

from modelkit.checkpoints import open_source
from modelkit.checkpoints.fetch import fetch
from modelkit.checkpoints.resolve import Terms, prepare
from modelkit.config import CheckpointConfig, CheckpointFileConfig, load_config
from modelkit.errors import ConfigError, LoadError


def config_of(*files, **keys):
    return CheckpointConfig(
        type="http",
        files=tuple(CheckpointFileConfig(url=url, sha256=sha256) for url, sha256 in files),
        **keys,
    )


def test_a_token_is_sent_to_the_server_that_asks_for_it(hub, cache, tmp_path, monkeypatch):
    hub.add_repo("org/own", {"a.safetensors": b"weights"}, token="secret")
    file = (hub.url_of("org/own", "a.safetensors"), hashlib.sha256(b"weights").hexdigest())
    with open_source(config_of(file), tmp_path) as source, pytest.raises(LoadError) as caught:
        source.list_files()
    assert "checkpoints.token_env" in caught.value.cure
    monkeypatch.setenv("MY_TOKEN", "secret")
    with open_source(config_of(file, token_env="MY_TOKEN"), tmp_path) as source:
        assert fetch(source, source.list_files().files, cache) == {"a.safetensors": file[1]}
    monkeypatch.setenv("MY_TOKEN", "wrong")
    with (
        open_source(config_of(file, token_env="MY_TOKEN"), tmp_path) as source,
        pytest.raises(LoadError) as caught,
    ):
        source.list_files()
    assert "the token in MY_TOKEN" in caught.value.cure
    assert "wrong" not in f"{caught.value.message}{caught.value.cure}"


def test_a_wrong_sha256_is_no_file(hub, cache, tmp_path):
    file = (hub.url_of("org/tiny", "config.json"), "0" * 64)
    with open_source(config_of(file), tmp_path) as source, pytest.raises(LoadError, match="twice"):
        fetch(source, source.list_files().files, cache)


def test_the_sha256_of_the_config_is_part_of_the_lock(hub, cache, write_folder):
    url, sha256 = hub.url_of("org/tiny", "config.json"), hashlib.sha256(b"{}").hexdigest()
    folder = write_folder(f"type: http, files: [{{url: '{url}', sha256: '{sha256}', path: conf/a.json}}]")
    terms = Terms(cache=cache, offline=False)
    dirs = prepare(load_config(folder), folder, terms)
    assert (dirs["default"] / "conf" / "a.json").read_bytes() == b"{}"
    other = write_folder(f"type: http, files: [{{url: '{url}', sha256: '{'0' * 64}', path: conf/a.json}}]")
    with pytest.raises(ConfigError, match="another sha256"):
        prepare(load_config(other), other, terms)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.com/a/b.bin?x=1", "b.bin"),
        ("https://example.com/a%20b.json", "a b.json"),
        ("https://example.com/%2e%2e%2fpasswd", "../passwd"),
    ],
)
def test_a_file_is_called_like_the_end_of_its_url(url, name, tmp_path):
    config = config_of((url, "0" * 64))
    assert config.files[0].name == name
    if ".." in name:
        with pytest.raises(LoadError, match="outside"):
            open_source(config, tmp_path)


def test_no_files_are_no_checkpoint(tmp_path):
    with pytest.raises(LoadError, match=r"checkpoints\.files"):
        open_source(CheckpointConfig(type="http"), tmp_path)
