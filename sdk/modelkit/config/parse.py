"""YAML to a tree with places.

PyYAML scans and composes; scalars are read by YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema), so
that `no` and `on` are text and `0o17` is the only octal. Anchors, aliases and merge keys work, within bounds that no
honest file reaches. Never raises on bad input.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from yaml.composer import Composer, ComposerError
from yaml.error import MarkedYAMLError, YAMLError
from yaml.nodes import MappingNode, ScalarNode, SequenceNode
from yaml.nodes import Node as YamlNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from modelkit.config.source import Source, Span
from modelkit.config.syntax import explain_syntax
from modelkit.config.tree import Entry, ListNode, MapNode, Node, Scalar
from modelkit.errors import Problem

__all__ = ["parse"]

MAX_DEPTH = 32
MAX_VALUES = 50_000
MAX_PROBLEMS = 100

_TAG = "tag:yaml.org,2002:"
_PLAIN = "plain"

_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_MAX_DIGITS = 300


def parse(source: Source, start: int = 0) -> tuple[Node | None, list[Problem]]:
    """Return the tree of the YAML in `source` from character `start` on, and every problem found.

    The tree is None where the text is no YAML at all, or is empty.
    """
    text = source.text[start:]
    try:
        documents = list(_compose(text))
    except ReaderError as error:
        place = source.span(start + error.position, start + error.position + 1)
        message = f"the control character U+{ord(text[error.position]):04X} is not allowed in YAML"
        return None, [place.problem(message, "delete it")]
    except MarkedYAMLError as error:
        return None, [explain_syntax(source, start, error)]
    # PyYAML's scanner passes on what chr() and int() raise for escapes and directives out of range.
    except (YAMLError, ValueError, OverflowError) as error:
        return None, [source.span(start).problem(f"this is not YAML: {error}")]
    if not documents or documents[0] is None:
        return None, []
    builder = _TreeBuilder(source, start)
    tree = builder.build(documents[0])
    if len(documents) > 1:
        second = builder.span(documents[1]) if documents[1] is not None else source.span(len(source.text))
        builder.problems.append(
            second.problem(
                "a second document starts above this line", "keep one document: remove the '---' before it"
            )
        )
    return tree, builder.problems


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's pieces up to the composer, with a bound on the depth."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: YamlNode | None, index: Any) -> YamlNode | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        node: YamlNode | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def resolve(self, kind: type[YamlNode], value: Any, implicit: Any) -> Any:
        # Which type a plain scalar has is decided below, by YAML 1.2's rules; PyYAML's are those of 1.1.
        if kind is ScalarNode and implicit[0]:
            return _PLAIN
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


def _compose(text: str) -> Any:
    """Yield the root of each document, at most two: one more than is allowed."""
    loader = _Loader(text)
    for _ in range(2):
        if not loader.check_node():
            return
        yield loader.get_node()


class _TreeBuilder:
    """Turns PyYAML's nodes into a tree, expanding aliases, and collects the problems on the way."""

    def __init__(self, source: Source, start: int) -> None:
        self.problems: list[Problem] = []
        self._source = source
        self._start = start
        self._num_values = 0
        self._ancestors: set[int] = set()

    def build(self, node: YamlNode) -> Node:
        """Return the tree below a node."""
        self._num_values += 1
        if id(node) in self._ancestors:
            return self._refuse(node, "this anchor contains an alias of itself", "write the values out")
        if self._num_values > MAX_VALUES:
            if self._num_values == MAX_VALUES + 1:
                self._refuse(
                    node, f"more than {MAX_VALUES:,} values, counting each alias", "write fewer aliases"
                )
            return Scalar(None, "", self.span(node))
        self._ancestors.add(id(node))
        try:
            return self._convert(node)
        finally:
            self._ancestors.discard(id(node))

    def span(self, node: YamlNode) -> Span:
        """Return where a node was written."""
        return self._source.span(self._start + node.start_mark.index, self._start + node.end_mark.index)

    def _convert(self, node: YamlNode) -> Node:
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node)
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            return ListNode(tuple(self.build(item) for item in node.value), self.span(node))
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        return self._refuse(node, f"the tag '{_short(node.tag)}' is not supported", "remove it")

    def _scalar(self, node: ScalarNode) -> Node:
        text = str(node.value)
        if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
            return self._refuse(
                node, "an escape names half a character", r"write the character itself, or \U and 8 digits"
            )
        read = _READERS.get(node.tag)
        if read is None:
            return self._refuse(node, f"the tag '{_short(node.tag)}' is not supported", "remove it")
        try:
            return Scalar(read(text), text, self.span(node))
        except ValueError:
            return self._refuse(node, f"'{_clip(text)}' is not of the type its tag says", "remove the tag")

    def _mapping(self, node: MappingNode) -> MapNode:
        entries: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self._refuse(
                    key_node, "a key must be a single word, not a list or a mapping", "use a plain key"
                )
                continue
            key = str(key_node.value)
            if key == "<<" and key_node.tag == _PLAIN:
                merged = self._merge_key(value_node) | merged
                continue
            value = self.build(value_node)
            if key in entries:
                message = f"'{key}' is given twice; the first is on line {entries[key].key.line}"
                self._refuse(key_node, message, "remove one of the two")
            entries[key] = Entry(self.span(key_node), value)
        return MapNode(merged | entries, self.span(node))

    def _merge_key(self, node: YamlNode) -> dict[str, Entry]:
        """Return what `<<: *anchor` brings in; of several mappings the first wins (https://yaml.org/type/merge.html)."""
        value = self.build(node)
        sources = value.items if isinstance(value, ListNode) else (value,)
        entries: dict[str, Entry] = {}
        for source in sources:
            if not isinstance(source, MapNode):
                self._refuse(
                    node, "'<<' merges mappings, and this is none", "refer to an anchor on a mapping"
                )
                break
            entries = {**source.entries, **entries}
        return entries

    def _refuse(self, node: YamlNode, message: str, cure: str) -> Scalar:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(self.span(node).problem(message, cure))
        return Scalar(None, "", self.span(node))


