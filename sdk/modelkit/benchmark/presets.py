"""The settings of published comparisons, by name."""

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["BLOG_MODELS", "PRESETS"]

# Clarifai's comparison of vLLM, SGLang and LMDeploy: 2,048 tokens in and out, one caller or a hundred.
_BLOG: Final[Mapping[str, Any]] = {"input_tokens": "2048", "output_tokens": "2048"}
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "blog-c1": {**_BLOG, "concurrency": "1", "num_requests": "10"},
    "blog-c100": {**_BLOG, "concurrency": "100", "num_requests": "300"},
}
# The models that it compared, and the architecture of each for `--random-weights`.
BLOG_MODELS: Final[Mapping[str, str]] = {
    "Qwen/Qwen2-7B-Instruct": "qwen2-7b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral-7b",
}
