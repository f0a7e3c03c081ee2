"""The catalog is complete, its facts agree with each other, and reading it imports no engine."""

import subprocess
import sys
import tomllib
from importlib import import_module
from typing import get_args

import pytest

from modelkit.config import EngineConfig, EngineName
from modelkit.config.rules import ACCELERATOR_ENGINES, INSTALLED_ENGINES
from modelkit.engines import ENGINES, Engine, create
from modelkit.engines.catalog import EngineInfo
from modelkit.errors import EngineError
from paths import ROOT

HEAVY = {"torch", "transformers", "tokenizers", "numpy", "huggingface_hub", "grpc", "jinja2"}
ENGINE_LIBRARIES = {"aiohttp", "lmdeploy", "sglang", "vllm"}


def modules_loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import modelkit.engines",
        "import modelkit.checkpoints",
        "from modelkit import LLM",
        "from modelkit import config, engines; engines.create(config.EngineConfig(name='echo'), None, 'x')",
        "from modelkit import engines; [info.version_here() for info in engines.ENGINES.values()]",
        "import modelkit.engines.environments",
    ],
)
def test_nothing_heavy_is_loaded_before_an_engine_starts(code):
    assert not modules_loaded_by(code) & (HEAVY | ENGINE_LIBRARIES)


def test_making_the_transformers_engine_loads_no_torch():
    pytest.importorskip("torch")
    loaded = modules_loaded_by(
        "from modelkit import config, engines; engines.create(config.EngineConfig(name='transformers'), None, 'x')"
    )
    assert not loaded & {"torch", "transformers"}


def test_every_engine_that_config_yaml_takes_is_there():
    assert set(ENGINES) == set(get_args(EngineName))


@pytest.mark.parametrize("name", ENGINES)
def test_a_target_is_the_class_of_that_name(name):
    module, _, class_name = ENGINES[name].target.partition(":")
    engine_class = getattr(import_module(module), class_name)
    assert issubclass(engine_class, Engine)
    assert engine_class.name == name


def test_the_rules_of_config_yaml_know_the_same_engines():
    assert {name for name, info in ENGINES.items() if info.builds} == INSTALLED_ENGINES
    assert {name for name, info in ENGINES.items() if info.builds or info.needs_gpu} == ACCELERATOR_ENGINES


def test_an_engine_with_a_build_for_cpus_needs_no_gpu():
    assert [name for name, info in ENGINES.items() if info.needs_gpu and "cpu" in info.builds] == []
    assert [
        n for n, info in ENGINES.items() if info.builds and "cpu" not in info.builds and not info.needs_gpu
    ] == []


@pytest.mark.parametrize("name", ENGINES)
def test_images_are_pinned(name):
    repository, _, tag = ENGINES[name].image.partition(":")
    assert repository
    assert tag not in {"", "latest"}


def test_an_image_has_the_version_that_is_installed():
    for name, info in ENGINES.items():
        if info.builds:
            assert info.image.endswith(f":v{info.builds['gpu'].version}"), name


def test_every_extra_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {info.extra for info in ENGINES.values() if info.extra} <= set(extras)
    for name in INSTALLED_ENGINES:
        (requirement,) = extras[name]
        oldest = requirement.partition(">=")[2]
        assert ENGINES[name].builds["gpu"].version.startswith(oldest), (
            "the version tested is the oldest one taken"
        )


def test_missing_libraries_are_named_with_what_installs_them(monkeypatch):
    needy = EngineInfo(target="x:y", summary="", image="", libraries=("no_such_a", "no_such_b"), extra="some")
    monkeypatch.setattr("modelkit.engines.catalog.ENGINES", {"echo": needy})
    with pytest.raises(EngineError, match="needs no_such_a and no_such_b, which are not installed") as caught:
        create(EngineConfig(name="echo"), None, "x")
    assert caught.value.cure == "pip install 'modelkit-sdk[some]'"


def test_a_folder_of_an_engines_name_is_not_the_engine(tmp_path, monkeypatch):
    (tmp_path / "sglang").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert EngineInfo(target="", summary="", image="", module="sglang").version_here() is None


def test_the_version_that_is_installed_here():
    assert EngineInfo(target="", summary="", image="", module="pytest").version_here() == pytest.__version__
    assert ENGINES["echo"].version_here() is None
