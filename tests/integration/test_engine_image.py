"""An image of an engine's own: modelkit comes into it, and what was installed there stays as it was.

A real vLLM image is 20 GB and cannot be pulled here. What stands in for it has what matters: a Python with an engine, an
old pydantic that the engine needs, and a torch, all in the system's site-packages.
"""

import json

import pytest

from fixtures_docker import PYTHON_VERSION, build, running
from paths import ROOT

pytestmark = pytest.mark.timeout(400)

LIBRARY = "/usr/lib/python3/dist-packages"
MODEL = """
import pydantic
import torch

from modelkit import LLM, method


class Chat(LLM):
    @method
    def versions(self) -> list[str]:
        return [pydantic.VERSION, torch.__version__]
"""


@pytest.fixture(scope="module")
def engine_base(docker, base_image, tmp_path_factory):
    """An image with a vLLM of our own, in Docker's store."""
    context = tmp_path_factory.mktemp("engine")
    packages = {"vllm": "0.26.0", "pydantic": "1.0.0", "torch": "2.11.0"}
    for name, version in packages.items():
        (context / name).mkdir()
        (context / name / "__init__.py").write_text(f"__version__ = VERSION = '{version}'\n")
        (context / f"{name}-{version}.dist-info").mkdir()
        (context / f"{name}-{version}.dist-info/METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    server = context / "vllm/entrypoints/openai"
    server.mkdir(parents=True)
    for folder in (server, server.parent):
        (folder / "__init__.py").touch()
    (server / "api_server.py").write_text((ROOT / "tests/base_engine.py").read_text())
    tag = docker.tag()
    (context / "Dockerfile").write_text(
        f'FROM {base_image}\nCOPY --chown=0:0 . {LIBRARY}/\nENV OF_THE_BASE=yes\nENTRYPOINT ["vllm", "serve"]\n'
    )
    docker("build", "--quiet", "--tag", tag, str(context))
    return tag


def write_chat(folder, base, requirements):
    folder.mkdir()
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/config.json").write_text(json.dumps({"max_position_embeddings": 128}))
    (folder / "checkpoint/chat_template.jinja").write_text("{{ messages }}")
    (folder / "checkpoint/tokenizer.json").write_text("{}")
    (folder / "config.yaml").write_text(
        f"model: {{id: chat}}\nengine: {{name: vllm}}\nbuild: {{image: '{base}', python_version: '{PYTHON_VERSION}'}}\n"
        "checkpoints: {type: local, path: checkpoint}\n"
    )
    (folder / "model.py").write_text(MODEL)
    (folder / "requirements.txt").write_text(requirements)
    return folder


def check(client):
    """The engine runs on the base's libraries, modelkit on its own; model.py sees both."""
    pydantic, torch = client.methods.versions()
    assert int(pydantic.partition(".")[0]) >= 2
    assert torch == "2.11.0"
    messages = [{"role": "user", "content": "What are you?"}]
    assert client.methods.predict(messages=messages) == "pydantic 1.0.0 in /usr"


def test_modelkit_in_an_engines_image(docker, engine_base, tmp_path):
    folder = write_chat(tmp_path / "chat", engine_base, "vllm==0.26.0\ntorch>=2\n")
    tag = docker.tag()
    _, said = build(folder, "--builder", "docker", "--tag", tag, "-v")
    assert "vllm==0.26.0: left out of the dependencies, the base image has it" in said
    assert f"Requirement already satisfied: torch>=2 in {LIBRARY}" in said
    with running(docker, tag) as (_, client):
        check(client)


def test_the_other_builder_in_an_engines_image(docker, engine_base, registry, tmp_path):
    base = f"{registry.host}/test/engine:1"
    docker("tag", engine_base, base)
    docker("push", base)
    docker.tags.add(base)
    folder = write_chat(tmp_path / "chat", base, "vllm==0.26.0\n")
    tag = f"{registry.host}/test/chat:1"
    build(folder, "--builder", "oci", "--tag", tag, "--push")
    docker("pull", tag)
    docker.tags.add(tag)
    with running(docker, tag) as (name, client):
        check(client)
        assert "OF_THE_BASE=yes" in docker("exec", name, "env")
