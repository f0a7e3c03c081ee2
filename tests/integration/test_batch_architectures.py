"""The batch against transformers' own generate(), for models that differ in what they do with positions and masks.

Weights are random and computed in float32, so that a wrong mask or position shows at once.
"""

import random

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from modelkit.engines.sampling import Sampling  # noqa: E402

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    # Large enough that the answer depends on the whole context: at the usual 0.02 a model repeats its last token.
    "initializer_range": 0.4,
}
MODELS = {
    "llama, full attention": ("Llama", {}),
    "mistral, a sliding window": ("Mistral", {"sliding_window": 12}),
    "gemma2, every other layer slides": ("Gemma2", {"sliding_window": 12, "attn_implementation": "eager"}),
    "gemma3, two kinds of rotary positions": ("Gemma3ForCausalLM", {"sliding_window": 12}),
    "gpt2, learned positions": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "bloom, alibi counted from the mask": ("Bloom", {"n_layer": 2, "n_head": 4}),
    "qwen3, normalized keys": ("Qwen3", {}),
    "opt, positions with an offset": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
}
CONFIGS = {"Gemma3ForCausalLM": "Gemma3TextConfig"}


class PlainRow:
    """What the batch reads of a row."""

    def __init__(self, prompt_ids):
        self.prompt_ids, self.output_ids, self.sampling = prompt_ids, [], Sampling(temperature=0.0)

    @property
    def num_tokens(self):
        return len(self.prompt_ids) + len(self.output_ids)


def make_model(name, options):
    torch.manual_seed(0)
    config = getattr(transformers, CONFIGS.get(name, f"{name}Config"))(**COMMON | options)
    model = getattr(transformers, name if name.endswith("CausalLM") else _causal_name(name))(config)
    return model.float().eval()


def _causal_name(name):
    return {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")


def alone(model, prompt, num_tokens):
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
    )
    return output[0, len(prompt) :].tolist()


def run_in_company(model, prompts, lengths):
    """Let rows join and leave a batch at random; return what each answered."""
    from modelkit.engines._batch import TorchBatch

    rng = random.Random(0)
    batch = TorchBatch(model, eos_ids=frozenset())
    rows = [PlainRow(prompt) for prompt in prompts]
    limits = dict(zip(rows, lengths, strict=True))
    waiting = list(rows)
    while waiting or batch.rows:
        if waiting and (not batch.rows or rng.random() < 0.3):
            group, waiting = waiting[: (take := rng.randint(1, 3))], waiting[take:]
            for row, token in zip(group, batch.prefill(group), strict=True):
                row.output_ids.append(token)
        if batch.rows:
            for row, token in zip(list(batch.rows), batch.decode(), strict=True):
                row.output_ids.append(token)
        batch.drop([row for row in batch.rows if len(row.output_ids) >= limits[row]])
    return [row.output_ids[: limits[row]] for row in rows]


@pytest.mark.parametrize(("name", "options"), MODELS.values(), ids=MODELS)
@pytest.mark.filterwarnings("ignore")
def test_an_answer_in_company_is_the_answer_alone(name, options):
    model = make_model(name, options)
    rng = random.Random(1)
    prompts = [[rng.randrange(1, 97) for _ in range(rng.choice([1, 3, 9, 40, 70]))] for _ in range(12)]
    lengths = [rng.choice([2, 10, 30, 90]) for _ in prompts]
    expected = [alone(model, prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]
    assert len({tuple(answer[:2]) for answer in expected}) > len(prompts) // 2
    assert run_in_company(model, prompts, lengths) == expected
