"""The templates of the engines share their text, and differ where the engines do."""

import difflib

import pytest

from modelkit.cli.app import main
from modelkit.cli.init import ENGINE_BASE
from modelkit.config import load_config
from modelkit.engines import ENGINES
from modelkit.resources import template_names, templates_dir

SERVERS = ["vllm", "sglang", "lmdeploy", "tgi"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scaffold(folder, engine, *arguments):
    assert main(["init", str(folder / engine), "--engine", engine, *arguments]) == 0
    return {
        name: (folder / engine / name).read_text() for name in ("config.yaml", "model.py", "requirements.txt")
    }


def test_every_engine_has_a_template_but_the_one_for_tests():
    assert set(template_names()) == {*ENGINES, "python"} - {"echo"}


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "echo"])
def test_model_py_is_one_file(here, engine):
    assert not (templates_dir() / engine / "model.py").exists()
    assert scaffold(here, engine)["model.py"] == (templates_dir() / ENGINE_BASE / "model.py").read_text()


@pytest.mark.parametrize("engine", SERVERS[1:])
def test_configs_differ_where_the_engines_do(here, engine):
    one, other = (scaffold(here, name)["config.yaml"].splitlines() for name in ("vllm", engine))
    changed = [line[2:].strip() for line in difflib.ndiff(one, other) if line[0] in "+-"]
    allowed = (
        "id: ",
        "name: ",
        "# version: ",
        "# gpu_memory_utilization: ",
        "# tool_call_parser: ",
        "# args: ",
    )
    assert [line for line in changed if not line.startswith(allowed)] == []


@pytest.mark.parametrize("engine", ["vllm", "sglang", "lmdeploy"])
def test_the_version_is_the_catalogs(here, engine):
    version = ENGINES[engine].builds["gpu"].version
    files = scaffold(here, engine)
    assert f"\n{engine}=={version}\n" in files["requirements.txt"]
    assert f"\n  # version: {version} " in files["config.yaml"]


@pytest.mark.parametrize("engine", SERVERS)
def test_a_checkpoint_folder_is_taken(here, engine):
    (here / "weights").mkdir()
    scaffold(here, engine, "--model", "./weights")
    config = load_config(here / engine)
    assert config.engine.name == engine
    assert (config.checkpoints.type, config.checkpoints.path) == ("local", "../weights")
    assert config.compute.num_accelerators == 1


@pytest.mark.parametrize(("arguments", "model"), [([], None), (["--model", "gpt-5: mini"], "gpt-5: mini")])
def test_a_model_of_a_server_that_runs_is_named(here, arguments, model):
    scaffold(here, "openai", *arguments)
    config = load_config(here / "openai")
    assert (config.engine.name, config.engine.model, config.checkpoints) == ("openai", model, None)
    assert main(["validate", "openai", "--strict"]) == 0


@pytest.mark.parametrize(
    ("engine", "first"),
    [
        ("vllm", "modelkit engines install vllm"),
        ("tgi", "modelkit validate tgi"),
        ("openai", "modelkit validate openai"),
        ("transformers", "pip install -r transformers/requirements.txt"),
    ],
)
def test_the_first_thing_to_do_next(here, capsys, engine, first):
    assert main(["init", engine, "--engine", engine]) == 0
    steps = capsys.readouterr().err.partition("Next:\n")[2]
    assert steps.splitlines()[0].strip() == first
