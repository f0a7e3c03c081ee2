"""How a replica finds what it runs, and its secrets."""

import os

from modelkit.config import Config
from modelkit.deploy.ray_serve.content import package_uri, split_package
from modelkit.deploy.ray_serve.secrets import find_secret, give_secrets
from modelkit.deploy.record import DeploymentSpec


def test_the_name_of_a_package_is_that_of_its_content(tmp_path):
    uri = package_uri(b"content")
    assert uri == package_uri(b"content") != package_uri(b"other")
    assert split_package(uri) == (uri, None)
    assert split_package(package_uri(b"content", tmp_path)) == (uri, tmp_path)


def test_a_version_is_no_package():
    assert split_package("registry.example.com/team/chat@sha256:" + "0" * 64) is None
    assert split_package("gcs://other.zip") is None


def test_secrets_come_from_the_environment_or_from_files(tmp_path, monkeypatch):
    (tmp_path / "FROM_FILE").write_text("in the file\n")
    (tmp_path / "FROM_BOTH").write_text("in the file")
    monkeypatch.setenv("MODELKIT_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("FROM_BOTH", "in the environment")
    monkeypatch.delenv("FROM_FILE", raising=False)
    assert find_secret("FROM_FILE") == "in the file"
    monkeypatch.setenv("FROM_ENV", "in the environment")
    assert find_secret("FROM_BOTH") == "in the file"  # a key that was changed since the node has started
    assert find_secret("FROM_ENV") == "in the environment"
    assert find_secret("NOWHERE") is None


def test_all_secrets_of_a_config_are_given_and_the_missing_told(tmp_path, monkeypatch):
    config = Config.model_validate(
        {
            "model": {"id": "m"},
            "engine": {"name": "openai", "api_key_env": "UPSTREAM_KEY"},
            "checkpoints": {"type": "huggingface", "repo_id": "org/m", "token_env": "HUB_TOKEN"},
            "secrets": [{"env_var": "HUB_TOKEN"}, {"env_var": "ABSENT"}],
        }
    )
    (tmp_path / "HUB_TOKEN").write_text("t")
    monkeypatch.setenv("MODELKIT_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("UPSTREAM_KEY", "u")
    monkeypatch.setenv("HUB_TOKEN", "")
    spec = DeploymentSpec(
        name="m",
        model_id="m",
        version="v1",
        digest="1",
        config=config.model_dump(mode="json"),
        api_key_env="KEY",
    )
    assert give_secrets(spec.variables()) == ["ABSENT", "KEY"]
    assert os.environ["HUB_TOKEN"] == "t"
