"""Base of the engines that modelkit runs as a server process of their own: vLLM, SGLang, LMDeploy, TGI.

An adapter is a short file of facts: the command, its flags, the stages its log tells, and what its server does
differently from the others.
"""

import asyncio
import hashlib
import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import orjson

from modelkit.config import EngineConfig
from modelkit.engines.environments import find_python
from modelkit.engines.flags import Flags, render_args, render_options
from modelkit.engines.openai import OpenAIEngine
from modelkit.engines.process import EngineProcess, Launch, Stage
from modelkit.engines.upstream import Upstream
from modelkit.errors import CallError, EngineError, InvalidArgumentError, LoadError, UnimplementedError

__all__ = ["ChildEngine"]

_log = logging.getLogger("modelkit.engine")

# Answers that show the server alive, though it has no text completions: an embedding model's, for one.
_ALIVE = (InvalidArgumentError, UnimplementedError)


class ChildEngine(OpenAIEngine):
    """Runs an engine's OpenAI server as a child process and speaks to it over the loopback interface."""

    # The flags of the options that all engines have in common.
    flags: ClassVar[Flags]
    # What the engine's log says of its start, in order.
    stages: ClassVar[Sequence[Stage]] = ()
    health_path: ClassVar[str] = "/health"

    def __init__(self, config: EngineConfig, checkpoint_dir: Path | None, model_id: str) -> None:
        super().__init__(config, checkpoint_dir, model_id)
        self.served_name = model_id
        self.process: EngineProcess | None = None
        self.on_stage: Callable[[str], None] = lambda stage: _log.info("%s: %s", self.name, stage)
        self.on_health: Callable[[bool, str], None] = lambda _, __: None
        self._python = ""

    @abstractmethod
    def command(self, python: str, port: int) -> list[str]:
        """Return the command that starts the server, without the options."""

    def environment(self) -> Mapping[str, str]:
        """Return what the server's environment has beside this process's."""
        return {}

    async def start(self) -> None:
        """Find the engine's Python, start the server, wait for its first token. Raises EngineError or LoadError."""
        if self.checkpoint_dir is None:
            raise LoadError(f"the engine '{self.name}' needs a checkpoint", cure="add 'checkpoints' to config.yaml")
        if self.config.trust_remote_code:
            _log.warning("engine.trust_remote_code is on: Python code of the checkpoint runs with your rights")
        self._python = await asyncio.to_thread(find_python, self.name, self.config, self.on_stage)
        self.upstream = Upstream(self.name, "")
        self.process = EngineProcess(
            self.name,
            self._launch,
            probe=self._probe,
            start_timeout_s=self.config.start_timeout_s,
            log_path=_log_path(self.name, self.model_id, self.checkpoint_dir),
            on_stage=self.on_stage,
            on_health=self.on_health,
        )
        await self.process.start()

    async def close(self) -> None:
        """End the server and everything it started."""
        await super().close()
        if self.process is not None:
            await self.process.stop()

    def arguments(self) -> list[str]:
        """Return the options of config.yaml as this engine's arguments. Raises UsageError for one it does not have."""
        options = self.config.model_dump(include=set(self.flags))
        return render_options(self.name, self.flags, options) + render_args(self.config.args)

    def _launch(self, port: int) -> Launch:
        return Launch(
            command=[*self.command(self._python, port), *self.arguments()],
            port=port,
            health_path=self.health_path,
            environment={"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **self.environment()},
            stages=self.stages,
        )

    async def _probe(self, url: str) -> None:
        """Ask for one token: an engine that is broken inside may still say that it is healthy."""
        self.upstream.url = url
        body: dict[str, Any] = {"model": self.served_name, "prompt": "Hi", "max_tokens": 1, "temperature": 0}
        try:
            await self.upstream.post("/completions", orjson.dumps(self.adapt(body)))
        except _ALIVE as error:
            _log.debug("%s answers, but not with text: %s", self.name, error.message)
        except CallError as error:
            raise EngineError(f"{self.name} started, but fails on a first request: {error.message}") from error


def _log_path(engine: str, model_id: str, checkpoint_dir: Path) -> Path:
    """Return where an engine's log goes: one file a model folder, so that two models do not mix."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    mark = hashlib.sha256(str(checkpoint_dir.resolve()).encode()).hexdigest()[:8]
    return state / "modelkit" / "logs" / f"{model_id}-{engine}-{mark}-{os.getpid()}.log"
