"""PyYAML's syntax errors in words that help: what is wrong on this line, and what to write instead."""

import re

from yaml.error import MarkedYAMLError

from modelkit.config.source import Source
from modelkit.errors import Problem

__all__ = ["explain_syntax"]

# What PyYAML says (a regular expression), what is meant, and the cure. The first match wins.
_EXPLANATIONS: tuple[tuple[str, str, str], ...] = (
    (
        r"nested deeper than (\d+) levels",
        "nested deeper than {0} levels",
        "flatten it; no key of config.yaml needs that",
    ),
    (
        r"found character '([%@`])' that cannot start",
        "a value cannot start with {0}",
        "put the value in quotes",
    ),
    (
        r"mapping values are not allowed here",
        "a ':' where no key can be",
        "put a value that contains ': ' in quotes, or check the indentation",
    ),
    (
        r"while scanning a simple key|could not find expected ':'",
        "this line has no ':'",
        "write 'key: value', with a space after the colon",
    ),
    (
        r"found unexpected end of stream",
        "this quote is never closed",
        "close it with the same kind of quote",
    ),
    (
        r"while parsing a flow (sequence|mapping)",
        "this bracket is not closed where it should be",
        "close it, and separate the items with commas",
    ),
    (
        r"while parsing a block (mapping|collection).*<scalar>",
        "text after the end of a quoted value",
        "put the whole value in one pair of quotes; double a quote inside it",
    ),
    (
        r"while parsing a block (mapping|collection)|expected '<document start>'",
        "this line's indentation fits no line above",
        "indent it as much as its neighbours, with spaces",
    ),
    (
        r"found undefined alias '(.*)'",
        "there is no anchor '&{0}' above this alias",
        "put a value that starts with '*' in quotes",
    ),
    (
        r"found duplicate anchor '?([^;']*)",
        "the anchor '&{0}' is used twice",
        "give the second anchor another name",
    ),
    (
        r"unknown escape character '(.*)'",
        r"'\{0}' is no escape in double quotes",
        "double the backslash, or use single quotes",
    ),
    (
        r"expected the node content",
        "a value is missing here",
        "write a value, or put text that starts with a bracket in quotes",
    ),
)

# Errors whose cause is where the construct started rather than where PyYAML gave up.
_POINT_AT_START = re.compile(r"found unexpected end of stream|while parsing a flow|simple key")


def explain_syntax(source: Source, start: int, error: MarkedYAMLError) -> Problem:
    """Return the problem for an error of PyYAML's, whose marks count from character `start` of the source."""
    said = f"{error.context or ''}: {error.problem or ''}"
    mark = error.problem_mark or error.context_mark
    if error.context_mark is not None and _POINT_AT_START.search(said):
        mark = error.context_mark
    index = start + (mark.index if mark is not None else 0)
    tab = _find_tab(source, index)
    if tab is not None:
        cure = "indent with spaces; YAML allows no tabs there"
        return source.span(tab, tab + 1).problem("a tab in the indentation", cure)
    message, cure = _explain(said)
    return source.span(index, index + 1).problem(message, cure)


def _explain(said: str) -> tuple[str, str]:
    for pattern, message, cure in _EXPLANATIONS:
        match = re.search(pattern, said, re.DOTALL)
        if match:
            return message.format(*match.groups()), cure
    return f"this is not YAML: {said.strip(': ')}", ""


def _find_tab(source: Source, index: int) -> int | None:
    """Return the first tab among the white space that a line starts with, '- ' of lists included."""
    line, column = source.place(index)
    indentation = re.match(r"[ \t-]*", source.line(line))
    assert indentation is not None
    tab = indentation[0].find("\t")
    return None if tab < 0 else index - column + 1 + tab
