"""Credentials: found where docker and podman keep them, shown to nobody, written nowhere."""

import base64
import json

import pytest

from modelkit.errors import UsageError
from modelkit.registry.credentials import find_credential
from modelkit.registry.failures import AccessError


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    for name in ("DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def encoded(username, password):
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def write_docker(places, document):
    (places / "docker").mkdir(exist_ok=True)
    (places / "docker/config.json").write_text(
        document if isinstance(document, str) else json.dumps(document)
    )


def write_helper(places, monkeypatch, name, script):
    folder = places / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_without_any_there_is_none():
    assert find_credential("ghcr.io") is None


@pytest.mark.parametrize("key", ["ghcr.io", "https://ghcr.io", "https://ghcr.io/v1/", "https://ghcr.io/v2/"])
def test_from_docker_login(places, key):
    write_docker(places, {"auths": {key: encoded("ada", "pa:ss")}})
    found = find_credential("ghcr.io")
    assert (found.username, found.password) == ("ada", "pa:ss")


def test_docker_hub_has_a_key_of_its_own(places):
    write_docker(places, {"auths": {"https://index.docker.io/v1/": encoded("ada", "x")}})
    assert find_credential("docker.io").username == "ada"
    assert find_credential("ghcr.io") is None


def test_podman_has_entries_for_single_repositories(places, monkeypatch):
    auths = {"ghcr.io": encoded("all", "x"), "ghcr.io/team/chat": encoded("one", "x")}
    (places / "auth.json").write_text(json.dumps({"auths": auths}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(places / "auth.json"))
    assert find_credential("ghcr.io", "team/chat").username == "one"
    assert find_credential("ghcr.io", "team/other").username == "all"


def test_a_helper_for_one_registry_goes_before_the_rest(places, monkeypatch):
    write_helper(
        places,
        monkeypatch,
        "keys",
        """read key; echo "{\\"Username\\": \\"$key\\", \\"Secret\\": \\"s\\"}" """,
    )
    write_docker(places, {"credHelpers": {"ghcr.io": "keys"}, "auths": {"ghcr.io": encoded("file", "x")}})
    assert find_credential("ghcr.io").username == "ghcr.io"


def test_a_store_that_knows_nothing_leaves_the_others(places, monkeypatch):
    write_helper(places, monkeypatch, "none", "echo 'credentials not found in native keychain'; exit 1")
    write_docker(places, {"credsStore": "none", "auths": {"ghcr.io": encoded("file", "x"), "quay.io": {}}})
    assert find_credential("ghcr.io").username == "file"
    assert find_credential("quay.io") is None


def test_a_helper_may_give_a_token(places, monkeypatch):
    write_helper(places, monkeypatch, "tok", """echo '{"Username": "<token>", "Secret": "refresh"}' """)
    write_docker(places, {"credsStore": "tok"})
    assert find_credential("ghcr.io").identity_token == "refresh"


def test_a_helper_that_is_not_there_is_named(places):
    write_docker(places, {"credsStore": "nowhere-at-all"})
    with pytest.raises(AccessError, match="docker-credential-nowhere-at-all") as caught:
        find_credential("ghcr.io")
    assert "log in again" in caught.value.cure


def test_a_helper_that_fails_says_why(places, monkeypatch):
    write_helper(places, monkeypatch, "locked", "echo 'the keychain is locked' >&2; exit 1")
    write_docker(places, {"credsStore": "locked"})
    with pytest.raises(AccessError, match="the keychain is locked"):
        find_credential("ghcr.io")


def test_the_environment_holds_for_one_registry_alone(monkeypatch):
    monkeypatch.setenv("MODELKIT_REGISTRY_USERNAME", "ci")
    monkeypatch.setenv("MODELKIT_REGISTRY_PASSWORD", "secret")
    with pytest.raises(UsageError, match="does not say for which registry"):
        find_credential("ghcr.io")
    monkeypatch.setenv("MODELKIT_REGISTRY_HOST", "ghcr.io")
    assert find_credential("ghcr.io").username == "ci"
    assert find_credential("docker.io") is None


def test_docker_auth_config(monkeypatch):
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {"ghcr.io": encoded("inline", "x")}}))
    assert find_credential("ghcr.io").username == "inline"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"auths": {"ghcr.io": {"auth": "c2VjcmV0', "not valid JSON"),
        ('{"auths": {"ghcr.io": {"auth": "not base64!"}}}', "is damaged"),
        ("[]", "no JSON object"),
    ],
)
def test_a_damaged_file_is_named_and_not_quoted(places, text, message):
    write_docker(places, text)
    with pytest.raises(UsageError, match=message) as caught:
        find_credential("ghcr.io")
    assert "c2VjcmV0" not in str(caught.value)
    assert "not base64!" not in str(caught.value)


def test_a_credential_shows_no_secret(places):
    write_docker(places, {"auths": {"ghcr.io": encoded("ada", "hunter2") | {"identitytoken": "tok-hunter2"}}})
    found = find_credential("ghcr.io")
    assert found.identity_token == "tok-hunter2"
    assert "hunter2" not in repr(found)


def test_nothing_is_written(places):
    write_docker(places, {"auths": {"ghcr.io": encoded("ada", "x")}})
    before = {path: path.read_bytes() for path in places.rglob("*") if path.is_file()}
    find_credential("ghcr.io")
    assert {path: path.read_bytes() for path in places.rglob("*") if path.is_file()} == before
