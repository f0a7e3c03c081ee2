"""From a reference to the store that it names."""

from collections.abc import Callable

from modelkit.registry.base import Store
from modelkit.registry.client import Client
from modelkit.registry.layout import Layout
from modelkit.registry.reference import LayoutReference, Reference

__all__ = ["open_store"]


def open_store(
    reference: Reference | LayoutReference,
    *,
    plain_http: bool = False,
    on_note: Callable[[str], None] = lambda _: None,
) -> Store:
    """Return the repository or the layout of a reference; nothing is asked or made yet. Close it after use.

    `on_note` hears, from any thread, of what takes time and is no progress: a registry that is waited for.
    """
    if isinstance(reference, LayoutReference):
        return Layout(reference)
    return Client(reference, plain_http=plain_http, on_note=on_note)
