"""Choose the next token of each row: transformers' own logits processors, applied per row and batched where alike.

Greedy rows share one maximum. Rows with the same temperature, top_k, top_p and min_p are filtered together. Each seeded
row draws from a generator of its own, so that its answer does not depend on what else is in the batch.

A row whose scores are no numbers, or whose options raise, fails alone: on an accelerator a draw from such scores would
end the process' every further operation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from modelkit.engines._scheduler import Row
from modelkit.engines.sampling import Sampling
from modelkit.errors import EngineError, InvalidArgumentError

__all__ = ["RowSampler", "sample"]

# Stands for a token where there is none.
NO_TOKEN = -1
# What rows must share to be filtered together: temperature, top_k, top_p and min_p.
FilterKey = tuple[float, int, float, float]


class OutputPenalty(LogitsProcessor):
    """OpenAI's presence and frequency penalties, which count the tokens of the answer and which transformers lacks.

    Source: https://platform.openai.com/docs/api-reference/chat/create (frequency_penalty, presence_penalty).
    """

    def __init__(self, prompt_length: int, *, presence: float, frequency: float) -> None:
        self._prompt_length = prompt_length
        self._presence = presence
        self._frequency = frequency

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Lower the scores [1, vocabulary] of tokens in input_ids[:, prompt_length:]."""
        counts = torch.bincount(input_ids[0, self._prompt_length :], minlength=scores.shape[-1])
        return scores - self._frequency * counts - self._presence * (counts > 0)


class RowSampler:
    """How one row's tokens are chosen."""

    def __init__(self, row: Row, eos_ids: list[int], device: torch.device) -> None:
        sampling = row.sampling
        self.row = row
        self.processors = _processors(sampling, len(row.prompt_ids), eos_ids, device)
        self.filter_key = None if sampling.greedy else _filter_key(sampling)
        self.generator: torch.Generator | None = None
        if sampling.seed is not None:
            self.generator = torch.Generator(device).manual_seed(sampling.seed)

    def process(self, logits: torch.Tensor) -> torch.Tensor:
        """Return this row's logits [1, vocabulary] with penalties and min_tokens applied."""
        tokens = [*self.row.prompt_ids, *self.row.output_ids]
        result: torch.Tensor = self.processors(torch.tensor([tokens], device=logits.device), logits)
        return result


def sample(logits: torch.Tensor, samplers: Sequence[RowSampler]) -> list[int | Exception]:
    """Return a token for each row of `logits` [rows, vocabulary], or what keeps it from having one."""
    scores, faults = _processed(logits, samplers)
    best, tokens = scores.max(dim=-1)
    for key, indices in _groups(samplers).items():
        # The likeliest has a score of 0, whatever the temperature divides by. A row without numbers draws from zeros.
        shifted = (scores[indices].float() - best[indices].float().unsqueeze(1)).nan_to_num_(0.0, 0.0)
        try:
            probabilities = _filters(key)(None, shifted).softmax(dim=-1)
            tokens[indices] = _draw(probabilities, [samplers[index].generator for index in indices])
        except Exception as error:  # noqa: BLE001 - those who ask for the same get the same answer
            faults.update(dict.fromkeys(indices, error))
    tokens.masked_fill_(~best.isfinite(), NO_TOKEN)
    chosen: list[int | Exception] = tokens.tolist()
    for index, token in enumerate(chosen):
        if token == NO_TOKEN:
            chosen[index] = _not_finite(bool(logits[index].max().isfinite()))
    for index, fault in faults.items():
        chosen[index] = fault
    return chosen


def _processed(
    logits: torch.Tensor, samplers: Sequence[RowSampler]
) -> tuple[torch.Tensor, dict[int, Exception]]:
    """Return the logits after what looks at the tokens so far; and the faults of rows where that raised."""
    faults: dict[int, Exception] = {}
    rows = [index for index, sampler in enumerate(samplers) if sampler.processors]
    if not rows:
        return logits, faults
    scores = logits.to(torch.float32, copy=True)
    for index in rows:
        try:
            scores[index] = samplers[index].process(scores[index : index + 1])[0]
        except Exception as error:  # noqa: BLE001 - of this row alone
            faults[index] = error
    return scores, faults


def _not_finite(given_by_model: bool) -> Exception:
    if given_by_model:
        return InvalidArgumentError(
            "the penalties leave no numbers to choose a token by",
            cure="bring repetition_penalty closer to 1",
        )
    return EngineError("the model's scores for the next token are not numbers")


def _draw(probabilities: torch.Tensor, generators: Sequence[torch.Generator | None]) -> torch.Tensor:
    """Draw one token per row [rows]; rows without a generator of their own share torch's."""
    drawn = torch.multinomial(probabilities, num_samples=1).squeeze(1)
    for index, generator in enumerate(generators):
        if generator is not None:
            drawn[index] = torch.multinomial(probabilities[index], num_samples=1, generator=generator)[0]
    return drawn


def _groups(samplers: Sequence[RowSampler]) -> dict[FilterKey, list[int]]:
    groups: dict[FilterKey, list[int]] = {}
    for index, row in enumerate(samplers):
        if row.filter_key is not None:
            groups.setdefault(row.filter_key, []).append(index)
    return groups


def _filter_key(sampling: Sampling) -> FilterKey:
    return (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)


def _filters(key: FilterKey) -> Any:
    """Return the processors that leave out unlikely tokens, in the order that transformers' generate() uses."""
    temperature, top_k, top_p, min_p = key
    filters = LogitsProcessorList()
    if temperature != 1:
        filters.append(TemperatureLogitsWarper(temperature))
    if top_k > 0:
        filters.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        filters.append(TopPLogitsWarper(top_p))
    if min_p > 0:
        filters.append(MinPLogitsWarper(min_p))
    return filters


def _processors(sampling: Sampling, prompt_length: int, eos_ids: list[int], device: Any) -> Any:
    """Return the processors that look at the tokens so far; empty for most requests."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.presence_penalty or sampling.frequency_penalty:
        processors.append(
            OutputPenalty(
                prompt_length, presence=sampling.presence_penalty, frequency=sampling.frequency_penalty
            )
        )
    if sampling.min_tokens and eos_ids and not sampling.ignore_eos:
        processors.append(
            MinNewTokensLengthLogitsProcessor(prompt_length, sampling.min_tokens, eos_ids, device=device)
        )
    return processors
