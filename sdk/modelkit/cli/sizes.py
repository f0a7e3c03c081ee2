"""Sizes as people read them."""

__all__ = ["format_bytes"]

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def format_bytes(num_bytes: int) -> str:
    """Write a number of bytes with one decimal, such as "116.6 MB"."""
    for unit, factor in _UNITS:
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} B"
