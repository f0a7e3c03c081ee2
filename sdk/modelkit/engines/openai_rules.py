"""What a raw OpenAI request means where it leaves something out or names a model: the same on every engine.

The engines' own servers differ: some take any name for the model they have, and without max_tokens a completion is cut
after 16 tokens by one and goes on to the end of the context with another. These are OpenAI's rules.
Source: https://platform.openai.com/docs/api-reference/completions/create
"""

from collections.abc import Collection

from modelkit.errors import ModelNotFoundError, Violation

__all__ = ["COMPLETION_MAX_TOKENS", "check_model_name"]

# Of a request to /completions that does not say; a chat's answer ends where the model ends it.
COMPLETION_MAX_TOKENS = 16


def check_model_name(name: object, known: Collection[str]) -> None:
    """Refuse the name of another model; none at all, or an empty one, is the one that is served."""
    if name in (None, "") or (isinstance(name, str) and name in known):
        return
    raise ModelNotFoundError(
        f"The model `{name}` does not exist",
        cure=f"use one of: {', '.join(sorted(known))}; or leave 'model' out",
        violations=[Violation("model", "does not exist")],
    )
