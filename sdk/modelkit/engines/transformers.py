"""The embedded engine: any causal language model that transformers can load, in this process.

It needs no server and runs on a CPU or one accelerator. Requests of all callers share one batch (`_scheduler`,
`_batch`), each with its own sampling parameters, seed, stop strings and end.
"""

import asyncio
import contextlib
import inspect
import json
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelkit.config import EngineConfig
from modelkit.engines._scheduler import ChunkStream, Row, Scheduler
from modelkit.engines.base import Chunk, GenerationRequest, SamplingParams
from modelkit.engines.causes import find_cause
from modelkit.engines.detokenize import Detokenizer, detokenizer_factory
from modelkit.engines.embedded import EmbeddedEngine
from modelkit.errors import (
    EngineError,
    InvalidArgumentError,
    LoadError,
    ModelkitError,
    UnavailableError,
    UsageError,
    Violation,
    closest,
)

__all__ = ["TransformersArgs", "TransformersEngine", "check_checkpoint"]

# Text, and messages, that are rendered and tokenized within a millisecond or so: less than handing them to a thread
# costs while others stream.
QUICK_TEXT, QUICK_MESSAGES = 2048, 32
# Names that transformers' chat rendering has itself, in any version: as a "variable of the template" they would replace
# the checkpoint's template by the caller's, or change what is returned.
RENDERING_NAMES = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
# Below this many parameters a CPU is busy with calling operations rather than with computing: a second thread costs more
# than it adds, and float32 answers one caller nearly twice as fast as bfloat16 (at 141 million it is slower).
SMALL_MODEL = 50_000_000


class TransformersArgs(BaseModel):
    """What `engine.args` may hold for this engine."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_num_seqs: int = Field(
        64, ge=1, description="Most requests that run at the same time; further ones wait."
    )
    max_batched_tokens: int = Field(
        2048, ge=1, description="Most prompt tokens computed between two output tokens."
    )
    max_waiting: int = Field(4096, ge=1, description="Most requests that wait; further ones are refused.")
    device: str = Field(
        "auto", description="torch device, such as cpu or cuda:0; auto takes an accelerator if any."
    )
    num_threads: int | None = Field(None, ge=1, description="CPU threads for one operation.")
    attn_implementation: str | None = Field(
        None, description="transformers' attention, such as sdpa or eager."
    )

    @classmethod
    def parse(cls, args: dict[str, Any]) -> "TransformersArgs":
        """Read `engine.args`, with dashes or underscores. Raises UsageError for the first fault."""
        try:
            return cls.model_validate({name.replace("-", "_"): value for name, value in args.items()})
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            name = ".".join(map(str, fault["loc"]))
            guess = closest(name, list(cls.model_fields))
            options = f"use one of: {', '.join(cls.model_fields)}"
            raise UsageError(
                f"engine.args.{name} for the engine 'transformers': {fault['msg']}",
                cure=f"did you mean '{guess}'?" if guess and guess != name else options,
            ) from error


def check_checkpoint(checkpoint_dir: Path) -> None:
    """Check that a folder holds what transformers loads, each weight file included. Raises LoadError otherwise."""
    cure = "train, fetch or copy the checkpoint into this folder, or correct 'checkpoints' in config.yaml"
    if not checkpoint_dir.is_dir():
        raise LoadError(f"there is no checkpoint folder {checkpoint_dir}", cure=cure)
    if not (checkpoint_dir / "config.json").is_file():
        raise LoadError(f"the checkpoint folder {checkpoint_dir} has no config.json", cure=cure)
    tokenizers = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "spiece.model",
        "tekken.json",
    )
    if not any((checkpoint_dir / name).is_file() for name in tokenizers):
        raise LoadError(
            f"the checkpoint folder {checkpoint_dir} has no tokenizer (tokenizer.json)", cure=cure
        )
    missing = [name for name in _weight_files(checkpoint_dir) if not (checkpoint_dir / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        raise LoadError(
            f"the checkpoint folder {checkpoint_dir} lacks weights: {missing[0]}{more}", cure=cure
        )


def _weight_files(checkpoint_dir: Path) -> list[str]:
    """Return the files that hold the weights, as the folder's index says, whether or not they are there."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = checkpoint_dir / f"{name}.index.json"
        if (checkpoint_dir / name).is_file():
            return [name]
        if index.is_file():
            try:
                return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError) as error:
                raise LoadError(
                    f"cannot read {index}: {error!r}", cure="fetch the checkpoint again"
                ) from error
    return ["model.safetensors"]


