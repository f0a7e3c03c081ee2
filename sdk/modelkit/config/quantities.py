"""Quantities as people write them (`16Gi`, `500m`, `5m`) as pydantic types that hold plain numbers.

A field that holds a quantity carries its unit in its name (`_bytes`, `_cores`, `_s`). Memory is spelled as in
Kubernetes, durations as in Go and Docker Compose.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

__all__ = ["FROM_FILE", "Cpu", "Duration", "Memory", "parse_cpu", "parse_duration", "parse_memory"]

# Validation context of values that a person wrote in a file. There a bare `30` could be seconds or minutes, so a
# duration must say which; in Python the field's name ends in `_s`, so a number is clear.
FROM_FILE = {"from_file": True}

_MEMORY_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{prefix}i": 1024**power for power, prefix in enumerate("KMGT", start=1)
}
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

# Digits are bounded so that no number overflows; nobody has 10^15 of anything.
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
_MEMORY_PATTERN = rf"({_NUMBER}) ?([kKMGT]i?)?B?"
_CPU_PATTERN = rf"({_NUMBER})(m)?"
_DURATION_PATTERN = rf"(?:{_NUMBER}(?:ms|s|m|h|d))+"
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|s|m|h|d)")


def parse_memory(text: str) -> int | None:
    """Return the bytes of `16Gi`, `500M` or `1024`; None where the text is no amount of memory."""
    match = re.fullmatch(_MEMORY_PATTERN, text)
    if match is None or match[2] == "ki":
        return None
    return int(float(match[1]) * _MEMORY_UNITS[match[2] or ""])


def parse_cpu(text: str) -> float | None:
    """Return the cores of `4`, `0.5` or `500m`; None where the text is no number of cores."""
    match = re.fullmatch(_CPU_PATTERN, text)
    if match is None:
        return None
    return float(match[1]) / (1000 if match[2] else 1)


def parse_duration(text: str) -> float | None:
    """Return the seconds of `30s`, `5m` or `1h30m`; None where the text is no duration with a unit."""
    if re.fullmatch(_DURATION_PATTERN, text) is None:
        return None
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(text))


def _memory(value: Any) -> Any:
    cure = "write a number and a unit, such as 16Gi or 500M"
    if isinstance(value, float):  # there are no fractions of a byte, so a unit is missing
        cure = f"write the unit, such as {value}Gi" if _is_short(value) else cure
        raise _refuse("an amount of memory with a unit", cure)
    return _quantity(value, parse_memory, "an amount of memory", cure)


def _cpu(value: Any) -> Any:
    cure = 'write cores such as "4" or 0.5, or thousandths such as 500m'
    return _quantity(value, parse_cpu, "a number of CPU cores", cure)


def _duration(value: Any, info: ValidationInfo) -> Any:
    cure = "write a number and a unit (ms, s, m, h, d), such as 30s, 5m or 1h30m"
    if info.context == FROM_FILE and type(value) in {int, float}:
        cure = f"write the unit, such as {value}s or {value}m" if _is_short(value) else cure
        raise _refuse("a duration with a unit", cure)
    return _quantity(value, parse_duration, "a duration", cure)


def _is_short(number: float) -> bool:
    """Tell whether a number with a unit behind it would be a quantity: not what is negative, huge or infinite."""
    return re.fullmatch(_NUMBER, str(number)) is not None


def _quantity(value: Any, parse: Callable[[str], float | None], what: str, cure: str) -> float:
    number = parse(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _refuse(what, cure)
    return number


def _refuse(what: str, cure: str) -> PydanticCustomError:
    return PydanticCustomError("quantity", "must be {what}", {"what": what, "cure": cure})


def _schema(pattern: str, *examples: str, number: bool) -> WithJsonSchema:
    text = {"type": "string", "pattern": f"^(?:{pattern})$", "examples": list(examples)}
    return WithJsonSchema({"anyOf": [text, {"type": "number", "minimum": 0}]} if number else text)


Memory = Annotated[int, BeforeValidator(_memory), _schema(_MEMORY_PATTERN, "16Gi", "500M", number=True)]
Cpu = Annotated[float, BeforeValidator(_cpu), _schema(_CPU_PATTERN, "4", "500m", number=True)]
Duration = Annotated[float, BeforeValidator(_duration), _schema(_DURATION_PATTERN, "30s", "5m", number=False)]
