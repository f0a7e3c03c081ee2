"""What a run notes of a folder that it serves."""

from contextlib import asynccontextmanager

import pytest

from modelkit.benchmark import subjects
from modelkit.benchmark.serving import Served
from modelkit.benchmark.subjects import FolderSource
from modelkit.benchmark.targets import TargetSpec
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
