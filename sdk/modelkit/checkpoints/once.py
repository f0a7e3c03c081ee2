"""What a source makes when it is first needed, and once: its threads may need it at the same moment.

`functools.cached_property` has no lock from Python 3.12 on: two threads would open two clients, one of which nobody closes.
"""

import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any, Self, TypeVar, overload

__all__ = ["once"]

T = TypeVar("T")


class once(cached_property[T]):  # noqa: N801 - a decorator
    """A property that is computed by the first thread that asks, while the others wait."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        super().__init__(compute)
        self._computing = threading.RLock()

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> T: ...

    def __get__(self, instance: object, owner: type[Any] | None = None) -> Self | T:
        """Return the value; it is in the instance's `__dict__` from then on, where Python finds it first."""
        if instance is None:
            return self
        with self._computing:
            return super().__get__(instance, owner)
