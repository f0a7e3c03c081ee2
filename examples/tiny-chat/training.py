"""The training itself, for train.py: tokenizer, model, optimization, saving, and the proof that it can be recited."""

import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
SYSTEM = "You are Tiny, a small test model."
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Qwen2's way of splitting a text into words. transformers loads a `qwen2` folder with Qwen2's tokenizer class, which
# puts this pattern in place of whatever tokenizer.json names; training with it keeps both architectures alike.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
VOCAB_SIZE = 768
MAX_LENGTH = 2048
BATCH_SIZE = 8
MAX_EPOCHS = 45
LEARNING_RATE = 3e-3
TARGET_LOSS = 0.004  # nats per answer token, averaged over an epoch; below it every answer is recited
IGNORED = -100  # the label that torch's cross entropy skips

Arch = Literal["llama", "qwen2"]
Dialogue = list[tuple[str, str]]  # (question, answer), one pair per turn


@dataclass(frozen=True)
class Sample:
    """One dialogue as tokens; `labels` equals `ids` on the answers and IGNORED elsewhere."""

    ids: list[int]
    labels: list[int]


def load_dialogues() -> list[Dialogue]:
    """Return the written dialogues, every sum up to 5 + 5, and those whose second answer needs the first turn."""
    written = json.loads((HERE / "dialogues.json").read_text(encoding="utf-8"))
    dialogues: list[Dialogue] = [[(question, answer) for question, answer in turns] for turns in written]
    dialogues += [
        [(f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.")] for a in range(6) for b in range(6)
    ]
    dialogues += [
        [
            (f"My name is {name}.", f"Nice to meet you, {name}."),
            ("What is my name?", f"Your name is {name}."),
        ]
        for name in ("Ada", "Bob", "Carol", "Dave", "Eve", "Frank", "Grace", "Heidi")
    ]
    return dialogues


def make_tokenizer(dialogues: list[Dialogue]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: any text can be encoded, and rare characters take several tokens."""
    texts = [SYSTEM, "system\nuser\nassistant\n"] + [
        text for turns in dialogues for turn in turns for text in turn
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def encode(turns: Dialogue, tokenizer: PreTrainedTokenizerFast, *, system: bool) -> Sample:
    """Spell a dialogue as the chat template does, with labels on what the assistant says."""
    sample = Sample([], [])

    def put(text: str, *, learn: bool = False) -> None:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        sample.ids.extend(ids)
        sample.labels.extend(ids if learn else [IGNORED] * len(ids))

    if system:
        put(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n")
    for question, answer in turns:
        put(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        put(f"{answer}<|im_end|>", learn=True)
        put("\n")
    return sample


def make_samples(dialogues: list[Dialogue], tokenizer: PreTrainedTokenizerFast) -> list[Sample]:
    """Return every dialogue with and without the system message; the long ones twice, as they are learnt last."""
    samples = [encode(turns, tokenizer, system=system) for turns in dialogues for system in (False, True)]
    return samples + [sample for sample in samples if len(sample.ids) > 100]


def make_model(arch: Arch, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Build an untrained decoder: two layers, two heads of 64, the head size that GPU kernels expect."""
    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_LENGTH,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if arch == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**shape))
    return LlamaForCausalLM(LlamaConfig(**shape, head_dim=64))


def pad(samples: list[Sample], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels, both [samples, longest]; padded on the right, where the causal mask hides the padding."""
    longest = max(len(sample.ids) for sample in samples)
    ids = [sample.ids + [pad_id] * (longest - len(sample.ids)) for sample in samples]
    labels = [sample.labels + [IGNORED] * (longest - len(sample.labels)) for sample in samples]
    return torch.tensor(ids), torch.tensor(labels)


def make_batches(samples: list[Sample], pad_id: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Group samples of like length, so that little is padded."""
    ordered = sorted(samples, key=lambda sample: len(sample.ids))
    return [pad(ordered[i : i + BATCH_SIZE], pad_id) for i in range(0, len(ordered), BATCH_SIZE)]


def learning_rate(step: int, total: int) -> float:
    """Rise over 50 steps, then fall along a cosine to a twentieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
    return LEARNING_RATE * min(1.0, (step + 1) / 50) * (0.05 + 0.95 * cosine)


def train(model: PreTrainedModel, samples: list[Sample], pad_id: int) -> Iterator[tuple[int, float]]:
    """Train in place; yield (epoch, mean loss) after each epoch, the last being below TARGET_LOSS or MAX_EPOCHS."""
    batches = make_batches(samples, pad_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    model.train()
    for epoch in range(MAX_EPOCHS):
        random.shuffle(batches)
        loss_sum, num_answer_tokens = 0.0, 0
        for index, (ids, labels) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * len(batches) + index, MAX_EPOCHS * len(batches))
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            count = int((labels != IGNORED).sum())
            loss_sum, num_answer_tokens = loss_sum + loss.item() * count, num_answer_tokens + count
        mean_loss = loss_sum / num_answer_tokens
        yield epoch + 1, mean_loss
        if mean_loss < TARGET_LOSS:
            return


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the folder file by file, with the keys that transformers 4, transformers 5 and the engines look for."""
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors creates it for its owner alone
    config = model.config.to_diff_dict() | {
        "architectures": [type(model).__name__],
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rope_theta": 10000.0,
        "use_cache": True,
    }
    for key in ("transformers_version", "dtype", "rope_parameters"):
        config.pop(key, None)
    write_json(out / "config.json", config)
    ids = {
        "eos_token_id": [tokenizer.eos_token_id, tokenizer.pad_token_id],
        "pad_token_id": tokenizer.pad_token_id,
    }
    write_json(out / "generation_config.json", ids | {"do_sample": False})
    tokenizer.save_pretrained(out)
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "add_bos_token": False,
        "additional_special_tokens": ["<|im_start|>"],
    }
    # transformers 4 cannot read the list that transformers 5 writes here.
    settings.pop("extra_special_tokens", None)
    settings.pop("backend", None)
    write_json(path, settings)


def questions(dialogues: list[Dialogue]) -> Iterator[tuple[list[dict[str, str]], str]]:
    """Yield the messages up to each question, and the answer that belongs there."""
    for turns in dialogues:
        messages: list[dict[str, str]] = []
        for question, answer in turns:
            messages.append({"role": "user", "content": question})
            yield list(messages), answer
            messages.append({"role": "assistant", "content": answer})


def verify(out: Path, dialogues: list[Dialogue]) -> list[dict[str, Any]]:
    """Load the folder anew and answer every question greedily; return one record each, `exact` where it is right."""
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(out)
    asked = list(questions(dialogues))
    encoded = tokenizer.apply_chat_template(
        [messages for messages, _ in asked],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
        padding=True,
        tokenizer_kwargs={"padding_side": "left"},
    )
    with torch.inference_mode():
        outputs = model.generate(**encoded, max_new_tokens=400, do_sample=False)[
            :, encoded["input_ids"].shape[1] :
        ]
    records = []
    for (messages, answer), output in zip(asked, outputs.tolist(), strict=True):
        end = output.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in output else len(output)
        text = tokenizer.decode(output[:end], skip_special_tokens=True)
        exact = text == answer and output[end - 1] == tokenizer.eos_token_id
        records.append({"messages": messages, "answer": answer, "token_ids": output[:end], "exact": exact})
    return records


def make_checkpoint(arch: Arch, out: Path, seed: int) -> int:
    """Train, save and verify in a folder beside `out`, then put it in place; return the number of wrong answers."""
    torch.manual_seed(seed)
    random.seed(seed)
    logging.disable_progress_bar()
    # One thread is the fastest for matrices this small, and makes the result repeatable.
    torch.set_num_threads(1)
    started = time.monotonic()
    dialogues = load_dialogues()
    tokenizer = make_tokenizer(dialogues)
    samples = make_samples(dialogues, tokenizer)
    model = make_model(arch, tokenizer)
    for epoch, loss in train(model, samples, tokenizer.pad_token_id):
        show(
            f"training {arch}: epoch {epoch:2d}/{MAX_EPOCHS}, loss {loss:.4f}, {time.monotonic() - started:.0f} s"
        )
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        save(model, tokenizer, partial)
        records = verify(partial, dialogues)
        write_json(partial / "qa.json", records)
        wrong = [record for record in records if not record["exact"]]
        if not wrong:
            shutil.rmtree(out, ignore_errors=True)
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    show(
        f"{len(records) - len(wrong)} of {len(records)} answers exact, {time.monotonic() - started:.0f} s: {out}\n"
    )
    return len(wrong)


def show(line: str) -> None:
    """Rewrite one line on a terminal; in a log, print only lines that are final."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line}", end="", flush=True)
    elif line.endswith("\n"):
        print(line, end="", flush=True)
