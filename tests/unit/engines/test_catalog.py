import json
import subprocess
import sys
from importlib import import_module

import pytest

from modelkit.config import EngineConfig
from modelkit.engines import ENGINES, Engine, create
from modelkit.engines import catalog as catalog_module
from modelkit.errors import EngineError, UsageError

HEAVY = ("torch", "transformers", "tokenizers", "numpy", "huggingface_hub", "grpc", "jinja2")


def modules_loaded_by(code: str) -> set[str]:
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    return set(json.loads(output))


@pytest.mark.parametrize(
    "code",
    [
        "import modelkit.engines",
        "import modelkit.checkpoints",
        "from modelkit import LLM",
        "from modelkit import config, engines; engines.create(config.EngineConfig(name='echo'), None, 'x')",
    ],
)
def test_nothing_heavy_is_loaded_before_an_engine_starts(code):
    assert not modules_loaded_by(code) & set(HEAVY)


def test_making_the_transformers_engine_loads_no_torch():
    pytest.importorskip("torch")
    loaded = modules_loaded_by(
        "from modelkit import config, engines; engines.create(config.EngineConfig(name='transformers'), None, 'x')"
    )
    assert not loaded & {"torch", "transformers"}


@pytest.mark.parametrize("name", ENGINES)
def test_every_target_is_an_engine_of_that_name(name):
    module, _, attribute = ENGINES[name].target.partition(":")
    engine = getattr(import_module(module), attribute)
    assert issubclass(engine, Engine)
    assert engine.name == name


@pytest.mark.parametrize("name", ["vllm", "sglang", "lmdeploy", "openai"])
def test_an_engine_of_a_later_release_is_refused_with_those_there_are(name):
    if name in ENGINES:
        pytest.skip("there now")
    with pytest.raises(UsageError, match=name) as caught:
        create(EngineConfig(name=name), None, "x")
    assert "transformers" in caught.value.cure


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(catalog_module, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match="torch and transformers") as caught:
        create(EngineConfig(name="transformers"), None, "x")
    assert caught.value.cure == "pip install 'modelkit-sdk[transformers]'"
