"""The same folder on another engine: what of its options stays, and what does not."""

from modelkit.config import Config, EngineConfig
from modelkit.engines.catalog import ENGINES
from modelkit.errors import UsageError, closest

__all__ = ["switch_engine"]

# Spelled as one engine has them, so they mean nothing to another.
_OWN_OPTIONS = (
    "args",
    "python",
    "version",
    "quantization",
    "kv_cache_dtype",
    "tool_call_parser",
    "reasoning_parser",
)
_LMDEPLOY_BACKENDS = ("turbomind", "pytorch")


def switch_engine(config: Config, name: str) -> tuple[Config, tuple[str, ...]]:
    """Return the config with another engine, and the options of the one before that were left out.

    `name` may tell LMDeploy's back end too: lmdeploy:pytorch. Raises UsageError where there is no such engine.
    """
    name, _, backend = name.partition(":")
    _check(name, backend)
    before = config.engine
    if before is None:
        raise UsageError("the model runs no engine", cure="add an 'engine' section to config.yaml")
    left_out: tuple[str, ...] = ()
    engine = before
    if before.name != name:
        default = EngineConfig(name="echo")
        left_out = tuple(key for key in _OWN_OPTIONS if getattr(before, key) != getattr(default, key))
        reset = {key: getattr(default, key) for key in left_out}
        engine = before.model_copy(update={"name": name, **reset})
    if backend:
        engine = engine.model_copy(update={"args": {**engine.args, "backend": backend}})
    return config.model_copy(update={"engine": engine}), left_out


def _check(name: str, backend: str) -> None:
    if name not in ENGINES:
        guess = closest(name, list(ENGINES))
        hint = f"; did you mean '{guess}'?" if guess else ""
        raise UsageError(f"there is no engine '{name}'{hint}", cure=f"use one of: {', '.join(ENGINES)}")
    if backend and (name != "lmdeploy" or backend not in _LMDEPLOY_BACKENDS):
        choices = ", ".join(f"lmdeploy:{known}" for known in _LMDEPLOY_BACKENDS)
        raise UsageError(
            f"there is no engine '{name}:{backend}'", cure=f"with a back end there are: {choices}"
        )
