"""Base of the engines that modelkit runs as a server process of their own: vLLM, SGLang, LMDeploy, TGI.

An adapter is a short file of facts: the command, its flags, what its log tells of the start, and what its server does
differently from the others.
"""

import asyncio
import logging
import os
import secrets
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import orjson

from modelkit.config import EngineConfig
from modelkit.engines._with_key import KEY_VARIABLE
from modelkit.engines.engine_log import Deviation, Stage
from modelkit.engines.environments import find_python, installed_version
from modelkit.engines.flags import Flags, render_args, render_options
from modelkit.engines.openai import OpenAIEngine
from modelkit.engines.process import EngineProcess, Launch
from modelkit.engines.sampling import SamplingParams
from modelkit.engines.upstream import Upstream
from modelkit.errors import (
    CallError,
    EngineError,
    InvalidArgumentError,
    LoadError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
    UnimplementedError,
    UsageError,
)

__all__ = ["ChildEngine", "room_by_tokenizer"]

_log = logging.getLogger("modelkit.engine")

_WITH_KEY = Path(__file__).with_name("_with_key.py")

# Answers that show the server alive, though it gives no text: an embedding model's, or a busy one's.
_ALIVE = (InvalidArgumentError, NotFoundError, OverloadedError, UnimplementedError)