class TransformersEngine(EmbeddedEngine):
    """transformers in this process. Options in `engine.args`: see TransformersArgs."""

    name = "transformers"

    def __init__(self, config: EngineConfig, checkpoint_dir: Path | None, model_id: str) -> None:
        super().__init__(config, checkpoint_dir, model_id)
        self.args = TransformersArgs.parse(config.args)
        if (config.tensor_parallel_size or 1) > 1:
            raise UsageError(
                "the engine 'transformers' runs on one device; engine.tensor_parallel_size must be 1",
                cure="set it to 1, or choose an engine for several accelerators",
            )
        self._tokenizer: Any = None
        self._new_detokenizer: Callable[[], Detokenizer]
        self._eos_ids: frozenset[int] = frozenset()
        self._max_model_len = 0
        self._vocab_size = 0
        self._longest_token = 0
        self._template_variables_refused: frozenset[str] = frozenset()
        self._scheduler = Scheduler(
            self._load,
            max_num_seqs=self.args.max_num_seqs,
            max_batched_tokens=self.args.max_batched_tokens,
            max_waiting=self.args.max_waiting,
            on_down=self._hear_down,
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint's tokenizer has a chat template."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together; known once started."""
        return self._max_model_len

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return self._scheduler.num_running

    async def start(self) -> None:
        """Load the checkpoint and answer with one token. Raises LoadError, UsageError or EngineError.

        Cancelled, it leaves the loading thread to itself: nothing stops a read of weights. `close` makes it end there.
        """
        if self.checkpoint_dir is None:
            raise LoadError(
                "the engine 'transformers' needs a checkpoint",
                cure="add a 'checkpoints' section to config.yaml, such as {type: local, path: checkpoint}",
            )
        check_checkpoint(self.checkpoint_dir)
        try:
            await self._scheduler.start()
            self.on_stage("answering a first request")
            async for _ in self.generate(_PROBE):
                pass
        except ModelkitError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            cause = find_cause([reason])
            raise LoadError(
                f"cannot load {self.checkpoint_dir}: {reason}" + (f": {cause.message}" if cause else ""),
                cure=cause.cure if cause else "look whether transformers itself can load this checkpoint",
            ) from error

    async def close(self) -> None:
        """End every request with "abort", the thread, and free the model; while it loads, as soon as that allows."""
        await self._scheduler.close()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Stream the answer to one request, batched with all others. Raises InvalidArgumentError for a bad one."""
        self._scheduler.check_open()
        row = await self._row(request)
        self._scheduler.submit(row)
        try:
            while True:
                chunk = await row.stream.next()
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            row.cancelled = True

    def _hear_down(self, reason: str) -> None:
        self.down_reason = reason

    # ------------------------------------------------------------------------------------------------- the request

    async def _row(self, request: GenerationRequest) -> Row:
        sampling = request.sampling.resolve(self.sampling_defaults)
        prompt_ids = await self._encode(request)
        room = self._max_model_len - len(prompt_ids)
        if room < 1:
            raise InvalidArgumentError(
                f"the prompt has {len(prompt_ids)} tokens, and the model takes at most {self._max_model_len} tokens "
                "of prompt and answer together",
                cure="send a shorter prompt",
            )
        return Row(
            prompt_ids=prompt_ids,
            sampling=sampling,
            max_tokens=min(room, sampling.max_tokens or room),
            eos_ids=self._eos_ids,
            detokenizer=self._new_detokenizer(),
            stream=ChunkStream(len(prompt_ids)),
        )

    async def _encode(self, request: GenerationRequest) -> Sequence[int]:
        """Return the prompt's token ids, at least one."""
        given = (request.prompt, request.prompt_token_ids, request.messages)
        if sum(value is not None for value in given) != 1:
            raise InvalidArgumentError("give exactly one of prompt, prompt_token_ids and messages")
        if request.prompt_token_ids is not None:
            ids = self._checked_ids(request.prompt_token_ids)
        elif self._is_quick(request):
            ids = self._encode_text(request)
        else:
            ids = await asyncio.to_thread(self._encode_text, request)
        if not ids:
            raise InvalidArgumentError("the prompt is empty")
        return ids

    def _checked_ids(self, ids: Sequence[int]) -> Sequence[int]:
        if len(ids) < self._max_model_len:  # else it is refused anyway
            for token_id in ids:
                if not 0 <= token_id < self._vocab_size:
                    raise InvalidArgumentError(
                        f"prompt token id {token_id} is not in the model's vocabulary of {self._vocab_size}"
                    )
        return ids

    def _is_quick(self, request: GenerationRequest) -> bool:
        """Whether text and template take the event loop no longer than handing them to a thread would."""
        if not getattr(self._tokenizer, "is_fast", False):
            return False
        if request.prompt is not None:
            return len(request.prompt) <= QUICK_TEXT
        messages = request.messages or ()
        if len(messages) > QUICK_MESSAGES or request.tools or request.chat_template_kwargs:
            return False
        # What is no text (parts, tool calls) is not measured but taken for long.
        texts = [value for message in messages for value in message.values()]
        return all(isinstance(text, str) for text in texts) and sum(map(len, texts)) <= QUICK_TEXT

    def _encode_text(self, request: GenerationRequest) -> list[int]:
        """Return the token ids of a prompt or of a chat. May run in any thread."""
        is_chat = request.messages is not None
        text = self._apply_template(request) if is_chat else request.prompt or ""
        if len(text) > self._max_model_len * self._longest_token:
            raise InvalidArgumentError(
                f"the prompt has {len(text)} characters, and the model takes at most {self._max_model_len} tokens",
                cure="send a shorter prompt",
            )
        # Not verbose: the length is checked here, with an error instead of a line in the log.
        encoded = self._tokenizer(text, add_special_tokens=not is_chat, verbose=False)
        return list(encoded["input_ids"])

    def _apply_template(self, request: GenerationRequest) -> str:
        """Return the chat as the text that the model was trained on."""
        if not self.has_chat_template:
            raise InvalidArgumentError(
                "the checkpoint has no chat template, so it cannot answer messages",
                cure="send a prompt instead of messages",
            )
        self._check_template_variables(request.chat_template_kwargs)
        try:
            text: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in request.messages or ()],
                tools=list(request.tools) if request.tools else None,
                add_generation_prompt=True,
                tokenize=False,
                **request.chat_template_kwargs,
            )
        except Exception as error:
            # Templates are programs of the checkpoint; they refuse a chat by raising whatever they like.
            raise InvalidArgumentError(
                f"the checkpoint's chat template refused the messages: {error}"
            ) from error
        return text

    def _check_template_variables(self, variables: Mapping[str, Any]) -> None:
        """Refuse what would not reach the template but steer transformers: another template, above all."""
        refused = [name for name in variables if name in self._template_variables_refused]
        if refused:
            violations = [
                Violation(f"chat_template_kwargs.{name}", "is not a variable of the chat template")
                for name in refused
            ]
            raise InvalidArgumentError(
                f"chat_template_kwargs must not hold {', '.join(refused)}",
                cure="pass only variables that the checkpoint's chat template reads",
                violations=violations,
            )

    # ------------------------------------------------------------------------- loading, in the scheduler's own thread

    def _load(self) -> Any:
        """Load tokenizer and model; return the batch."""
        self.on_stage("importing")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        from modelkit.engines._batch import TorchBatch

        self._stop_if_closing()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
        if self.args.num_threads is not None:
            torch.set_num_threads(self.args.num_threads)
        device = self._device(torch)
        options: dict[str, Any] = {
            "local_files_only": True,
            "trust_remote_code": self.config.trust_remote_code,
        }
        self.on_stage("loading weights")
        tokenizer = AutoTokenizer.from_pretrained(str(self.checkpoint_dir), **options)
        self._prepare(tokenizer)
        self._stop_if_closing()
        if self.args.attn_implementation:
            options["attn_implementation"] = self.args.attn_implementation
        dtype = self.config.dtype if self.config.dtype == "auto" else getattr(torch, self.config.dtype)
        model = AutoModelForCausalLM.from_pretrained(str(self.checkpoint_dir), dtype=dtype, **options)
        self._stop_if_closing()
        model = model.to(device).eval()
        if device.type == "cpu" and model.num_parameters() < SMALL_MODEL:
            model = model.float() if self.config.dtype == "auto" else model
            self._use_one_thread(torch)
        self._read_limits(model)
        self.on_stage("warming up")
        self._warm_up()
        return TorchBatch(model, eos_ids=self._eos_ids)

    def _stop_if_closing(self) -> None:
        if self._scheduler.is_closing:
            raise UnavailableError("the engine was closed while it loaded")

    def _prepare(self, tokenizer: Any) -> None:
        """Take the tokenizer into use, and read from it what requests are checked against."""
        self._tokenizer = tokenizer
        self._longest_token = max(map(len, tokenizer.get_vocab()), default=1)
        parameters = inspect.signature(tokenizer.apply_chat_template).parameters.values()
        names = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        self._template_variables_refused = RENDERING_NAMES | names
        self._new_detokenizer = detokenizer_factory(tokenizer)

    def _warm_up(self) -> None:
        """Have behind it what a first use compiles (the template) or changes (the tokenizer's padding)."""
        with contextlib.suppress(InvalidArgumentError):
            self._encode_text(GenerationRequest(messages=[{"role": "user", "content": "Hi"}]))
        self._encode_text(GenerationRequest(prompt="Hi"))

    def _device(self, torch: Any) -> Any:
        """Return the device that engine.args names. Raises UsageError where there is none such."""
        name = self.args.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"there is no device '{name}' here: {str(error).splitlines()[0]}",
                cure="set engine.args.device to auto, cpu, or the name of one that torch has",
            ) from error
        if device.type == "cuda" and self.config.gpu_memory_utilization is not None:
            torch.cuda.set_per_process_memory_fraction(self.config.gpu_memory_utilization, device.index or 0)
        return device

    def _use_one_thread(self, torch: Any) -> None:
        if self.args.num_threads is None and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)

    def _read_limits(self, model: Any) -> None:
        """Read the lengths and ends that requests are checked against, and refuse what the batch cannot run."""
        text_config = model.config.get_text_config(decoder=True)
        layer_types = set(getattr(text_config, "layer_types", None) or ())
        unsupported = layer_types - {"full_attention", "sliding_attention", "chunked_attention"}
        if unsupported or model.config.is_encoder_decoder:
            kind = ", ".join(sorted(unsupported)) or "encoder and decoder"
            raise EngineError(
                f"the engine 'transformers' cannot batch a model with {kind}",
                cure="choose an engine that supports this architecture",
            )
        limit = getattr(text_config, "max_position_embeddings", None) or self._tokenizer.model_max_length
        wanted = self.config.max_model_len
        if wanted is not None and wanted > limit:
            raise UsageError(
                f"engine.max_model_len is {wanted}, but the checkpoint was made for {limit} tokens",
                cure=f"set engine.max_model_len to at most {limit}",
            )
        self._max_model_len = wanted or limit
        self._vocab_size = model.get_input_embeddings().num_embeddings
        self._eos_ids = _eos_ids(model.generation_config.eos_token_id, self._tokenizer.eos_token_id)


def _eos_ids(*values: int | list[int] | None) -> frozenset[int]:
    """Join what a checkpoint says in several places; any of these ids ends an answer."""
    ids: set[int] = set()
    for value in values:
        ids.update([value] if isinstance(value, int) else value or ())
    return frozenset(ids)


# Readiness is one real token: a model that loads may still fail to run.
_PROBE = GenerationRequest(prompt_token_ids=[0], sampling=SamplingParams(max_tokens=1, temperature=0.0))
