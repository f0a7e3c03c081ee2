"""What a run notes of a folder that it serves."""

import hashlib
import json
from contextlib import asynccontextmanager

import pytest

from modelkit.benchmark import subjects
from modelkit.benchmark.serving import Served
from modelkit.benchmark.subjects import FolderSource
from modelkit.benchmark.targets import TargetSpec
from modelkit.engines.machine import Gpu
from modelkit.versions.record import content_digest


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "parrot"
    made.mkdir()
    (made / "config.yaml").write_text("model: {id: parrot}\nengine: {name: echo}\n")
    (made / "model.py").write_text("from modelkit import LLM\n\n\nclass Parrot(LLM):\n    pass\n")
    return made


@pytest.fixture
def served(monkeypatch):
    """Return a function that has folders "served" by nobody, with something that happens meanwhile."""

    def serve(meanwhile=lambda: None, **values):
        @asynccontextmanager
        async def serving(*_):
            meanwhile()
            yield Served("127.0.0.1:1", "http://127.0.0.1:2", 1, 0.5, **values)

        monkeypatch.setattr(subjects, "serving", serving)

    return serve


async def infos(folder, protocols=("grpc",)):
    source = FolderSource(
        folder=folder, engine=None, protocols=protocols, base=TargetSpec(protocol="grpc", address="")
    )
    async with source.open(folder.parent, lambda _: None) as found:
        return [each.info for each in found]


async def test_a_folder_that_changes_while_its_server_starts_is_of_no_known_content(folder, served):
    served()
    (info,) = await infos(folder)
    assert info["content_digest"] == content_digest(folder)
    served(lambda: (folder / "notes.md").write_text("edited"))
    (info,) = await infos(folder)
    assert info["content_digest"] is None


async def test_what_a_server_warns_of_is_noted_of_all_that_it_serves(folder, served):
    served(warnings=("runs on something else",))
    found = await infos(folder, ("grpc", "http"))
    assert [each["warnings"] for each in found] == [["runs on something else"]] * 2


async def test_the_architecture_and_the_memory_before_the_start_are_noted(folder, served, monkeypatch):
    def gpus(*used):
        found = tuple(Gpu("A", 100, "5", each) for each in used)
        monkeypatch.setattr("modelkit.engines.machine.nvidia_gpus", lambda: found)

    gpus()
    served()
    (info,) = await infos(folder)
    assert (info["config_hash"], info["gpu_used_before_bytes"]) == (None, None)
    (folder / "checkpoint").mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "checkpoint/config.json").write_text(json.dumps(config, indent=4))
    with (folder / "config.yaml").open("a") as file:
        file.write("checkpoints: {type: local, path: checkpoint}\n")
    gpus(3, 4)
    served(lambda: gpus(90, 90))
    (info,) = await infos(folder)
    canonical = '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'
    assert info["config_hash"] == hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert info["gpu_used_before_bytes"] == 7
