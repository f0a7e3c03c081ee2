"""What an author says about an argument beside its type: default, description, limits and choices.

Plain data without pydantic, so that importing a model.py stays cheap; `signature` turns it into checks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["REQUIRED", "Field", "FieldSpec"]


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required()


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec:
    """The options of one `Field(...)`; None means that no limit is set."""

    default: Any = REQUIRED
    description: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    multiple_of: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    choices: tuple[Any, ...] = ()


def Field(  # noqa: N802 - the field's standard spelling, as in pydantic and dataclasses
    default: Any = REQUIRED,
    *,
    description: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    multiple_of: float | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    pattern: str | None = None,
    choices: Sequence[Any] = (),
) -> Any:
    """Describe an argument, as its default value or inside `Annotated`.

        @method
        def summarize(self, text: str, max_words: int = Field(50, ge=1, le=500, description="length")) -> str: ...

    The limits are enforced before the method runs, and the method receives the value, not this object.
    Lengths count characters, bytes or items. `pydantic.Field` works in both places too.
    """
    return FieldSpec(
        default=default,
        description=description,
        ge=ge,
        gt=gt,
        le=le,
        lt=lt,
        multiple_of=multiple_of,
        min_length=min_length,
        max_length=max_length,
        pattern=pattern,
        choices=tuple(choices),
    )
