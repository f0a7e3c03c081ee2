"""How tokens are chosen: what a request may say, what its checkpoint says, and the two put together.

A value that the request leaves out comes from the checkpoint's generation_config.json, read as transformers reads it:
`do_sample` absent or false means greedy. So a model answers with no options as its makers meant it to, and the same on
every engine.
Source: https://huggingface.co/docs/transformers/main_classes/text_generation#transformers.GenerationConfig
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from modelkit.errors import InvalidArgumentError, LoadError, Violation

__all__ = ["GREEDY_BELOW", "Sampling", "SamplingParams", "read_generation_config", "sampling_defaults"]

# A temperature below this leaves one token in any case, and its division has no room in a float of 32 bits.
GREEDY_BELOW = 1e-4
# Each token is searched for every stop string, in the thread that all requests share.
MAX_STOPS, MAX_STOP_CHARACTERS = 64, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when to end, as a request asks for it; spelled as in OpenAI's API and vLLM.

    None means the checkpoint's own default. `temperature` 0, and anything below GREEDY_BELOW, takes the likeliest
    token; `top_k` 0 and `top_p` 1 restrict nothing.
    `max_tokens` None means up to the model's length. `seed` makes a request repeatable whatever shares its batch.
    Before `min_tokens` output tokens neither the end-of-sequence token nor a stop string ends the answer.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False

    def resolve(self, defaults: Mapping[str, float]) -> "Sampling":
        """Fill in `defaults` where the request says nothing. Raises InvalidArgumentError, naming each bad field."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        sampling = Sampling(**{**defaults, **given})
        violations = list(_violations(sampling))
        if violations:
            summary = "; ".join(f"{v.field} {v.description}" for v in violations)
            raise InvalidArgumentError(summary, violations=violations)
        return sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """SamplingParams with every value known, except the two that may really be absent: `max_tokens` and `seed`."""

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken, so that nothing is drawn at random."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1


# Field -> (lowest, highest, whether the lowest itself is allowed), from OpenAI's reference and vLLM's checks.
_RANGES: Mapping[str, tuple[float, float, bool]] = MappingProxyType(
    {
        "max_tokens": (1, float("inf"), True),
        "min_tokens": (0, float("inf"), True),
        "temperature": (0, 100, True),
        "top_p": (0, 1, False),
        "top_k": (-1, float("inf"), True),
        "min_p": (0, 1, True),
        "repetition_penalty": (0, float("inf"), False),
        "presence_penalty": (-2, 2, True),
        "frequency_penalty": (-2, 2, True),
        "seed": (-(2**63), 2**63 - 1, True),
    }
)


def _violations(sampling: Sampling) -> Iterator[Violation]:
    for name, (lowest, highest, inclusive) in _RANGES.items():
        value = getattr(sampling, name)
        if value is None:
            continue
        # Written so that NaN, which compares false with everything, is refused.
        if not (lowest <= value <= highest and (inclusive or value != lowest)):
            bounds = f"{'at least' if inclusive else 'above'} {lowest:g}"
            bounds += "" if highest == float("inf") else f" and at most {highest:g}"
            yield Violation(name, f"must be {bounds}, not {value}")
    if "" in sampling.stop:
        yield Violation("stop", "must not hold an empty string")
    if len(sampling.stop) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in sampling.stop):
        yield Violation(
            "stop", f"must hold at most {MAX_STOPS} strings of at most {MAX_STOP_CHARACTERS} characters"
        )
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        yield Violation("min_tokens", f"must not exceed max_tokens ({sampling.max_tokens})")


def read_generation_config(checkpoint_dir: Path | None) -> dict[str, Any]:
    """Return generation_config.json, empty where there is none. Raises LoadError where it is no JSON object."""
    if checkpoint_dir is None:
        return {}
    path = checkpoint_dir / "generation_config.json"
    try:
        content = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise LoadError(f"cannot read {path}: {error}", cure="fetch the checkpoint again") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path} holds no JSON object", cure="fetch the checkpoint again")
    return content


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, float]:
    """Return the checkpoint's own values for fields of SamplingParams; temperature is always among them."""
    names = ("top_p", "top_k", "min_p", "repetition_penalty", "temperature")
    defaults = {name: value for name in names if (value := generation_config.get(name)) is not None}
    if not generation_config.get("do_sample"):
        return {**defaults, "temperature": 0.0}
    return {"temperature": 1.0, **defaults}
