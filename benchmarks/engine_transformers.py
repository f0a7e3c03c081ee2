"""The embedded engine against what transformers itself offers, side by side in one run.

    python benchmarks/engine_transformers.py [--callers 1,16,64] [--rounds 5] [--json FILE]

Every caller asks one question of examples/tiny-chat at the same moment. Two workloads: `fixed`, where each answer has
the same number of tokens, whatever the model says, and `natural`, where each ends where it ends (2 to 130 tokens).

- engine: modelkit's TransformersEngine, from messages to streamed text, through asyncio;
- static: `model.generate()` on one padded batch, from token ids to token ids, nothing streamed: the least work
  possible, and the callers all have to come at once and wait for the longest;
- library: transformers' ContinuousBatchingManager, kept running between rounds, from token ids to token ids.

One CPU thread each. The contestants take turns, so that a busy machine hurts all alike; figures are medians over the
rounds, in output tokens per second.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation import ContinuousBatchingConfig
from transformers.utils import logging

from modelkit.config import EngineConfig
from modelkit.engines import GenerationRequest, SamplingParams, create

CHECKPOINT = Path(__file__).resolve().parent.parent / "examples" / "tiny-chat" / "checkpoint"
FIXED_TOKENS = 128
MOST_TOKENS = 200


@dataclass(frozen=True)
class Load:
    """What the callers of one round ask, and when an answer ends."""

    chats: list[list[dict[str, str]]]
    fixed: bool

    @property
    def max_tokens(self) -> int:
        return FIXED_TOKENS if self.fixed else MOST_TOKENS


Contestant = Callable[[Load], Awaitable[int]]  # answers everything, returns the number of output tokens


async def make_engine() -> tuple[Contestant, Any]:
    engine = create(EngineConfig(name="transformers", dtype="float32"), CHECKPOINT, "tiny-chat")
    await engine.start()

    async def ask(chat: list[dict[str, str]], load: Load) -> int:
        sampling = SamplingParams(max_tokens=load.max_tokens, ignore_eos=load.fixed)
        count = 0
        async for chunk in engine.generate(GenerationRequest(messages=chat, sampling=sampling)):
            count = chunk.output_tokens
        return count

    async def run(load: Load) -> int:
        return sum(await asyncio.gather(*(ask(chat, load) for chat in load.chats)))

    return run, engine


def make_static(tokenizer: Any) -> Contestant:
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    ends = set(model.generation_config.eos_token_id)

    async def run(load: Load) -> int:
        inputs = tokenizer.pad(
            {"input_ids": encode(tokenizer, load)}, padding_side="left", return_tensors="pt"
        )
        least = {"min_new_tokens": load.max_tokens} if load.fixed else {}
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=load.max_tokens, do_sample=False, **least)
        answers = output[:, inputs["input_ids"].shape[1] :].tolist()
        return sum(length(answer, ends, load) for answer in answers)

    return run


def make_library(tokenizer: Any) -> Contestant:
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    ends = model.generation_config.eos_token_id
    managers = {}
    for fixed in (True, False):
        config = GenerationConfig(
            do_sample=False, eos_token_id=-1 if fixed else ends, pad_token_id=0, max_new_tokens=MOST_TOKENS
        )
        batching = ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=2048)
        managers[fixed] = model.init_continuous_batching(config, batching)

    async def run(load: Load) -> int:
        manager = managers[load.fixed]
        if not manager.is_running():
            manager.start()
        manager.add_requests(encode(tokenizer, load), max_new_tokens=load.max_tokens)
        count = 0
        for _ in load.chats:
            while (result := manager.get_result(timeout=60)) is None or not result.is_finished():
                if not manager.is_running():
                    raise RuntimeError("transformers' continuous batching ended")
            count += len(result.generated_tokens)
        return count

    run.managers = managers  # type: ignore[attr-defined]
    return run


def encode(tokenizer: Any, load: Load) -> list[list[int]]:
    texts = [tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in load.chats]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def length(answer: list[int], ends: set[int], load: Load) -> int:
    if load.fixed:
        return len(answer)
    return next((at + 1 for at, token in enumerate(answer) if token in ends), len(answer))


async def measure(contestants: dict[str, Contestant], load: Load, rounds: int) -> dict[str, float]:
    """Return the median tokens per second of each; the first round warms up and does not count."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    tokens: dict[str, int] = {}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            tokens[name] = await run(load)
            if number:
                rates[name].append(tokens[name] / (time.perf_counter() - started))
    if len(set(tokens.values())) != 1:
        print(f"  note: different numbers of tokens: {tokens}")
    return {name: statistics.median(values) for name, values in rates.items()}


async def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare the embedded engine with transformers' own batching."
    )
    parser.add_argument("--callers", default="1,16,64", help="numbers of callers, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    chats = [
        record["messages"] for record in json.loads((CHECKPOINT / "qa.json").read_text(encoding="utf-8"))
    ]
    engine_run, engine = await make_engine()
    library = make_library(tokenizer)
    contestants = {"engine": engine_run, "static": make_static(tokenizer), "library": library}
    results = []
    print("workload  callers    engine    static   library   engine/static  engine/library")
    for fixed in (True, False):
        for callers in map(int, args.callers.split(",")):
            load = Load((chats * (callers // len(chats) + 1))[:callers], fixed=fixed)
            rates = await measure(contestants, load, args.rounds)
            workload = "fixed" if fixed else "natural"
            ratios = {f"engine/{other}": rates["engine"] / rates[other] for other in ("static", "library")}
            results.append(
                {"workload": workload, "callers": callers, "tokens_per_s": rates, "ratios": ratios}
            )
            print(
                f"{workload:8} {callers:8} " + " ".join(f"{rate:9.0f}" for rate in rates.values())
                + "".join(f"{ratio:15.2f}" for ratio in ratios.values()),
                flush=True,
            )  # fmt: skip
    for manager in library.managers.values():  # type: ignore[attr-defined]
        if manager.is_running():
            manager.stop(block=True)
    await engine.close()
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
