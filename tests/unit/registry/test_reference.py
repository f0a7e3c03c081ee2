"""References: docker's rules for images, folders for models."""

from pathlib import Path

import pytest

from modelkit.errors import UsageError
from modelkit.registry import LayoutReference, Reference, parse_image, parse_reference
from modelkit.registry.reference import registry_dir

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.12-slim", "docker.io/library/python:3.12-slim"),
        ("vllm/vllm-openai:v0.26.0", "docker.io/vllm/vllm-openai:v0.26.0"),
        ("index.docker.io/library/python", "docker.io/library/python:latest"),
        ("localhost/a", "localhost/a:latest"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("ghcr.io/a/b@" + DIGEST, "ghcr.io/a/b@" + DIGEST),
        ("ghcr.io/a/b:v1@" + DIGEST, "ghcr.io/a/b:v1@" + DIGEST),
        ("[::1]:5000/a:b", "[::1]:5000/a:b"),
    ],
)
def test_an_image_is_named_as_docker_names_it(text, expected):
    assert str(parse_image(text)) == expected


def test_a_model_without_a_registry_is_a_folder_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("MODELKIT_REGISTRY_DIR", str(tmp_path))
    reference = parse_reference("team/chat:v3")
    assert reference == LayoutReference(tmp_path / "team/chat", "v3")
    assert str(reference) == "team/chat:v3"


def test_the_usual_place_is_below_the_home_folder(monkeypatch):
    monkeypatch.delenv("MODELKIT_REGISTRY_DIR", raising=False)
    assert registry_dir() == Path.home() / ".modelkit/registry"


@pytest.mark.parametrize("text", ["oci:/srv/chat:v3", "/srv/chat:v3"])
def test_a_folder_can_be_named_by_its_path(text):
    reference = parse_reference(text)
    assert reference == LayoutReference(Path("/srv/chat"), "v3")
    assert str(reference) == "oci:/srv/chat:v3"


def test_a_relative_folder_is_relative_to_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse_reference("./kept") == LayoutReference(tmp_path / "kept")


def test_a_model_in_a_registry():
    assert parse_reference("ghcr.io/a/chat") == Reference("ghcr.io", "a/chat")
    assert parse_reference("localhost:5000/chat:v1").at(tag="v2") == Reference("localhost:5000", "chat", "v2")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:80", True),
        ("[::1]:1", True),
        ("::2", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com:80", False),
    ],
)
def test_only_this_machine_is_loopback(host, expected):
    assert Reference(host, "a").is_loopback is expected


@pytest.mark.parametrize(
    ("text", "message", "cure"),
    [
        ("ghcr.io/Ada/Chat:v1", "upper-case", "write ghcr.io/ada/chat:v1"),
        ("Chat", "upper-case", "write chat"),
        ("ghcr.io/a//b", "not a repository name", "lower-case letters"),
        ("ghcr.io/", "not a repository name", "lower-case letters"),
        ("chat:", "is not a tag", "128"),
        ("chat:.x", "is not a tag", "128"),
        ("chat:" + "x" * 129, "is not a tag", "128"),
        ("chat@sha256:12", "not a digest", "64 hexadecimal"),
        ("a_.b:80/c", "not a registry", "HOST"),
        ("https://ghcr.io/a", "not a", "HOST"),
        ("oci:", "names no folder", "oci:FOLDER:TAG"),
        ("x" * 256, "not a repository name", "lower-case"),
    ],
)
def test_what_is_wrong_is_named_with_the_cure(text, message, cure):
    with pytest.raises(UsageError, match=message) as caught:
        parse_reference(text)
    assert cure in caught.value.cure
