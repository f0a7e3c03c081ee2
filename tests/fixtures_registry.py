"""Fixtures: a real registry for all tests of a session (each uses repositories of its own), and one with a password."""

import shutil
import subprocess
import uuid

import pytest

from registry_proxy import RegistryProxy
from registry_server import RegistryServer, is_installed

USER, PASSWORD = "ada", "difference-engine-1842"


def _needs_registry() -> None:
    if not is_installed():
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    _needs_registry()
    server = RegistryServer(tmp_path_factory.mktemp("registry")).start()
    yield server
    server.kill()


@pytest.fixture
def own_registry(tmp_path):
    """A registry that the test may kill."""
    _needs_registry()
    server = RegistryServer(tmp_path / "registry").start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def private_registry(tmp_path_factory):
    """A registry that wants USER and PASSWORD."""
    _needs_registry()
    if shutil.which("htpasswd") is None:
        pytest.skip("htpasswd is not installed (apt-get install apache2-utils)")
    folder = tmp_path_factory.mktemp("private-registry")
    users = subprocess.run(
        ["htpasswd", "-Bbn", USER, PASSWORD], capture_output=True, text=True, check=True
    ).stdout
    (folder / "users").write_text(users)
    auth = {"htpasswd": {"realm": "test", "path": str(folder / "users")}}
    server = RegistryServer(folder, auth=auth).start()
    yield server
    server.kill()


@pytest.fixture
def repository(registry):
    """A reference to a repository that no other test uses."""
    return registry.reference(f"test/{uuid.uuid4().hex[:12]}")


@pytest.fixture
def logged_in(private_registry, tmp_path, monkeypatch):
    """The private registry, with a docker config.json that knows the password."""
    import base64
    import json

    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text(
        json.dumps({"auths": {private_registry.host: {"auth": auth}}})
    )
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return private_registry


@pytest.fixture
def proxy(registry):
    """A proxy of this test before the common registry."""
    made = RegistryProxy(registry.port)
    yield made
    made.close()
