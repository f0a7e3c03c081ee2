"""Which engines there are, as data: what each is for, where its class is, and what has to be installed.

A class is named by an import string and loaded when it is chosen, so that listing the engines imports none of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from modelkit.config import EngineConfig
from modelkit.engines.base import Engine
from modelkit.errors import EngineError, UsageError, closest

__all__ = ["ENGINES", "EngineInfo", "create"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """One engine: `target` is "module:class", `libraries` the modules it imports, `extra` what installs them."""

    target: str
    summary: str
    libraries: tuple[str, ...] = ()
    extra: str = ""

    def missing_libraries(self) -> tuple[str, ...]:
        """Return those of `libraries` that this environment does not have."""
        return tuple(name for name in self.libraries if find_spec(name) is None)


ENGINES: Mapping[str, EngineInfo] = MappingProxyType(
    {
        "transformers": EngineInfo(
            target="modelkit.engines.transformers:TransformersEngine",
            summary="in this process, on a CPU or one accelerator, batching across callers",
            libraries=("torch", "transformers"),
            extra="transformers",
        ),
        "echo": EngineInfo(
            target="modelkit.engines.echo:EchoEngine",
            summary="no weights: streams the words of the last message back",
        ),
    }
)


def create(config: EngineConfig, checkpoint_dir: Path | None, model_id: str) -> Engine:
    """Make the engine that `config.name` names; nothing is loaded before `start`.

    Raises UsageError where this release has no such engine, EngineError where its libraries are not installed.
    """
    info = ENGINES.get(config.name)
    if info is None:
        guess = closest(config.name, list(ENGINES))
        hint = f"; did you mean '{guess}'?" if guess else ""
        raise UsageError(
            f"this release of modelkit has no engine '{config.name}'{hint}",
            cure=f"set engine.name in config.yaml to one of: {', '.join(ENGINES)}",
        )
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
