"""The values of config.yaml as a tree in which each key and each value knows where it was written.

Layers (config.yaml, its overlay, `--set`) are trees too. Merging them keeps every node's own place, so that a problem
points into the layer that the bad value came from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelkit.config.source import Span

__all__ = [
    "Entry",
    "ListNode",
    "MapNode",
    "Node",
    "Path",
    "Scalar",
    "find",
    "format_path",
    "merge",
    "put",
    "remove",
    "to_python",
]

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value: as YAML reads it, and as it was written."""

    value: str | int | float | bool | None
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class ListNode:
    """A list."""

    items: tuple["Node", ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's place and its value."""

    key: Span
    value: "Node"


@dataclass(frozen=True, slots=True)
class MapNode:
    """A mapping. Keys are text, whatever YAML would make of them."""

    entries: Mapping[str, Entry]
    span: Span

    def without(self, key: str) -> "MapNode":
        """Return the mapping without a key."""
        return MapNode({name: entry for name, entry in self.entries.items() if name != key}, self.span)

    def having(self, key: str, entry: Entry) -> "MapNode":
        """Return the mapping with a key added or replaced."""
        return MapNode({**self.entries, key: entry}, self.span)


Node = Scalar | ListNode | MapNode


def to_python(node: Node) -> Any:
    """Return the plain values of a tree."""
    if isinstance(node, MapNode):
        return {key: to_python(entry.value) for key, entry in node.entries.items()}
    if isinstance(node, ListNode):
        return [to_python(item) for item in node.items]
    return node.value


def merge(base: Node, over: Node) -> Node:
    """Return `base` with `over` laid on top: mappings are merged key by key, anything else is replaced."""
    if not isinstance(base, MapNode) or not isinstance(over, MapNode):
        return over
    entries = dict(base.entries)
    for key, entry in over.entries.items():
        below = entries.get(key)
        if below is not None and isinstance(below.value, MapNode) and isinstance(entry.value, MapNode):
            entry = Entry(below.key, merge(below.value, entry.value))  # noqa: PLW2901 - the merged one
        entries[key] = entry
    return MapNode(entries, base.span)


def put(root: MapNode, path: tuple[str, ...], entry: Entry) -> MapNode:
    """Return the tree with an entry at a path; sections that lack on the way are made, at the entry's place."""
    name, *rest = path
    if not rest:
        return root.having(name, entry)
    section = root.entries.get(name)
    if section is None or (isinstance(section.value, Scalar) and section.value.value is None):
        section = Entry(entry.key, MapNode({}, entry.key))
    if not isinstance(section.value, MapNode):
        return root  # the section is no section, which is a problem of its own
    return root.having(name, Entry(section.key, put(section.value, tuple(rest), entry)))


def remove(root: MapNode, path: tuple[str, ...]) -> MapNode:
    """Return the tree without the entry at a path."""
    name, *rest = path
    section = root.entries.get(name)
    if section is None:
        return root
    if not rest:
        return root.without(name)
    if not isinstance(section.value, MapNode):
        return root
    return root.having(name, Entry(section.key, remove(section.value, tuple(rest))))


def find(root: Node, path: Path) -> Entry | None:
    """Return the value at a path and the place of its key (for a list item, its own place); None where nothing is."""
    entry = Entry(root.span, root)
    for step in path:
        node = entry.value
        if isinstance(node, MapNode) and step in node.entries:
            entry = node.entries[str(step)]
        elif isinstance(node, ListNode) and isinstance(step, int) and step < len(node.items):
            entry = Entry(node.items[step].span, node.items[step])
        else:
            return None
    return entry


def format_path(path: Path) -> str:
    """Write a path the way people do: `secrets[0].env_var`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