class ChildEngine(OpenAIEngine):
    """Runs an engine's OpenAI server as a child process and speaks to it over the loopback interface."""

    # The flags of the options that all engines have in common.
    flags: ClassVar[Flags]
    # What the engine's log says of its start, in order.
    stages: ClassVar[Sequence[Stage]] = ()
    health_path: ClassVar[str] = "/health"
    # The environment variable that gives the server its key.
    key_variable: ClassVar[str] = KEY_VARIABLE
    # The option for it, where the server has no such variable: then its module is run by `_with_key`.
    key_option: ClassVar[str] = ""
    # The environment variable for a folder that is deleted with the server, where it leaves files behind.
    scratch_variable: ClassVar[str] = ""

    def __init__(self, config: EngineConfig, checkpoint_dir: Path | None, model_id: str) -> None:
        super().__init__(config, checkpoint_dir, model_id)
        self.served_name = model_id
        self.process: EngineProcess | None = None
        self._python = ""
        # What is started, where it is a version of a Python package.
        self.version: str | None = None

    @abstractmethod
    def command(self, python: str, port: int) -> list[str]:
        """Return the command that starts the server, without the options."""

    def environment(self) -> Mapping[str, str]:
        """Return what the server's environment has beside this process's."""
        return {}

    @property
    def deviations(self) -> Sequence[Deviation]:
        """What the engine's log says where the engine does something else than it is told here."""
        return ()

    @property
    def takes_key(self) -> bool:
        """Whether the server can be given a key, with which nobody but modelkit can use its port."""
        return True

    def run_module(self, python: str, module: str) -> list[str]:
        """Return how a module of the engine is run, with the server's key where that is an option of it."""
        if self.key_option and self.takes_key:
            return [python, str(_WITH_KEY), self.key_option, module]
        return [python, "-m", module]

    def arg(self, name: str, default: Any = None) -> Any:
        """Return one of `engine.args`, however its dashes are written."""
        spelled = {key.lstrip("-").replace("_", "-"): value for key, value in self.config.args.items()}
        return spelled.get(name, default)

    async def start(self) -> None:
        """Find the engine's Python, start the server, wait for its first token.

        Raises UsageError for an option that the engine does not have, LoadError without a checkpoint, else EngineError.
        """
        if self.checkpoint_dir is None:
            raise LoadError(
                f"the engine '{self.name}' needs a checkpoint", cure="add 'checkpoints' to config.yaml"
            )
        self.arguments()
        if self.config.trust_remote_code:
            _log.warning(
                "engine.trust_remote_code is on: Python code of the checkpoint runs with your rights"
            )
        self._python = await asyncio.to_thread(find_python, self.name, self.config, self.on_stage)
        self.version = await asyncio.to_thread(installed_version, self.name, self.config)
        self.upstream = Upstream(self.name, "")
        self.process = EngineProcess(
            self.name,
            self._launch,
            probe=self._probe,
            start_timeout_s=self.config.start_timeout_s,
            log_path=_log_path(self.name, self.model_id),
            traffic=self.upstream.traffic,
            on_stage=self.on_stage,
            on_health=self._hear_health,
            on_given_up=self._hear_given_up,
        )
        await self.process.start()

    async def close(self) -> None:
        """End the server and everything it started."""
        self.down_reason = f"{self.name} is stopped"
        await super().close()
        if self.process is not None:
            await self.process.stop()

    @cached_property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint brings a chat template, or the options name one."""
        assert self.checkpoint_dir is not None
        if self.arg("chat-template") is not None:
            return True
        if any(
            (self.checkpoint_dir / name).exists() for name in ("chat_template.jinja", "chat_template.json")
        ):
            return True
        try:
            tokenizer = orjson.loads((self.checkpoint_dir / "tokenizer_config.json").read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return False
        return bool(tokenizer.get("chat_template"))

    def arguments(self) -> list[str]:
        """Return the options of config.yaml as this engine's arguments. Raises UsageError for one it does not have."""
        for name in ("api-key", "api-keys"):
            if self.arg(name) is not None:
                raise UsageError(
                    f"engine.args.{name}: the engine's port gets a new key at each start, which only modelkit knows",
                    cure="leave it out; the key of your callers is `modelkit serve --api-key-env NAME`",
                )
        options = self.config.model_dump(include=set(self.flags))
        return render_options(self.name, self.flags, options) + render_args(self.config.args)

    def sampling_fields(self, sampling: SamplingParams) -> dict[str, Any]:
        """Return every field, the checkpoint's own values filled in: so the answer is the same on every engine."""
        resolved = sampling.resolve(self.sampling_defaults)
        always = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        fields: dict[str, Any] = {name: getattr(resolved, name) for name in always}
        asked = ("max_tokens", "min_tokens", "presence_penalty", "frequency_penalty", "stop", "ignore_eos")
        fields |= {name: value for name in asked if (value := getattr(resolved, name))}
        return fields if resolved.seed is None else fields | {"seed": resolved.seed}

    def sampled_defaults(self) -> Mapping[str, Any]:
        """Return the checkpoint's own values, greedy where it has none."""
        return self.sampling_defaults

    def _hear_health(self, is_well: bool, reason: str) -> None:
        self.down_reason = "" if is_well else reason

    def _hear_given_up(self, reason: str) -> None:
        self.dead_reason = reason

    def _launch(self, port: int) -> Launch:
        api_key = secrets.token_hex(24) if self.takes_key else ""
        self.upstream.use_key(api_key)
        # An interpreter without its folder on the PATH finds no ninja, with which engines compile kernels.
        path = f"{Path(self._python).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return Launch(
            command=[*self.command(self._python, port), *self.arguments()],
            port=port,
            health_path=self.health_path,
            api_key=api_key,
            scratch_variable=self.scratch_variable,
            environment={
                **({self.key_variable: api_key} if api_key else {}),
                "PATH": path,
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                # A crash in a kernel says where it was.
                "PYTHONFAULTHANDLER": "1",
                # No file of the working directory is taken for a library of the engine's.
                "PYTHONSAFEPATH": "1",
                # modelkit's own import path is for modelkit's interpreter, not for another one.
                **({} if self._python == sys.executable else {"PYTHONPATH": ""}),
                **self.environment(),
            },
            stages=self.stages,
            deviations=self.deviations,
        )

    async def _probe(self, url: str) -> None:
        """Ask for one token: an engine that is broken inside may still say that it is healthy."""
        self.upstream.url = url
        body: dict[str, Any] = {"model": self.served_name, "prompt": "Hi", "max_tokens": 1, "temperature": 0}
        try:
            await self.upstream.post("/completions", orjson.dumps(self.adapt(body)))
        except _ALIVE as error:
            _log.debug("%s answers, but not with text: %s", self.name, error.message)
        except UnavailableError:
            raise
        except CallError as error:
            raise EngineError(f"{self.name} is there, but fails on a request: {error.message}") from error


async def room_by_tokenizer(upstream: Upstream, served_name: str, prompt: str | list[int]) -> int | None:
    """Return how many tokens may follow a prompt, by what a server's /tokenize says of a text; None if it has none."""
    text = prompt if isinstance(prompt, str) else ""
    try:
        body = orjson.dumps({"model": served_name, "prompt": text})
        answer = orjson.loads(await upstream.post_at("/tokenize", body))
    except (NotFoundError, InvalidArgumentError, UnimplementedError):
        return None
    num_tokens = answer["count"] if isinstance(prompt, str) else len(prompt)
    return max(1, int(answer["max_model_len"]) - num_tokens)


def _log_path(engine: str, model_id: str) -> Path:
    """Return where this process's engine keeps its log; models and processes do not mix."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "modelkit" / "logs" / f"{model_id}-{engine}-{os.getpid()}.log"
