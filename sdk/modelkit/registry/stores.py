"""From a reference to the store that it names."""

from modelkit.registry.base import Store
from modelkit.registry.client import Client
from modelkit.registry.layout import Layout
from modelkit.registry.reference import LayoutReference, Reference

__all__ = ["open_store"]


def open_store(reference: Reference | LayoutReference, *, plain_http: bool = False) -> Store:
    """Return the repository or the layout of a reference; nothing is asked or made yet. Close it after use."""
    if isinstance(reference, LayoutReference):
        return Layout(reference)
    return Client(reference, plain_http=plain_http)