def _read_plain(text: str) -> str | int | float | bool | None:
    """Read an untagged plain scalar by the core schema."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    # No number that long is meant as one, and int() refuses it anyway.
    if len(text) <= _MAX_DIGITS:
        if _INT.fullmatch(text) or _OCTAL.fullmatch(text) or _HEX.fullmatch(text):
            return _read_int(text)
        if _FLOAT.fullmatch(text) or _INFINITE.fullmatch(text):
            return _read_float(text)
    return text


def _read_int(text: str) -> int:
    if _OCTAL.fullmatch(text) or _HEX.fullmatch(text):
        return int(text, 0)
    return int(text) if _INT.fullmatch(text) and len(text) <= _MAX_DIGITS else _fail(text)


def _read_float(text: str) -> float:
    if _INFINITE.fullmatch(text):
        return math.nan if text[1].lower() == "n" else -math.inf if text[0] == "-" else math.inf
    return float(text) if _FLOAT.fullmatch(text) else _fail(text)


def _read_bool(text: str) -> bool:
    return text.lower() == "true" if _BOOL.fullmatch(text) else _fail(text)


def _read_null(text: str) -> None:
    if not _NULL.fullmatch(text):
        _fail(text)


def _fail(text: str) -> Any:
    raise ValueError(text)


_READERS: dict[str, Callable[[str], str | int | float | bool | None]] = {
    _PLAIN: _read_plain,
    f"{_TAG}str": str,
    f"{_TAG}int": _read_int,
    f"{_TAG}float": _read_float,
    f"{_TAG}bool": _read_bool,
    f"{_TAG}null": _read_null,
}


def _short(tag: str) -> str:
    return _clip(tag.replace(_TAG, "!!"))


def _clip(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"  # noqa: PLR2004 - enough to recognise it
